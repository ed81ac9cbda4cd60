"""Logs: one line per event on stderr, as logfmt or JSON.

``logging.getLogger("thumbwheel.x").info("event_name", extra={"key": value})``. Prompts, answers, comments and keys are
never logged.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from thumbwheel import config, tracing

OURS: Final = ("thumbwheel", "server", "learner", "cli", "__main__")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET: Final = frozenset({"password", "api_key", "authorization", "secret"})


class LineFormatter(logging.Formatter):
    """Turns a record into one line; what was given as `extra` follows the event's name."""

    def __init__(self, form: str, process: str) -> None:
        super().__init__()
        self._form = form
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields |= {
            key: "***" if key in _SECRET else value for key, value in vars(record).items() if key not in _STANDARD
        }
        if trace_id := tracing.trace_id():
            fields["trace_id"] = trace_id
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._form == "json":
            return json.dumps(fields, default=str, ensure_ascii=False)
        return _logfmt(fields)


def configure(settings: config.Log, process: str) -> None:
    """Sends all logs of this process to stderr. Ours from `settings.level` on, others' from warnings on.

    Call it before vllm is imported: it keeps vllm from putting up a log of its own.
    """
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(settings.format, process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(settings.level.upper())
    logging.captureWarnings(True)


def _logfmt(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


def _quoted(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text and text.isprintable() and not any(sign in text for sign in ' ="\\')
    return text if plain else json.dumps(text, ensure_ascii=False)
