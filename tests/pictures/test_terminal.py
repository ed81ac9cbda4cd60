from __future__ import annotations

import json
import os
from pathlib import Path

from tests.pictures.terminal import REDRAW, Terminal, thinned


def test_what_is_typed_and_shown_is_kept(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "session.cast", tmp_path, dict(os.environ))
    terminal.type("echo $((6 * 7)) é", r"42 é\s+\$ $", 10)
    terminal.close()
    header, *events = [json.loads(line) for line in (tmp_path / "session.cast").read_text().splitlines()]
    assert header["version"] == 2
    said = "".join(said for _, kind, said in events if kind == "o")
    assert "echo $((6 * 7)) é" in said
    assert "42 é" in said
    assert [at for at, _, _ in events] == sorted(at for at, _, _ in events)


def test_of_a_progress_bar_one_drawing_a_second_and_the_last_are_kept() -> None:
    bar = [(tenth / 10, f"{REDRAW}{tenth}") for tenth in range(25)]
    assert thinned([(0, "$ "), *bar, (2.5, "done")]) == [(0, "$ "), bar[0], bar[10], bar[20], bar[24], (2.5, "done")]
