from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import instance
from cli.instance import Instance
from thumbwheel.errors import SetupError

HERE = Instance(1, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:5", "127.0.0.1:4", "unix:///x")

HOLDER = """
import sys
from pathlib import Path
from cli import instance
from cli.instance import Instance
with instance.claim(Path(sys.argv[1])):
    instance.announce(Path(sys.argv[1]), Instance(**eval(sys.argv[2])))
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[bytes]:
    facts = repr({name: getattr(HERE, name) for name in HERE.__slots__})
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), facts], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_second_instance_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(SetupError, match=f"pid {first.pid}"), instance.claim(tmp_path):
            pass
        assert instance.find(tmp_path) == HERE


def test_killed_instance_leaves_the_directory_free(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
        assert instance.find(tmp_path) is None, "its record is there still, but nobody holds the lock"
        with instance.claim(tmp_path):
            pass


def test_directory_is_free_in_a_moment(tmp_path: Path) -> None:
    """What was killed may still be ending its children: a new start waits for it."""
    with holder(tmp_path) as first:
        assert first.stdin is not None
        first.stdin.close()
        began = time.monotonic()
        with instance.claim(tmp_path):
            assert time.monotonic() - began < instance.PATIENCE


def test_announce_and_withdraw(tmp_path: Path) -> None:
    assert instance.find(tmp_path) is None
    with holder(tmp_path) as first:
        instance.withdraw(tmp_path)
        assert instance.find(tmp_path) is None
        assert first.poll() is None


def test_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(SetupError, match="cannot be written"), instance.claim(tmp_path / "data"):
        pass
