"""Where a cycle is, for whoever looks at the learner's metrics, or afterwards at its trace."""

from __future__ import annotations

from dataclasses import dataclass

from learner import metrics
from thumbwheel import tracing


@dataclass(slots=True)
class Stages:
    """The stages of one cycle, one after another."""

    cycle: tracing.Span = tracing.UNTRACED
    """The whole of it."""
    _now: tracing.Span = tracing.UNTRACED

    def enter(self, name: str) -> None:
        """Ends the stage before."""
        self.close()
        metrics.stage(name)
        self._now = tracing.begin(name)

    def close(self) -> None:
        """Ends the last stage."""
        self._now.end()
        self._now = tracing.UNTRACED
