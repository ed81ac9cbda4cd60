"""Tells people what a cycle has done: gathers what its stages noted, and keeps the pages true to the turn log.

    Story (noted in passing) ─┐
    record, lineage ──────────┼──► Facts ──► pages ◄── erased: rows of turns that are gone are dropped
    turns (the prompts) ──────┘

A page is written after the commit and decides nothing. Whatever goes wrong with it, the cycle stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import NoReturn

import numpy as np

from learner import metrics, report_archive
from learner.dataset import Dataset
from learner.policy import Policy
from learner.report import Bin, Comparison, Facts, Heard, Past, Word
from learner.report_words import SplitWords, Spoken, effects
from learner.reward_model import Quality, RewardModel
from thumbwheel.erasure import Erasure
from thumbwheel.errors import StoreUnavailable
from thumbwheel.records import split_response_id
from thumbwheel.registry import Registry
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import record_pb2 as pb

log = logging.getLogger("thumbwheel.learner.reporter")

RETRY_SECONDS = 60.0
"""Until pages that could not be mended are tried again."""
PROMPT_CHARS, ANSWER_CHARS = 600, 2000
"""Most of a prompt and of an answer that a page shows."""
SHOWN_VERSIONS, SHOWN_CYCLES = 12, 30
WORD_ANSWERS = 128
"""Latest answers whose words are weighed. Activations that the policy no longer remembers are computed again for it."""
_PART = 32
"""Answers whose token features are held at once."""


@dataclass(slots=True)
class Story:
    """What a cycle has to tell beside its record. Its stages note it in passing; nothing in it decides anything."""

    data: Dataset = field(default_factory=Dataset)
    reward_model: RewardModel | None = None
    quality: Quality | None = None
    iterations: list[dict[str, float]] = field(default_factory=list)
    comparisons: Sequence[Comparison] = ()


class Reporter:
    """Writes a learner's pages below `folder`, and forgets what must be forgotten."""

    def __init__(
        self, folder: Path, keep: int, registry: Registry, turns: TurnLog, policy: Policy, split: SplitWords
    ) -> None:
        """
        Args:
            folder: of the pages.
            keep: how many of them; 0 writes none.
            registry: tells of the cycles before.
            turns: what people have said. What is no longer there is shown on no page.
            policy: its token features tell which words moved the reward model.
            split: an answer's tokens into words.
        """
        self.folder = folder
        self._keep = keep
        self._registry, self._turns, self._policy, self._split = registry, turns, policy, split
        self._lock = asyncio.Lock()

    async def tell(self, record: pb.CycleRecord, story: Story) -> None:
        """Writes the page of a committed cycle, or says in log and metrics that it could not."""
        if not self._keep:
            return
        try:
            await self._settle(await self._facts(record, story))
        except Exception:  # the cycle is committed and its version may serve: a page must not undo that
            metrics.report_failures.inc()
            log.warning("report_failed", extra={"cycle": record.batch.cycle_id}, exc_info=True)

    async def follow(self, erasure: Erasure, poll: float) -> NoReturn:
        """Until cancelled: mends the pages at once, and after every erasure, whoever leads and whether a cycle runs.

        Args:
            erasure: tells that somebody was erased.
            poll: seconds between two looks.
        """
        seen: int | None = None
        while True:
            wait = poll
            try:
                now = await erasure.erasures()
                if now != seen:
                    await self._settle()
                    seen = now
            except StoreUnavailable:
                pass  # the next look will tell; the erasure itself had to reach the store
            except Exception:  # a full disk, say: what is to be forgotten is tried again, and the learner learns on
                metrics.report_failures.inc()
                log.warning("reports_not_mended", exc_info=True)
                wait = RETRY_SECONDS
            await asyncio.sleep(wait)

    async def _settle(self, new: Facts | None = None) -> None:
        """Adds a page, drops the oldest ones, and from all of them what is of turns that are gone.

        One at a time, and the turns are looked for inside: a page that is written while somebody is erased either sees
        them gone, or is there to be mended when `follow` sees the erasure.
        """
        async with self._lock:
            pages = await asyncio.to_thread(report_archive.read, self.folder)
            if new is not None:
                pages = [new, *(page for page in pages if page.cycle != new.cycle)]
            pages = pages[: self._keep]
            kept = await self._turns.kept({turn for page in pages for turn in page.turns})
            await asyncio.to_thread(report_archive.write, self.folder, [page.keeping(kept) for page in pages])

    async def _facts(self, record: pb.CycleRecord, story: Story) -> Facts:
        lineage = await self._registry.lineage(SHOWN_CYCLES)
        return Facts(
            cycle=record.batch.cycle_id,
            outcome=record.outcome,
            reasons=tuple(record.reasons),
            version=record.version,
            parent=record.batch.parent,
            votes=len(record.batch.event_ids),
            seconds=record.metrics["seconds"],
            finished=record.finished_at.ToDatetime(UTC),
            metrics=dict(sorted(record.metrics.items())),
            iterations=tuple(story.iterations),
            calibration=tuple(
                Bin(predicted=predicted, liked=liked, votes=votes)
                for predicted, liked, votes in (story.quality.bins if story.quality else ())
            ),
            heard=_heard(story.data),
            past=tuple(map(_past, reversed(lineage))),
            comparisons=await self._with_prompts(story.comparisons),
            words=await asyncio.to_thread(self._words, story),
        )

    async def _with_prompts(self, rows: Sequence[Comparison]) -> tuple[Comparison, ...]:
        turns = await self._turns.get_many([row.turn for row in rows])
        return tuple(
            row.model_copy(
                update={
                    "prompt": _cut(turn.record.messages[-1].content, PROMPT_CHARS),
                    "before": _cut(row.before, ANSWER_CHARS),
                    "after": _cut(row.after, ANSWER_CHARS),
                }
            )
            for row, turn in zip(rows, turns, strict=True)
            if turn is not None and turn.record.messages
        )

    def _words(self, story: Story) -> tuple[Word, ...]:
        model = story.reward_model
        if model is None:
            return ()
        sampled = [answer for answer in story.data.answers if answer.max_tokens][:WORD_ANSWERS]  # edits are not
        spoken = []
        for start in range(0, len(sampled), _PART):
            part = sampled[start : start + _PART]
            features = self._policy.token_features([(answer.prompt_ids, answer.answer_ids) for answer in part])
            for answer, tokens in zip(part, features, strict=True):
                turn, _ = split_response_id(answer.key)
                brought = model.slope * model.evidence(tokens) / len(tokens)
                spoken.append(Spoken(turn, self._split(answer.answer_ids), brought))
        return tuple(
            Word(text=found.text, effect=found.mean, answers=found.answers, turns=found.turns)
            for found in effects(spoken)
        )


def _heard(data: Dataset) -> tuple[Heard, ...]:
    """Thumbs and stars in the window by the version that was rated, in the order in which these were first rated."""
    values: dict[str, list[float]] = defaultdict(list)
    for label in reversed(data.labels):  # the newest come first there
        values[data.answers[label.answer].version].append(label.value)
    found = [
        Heard(version=version, up_rate=float(np.mean(said)), votes=len(said))
        for version, said in values.items()
        if version
    ]
    return tuple(found[-SHOWN_VERSIONS:])


def _past(record: pb.CycleRecord) -> Past:
    return Past(
        cycle=record.batch.cycle_id,
        outcome=record.outcome,
        auc=record.metrics.get("reward_model_auc", float("nan")),
        win_rate=record.metrics.get("win_rate", float("nan")),
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} …"
