from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from thumbwheel import config, logs


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Puts the process' logging back."""
    root = logging.getLogger()
    kept = (root.handlers[:], root.level, {name: logging.getLogger(name).level for name in logs.OURS})
    yield
    root.handlers[:], level, levels = kept
    root.setLevel(level)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)
    logging.captureWarnings(False)


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_one_line_of_logfmt_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config.Log(), "server")
    logging.getLogger("thumbwheel.x").info(
        "vote_kept",
        extra={"turn": "t1", "ms": 0.123456789, "text": 'a "b" = c\nd', "ok": True, "none": None, "empty": ""},
    )
    (line,) = written(capsys)
    stamp, rest = line.split(" ", 1)
    assert stamp.startswith("ts=20")
    assert stamp.endswith("Z")
    assert rest == (
        "level=info process=server logger=thumbwheel.x event=vote_kept "
        'turn=t1 ms=0.123457 text="a \\"b\\" = c\\nd" ok=true none=null empty=""'
    )


def test_one_line_of_json_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config.Log(format="json"), "learner")
    logging.getLogger("learner.cycle").warning("cycle %s", 3, extra={"kl": 1.5, "path": object})
    (line,) = written(capsys)
    fields = json.loads(line)
    assert fields.pop("ts").endswith("Z")
    assert fields == {
        "level": "warning",
        "process": "learner",
        "logger": "learner.cycle",
        "event": "cycle 3",
        "kl": 1.5,
        "path": "<class 'object'>",
    }


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_a_traceback_stays_on_the_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure(config.Log.model_validate({"format": form}), "server")
    try:
        raise ValueError("line one\nline two")
    except ValueError:
        logging.getLogger("server").exception("failed")
    (line,) = written(capsys)
    assert "Traceback" in line
    assert "line two" in line


def test_others_are_heard_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config.Log(level="debug"), "server")
    logging.getLogger("httpx").info("noise")
    logging.getLogger("httpx").warning("trouble")
    logging.getLogger("thumbwheel.x").debug("detail")
    assert [line.split("event=")[1] for line in written(capsys)] == ["trouble", "detail"]


def test_the_level_is_ours_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config.Log(level="error"), "server")
    logging.getLogger("thumbwheel.x").warning("quiet")
    assert written(capsys) == []


def test_secrets_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config.Log(), "server")
    logging.getLogger("thumbwheel.x").info("key_seen", extra={"api_key": "hush"})
    (line,) = written(capsys)
    assert "hush" not in line


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        logs.configure(config.Log(), "server")
    logging.getLogger("thumbwheel.x").info("once")
    assert len(written(capsys)) == 1


def test_warnings_of_libraries_are_lines_too() -> None:
    code = """
import warnings
from thumbwheel import config, logs
logs.configure(config.Log(), "learner")
warnings.warn("old\\nhat")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "level=warning process=learner logger=py.warnings" in line
    assert "old\\nhat" in line
