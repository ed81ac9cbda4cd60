"""A terminal in which somebody types, kept as text: an asciicast (version 2), which `asciinema play` shows."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import threading
import time
from pathlib import Path

COLUMNS, ROWS = 88, 26
PACE = 0.04
"""Seconds between two keys."""
REDRAW = "\r\x1b[2K"
LULL = 2.0
"""Seconds to which a player shortens a wait."""


class Terminal:
    """A shell on a terminal of its own; `close` writes what was seen."""

    def __init__(self, cast: Path, folder: Path, environment: dict[str, str]) -> None:
        self._cast = cast
        self._seen: list[tuple[float, str]] = []
        self._asked = 0
        """Events before the last line that was typed."""
        self._changed = threading.Condition()
        ours, theirs = pty.openpty()
        os.set_blocking(ours, True)
        size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color", "PS1": "$ "}
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment | size,
        )  # fmt: skip
        os.close(theirs)
        self._file = ours
        self._began = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="terminal")
        self._reader.start()
        self.wait_for(r"\$ $", 10)

    def type(self, line: str, until: str, seconds: float) -> None:
        """Types a line, and waits until what it shows matches."""
        for key in line:
            os.write(self._file, key.encode())
            time.sleep(PACE)
        self._asked = len(self._seen)
        os.write(self._file, b"\r")
        self.wait_for(until, seconds)

    def wait_for(self, words: str, seconds: float) -> None:
        """
        Raises:
            TimeoutError: they were not shown in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: re.search(words, self._shown()), seconds):
                raise TimeoutError(f"{words!r} is not in {self._shown()!r}")

    def close(self) -> None:
        os.write(self._file, b"exit\r")
        self._shell.wait(10)
        self._reader.join(10)
        os.close(self._file)
        header = {"version": 2, "width": COLUMNS, "height": ROWS, "idle_time_limit": LULL, "title": "thumbwheel"}
        events = thinned(self._seen)
        lines = [json.dumps(header), *(json.dumps([round(at, 3), "o", said]) for at, said in events)]
        self._cast.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _shown(self) -> str:
        """Since the last line that was typed, without the terminal's own signs."""
        said = "".join(said for _, said in self._seen[self._asked :])
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said)

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                rest += os.read(self._file, 65536)
            except OSError:  # the shell has ended
                return
            said = rest.decode(errors="ignore")
            rest = rest[len(said.encode()) :]
            with self._changed:
                self._seen.append((time.monotonic() - self._began, said))
                self._changed.notify_all()


def thinned(events: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Of a progress bar that is drawn over itself ten times a second, one drawing a second and the last."""
    kept: list[tuple[float, str]] = []
    drawn = -math.inf
    for (at, said), (_, after) in zip(events, [*events[1:], (math.inf, "")], strict=True):
        if said.startswith(REDRAW):
            if after.startswith(REDRAW) and at - drawn < 1:
                continue
            drawn = at
        kept.append((at, said))
    return kept
