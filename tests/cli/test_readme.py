"""What the documents name is there, and README.md's Python works. Their commands are run by ../test_documents.py."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from thumbwheel import config
from thumbwheel_client.v1 import feedback_pb2, record_pb2

if TYPE_CHECKING:
    from tests.cli.conftest import Served

ROOT = Path(__file__).parents[2]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


async def test_the_python_example_chats_and_rates(served: Served) -> None:
    example = re.search(r"```python\n(.*?)```", TEXTS["README.md"], flags=re.DOTALL)
    assert example is not None
    program = example.group(1).replace("127.0.0.1:50051", served.addresses.grpc)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode().startswith("base ")
    reply = await served.services.feedback.ListVotes(feedback_pb2.ListVotesRequest(), timeout=10)
    assert [vote.event.thumb for vote in reply.votes] == [record_pb2.THUMB_UP]


def test_every_make_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    # Not in prose: at a line's beginning, or between a pair of ticks.
    code = [line for text in TEXTS.values() for line in text.splitlines() if line.startswith("make ")]
    code += [span for text in TEXTS.values() for span in re.findall(r"`([^`\n]+)`", text)]
    targets = {word for piece in code for word in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", piece)}
    assert {"docs", "run"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"no target {target}"


def test_every_setting_that_is_named_exists() -> None:
    named = {key for text in TEXTS.values() for key in re.findall(r"--set ([a-z_.]+)=", text)}
    quoted = r"`((?:learner|server|redis|turn_log|model|security|client|tracing)\.[a-z_.]+)`"
    named |= {key for text in TEXTS.values() for key in re.findall(quoted, text)}
    assert named
    for key in named:
        section = config.Config()
        for part in key.split("."):
            assert hasattr(section, part), f"no setting {key}"
            section = getattr(section, part)


def test_every_link_leads_somewhere() -> None:
    for name, text in TEXTS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text):
            assert (folder / target).exists(), f"{name}: no {target}"


def test_every_test_that_is_named_exists() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_[a-z0-9_]+)`", TEXTS["models.md"]):
        assert f"def {name}(" in tests, f"no test {name}"


def test_every_metric_that_is_named_exists() -> None:
    # In the source and not in a registry: some are only made when a server starts.
    source = "".join(
        path.read_text(encoding="utf-8") for half in ("server", "learner") for path in (ROOT / half).glob("*.py")
    )
    for text in TEXTS.values():
        for name in re.findall(r"`(thumbwheel_(?!client)[a-z_]+)", text):
            assert f'"{name}"' in source or f'"{name.removesuffix("_total")}"' in source, f"no metric {name}"
