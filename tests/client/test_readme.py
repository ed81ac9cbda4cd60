"""What the client's README tells people to write works."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thumbwheel_client.v1 import record_pb2 as pb

README = Path(__file__).parents[2] / "client" / "README.md"
TEXT = README.read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^## (.*?)$|```python\n(.*?)```", TEXT, flags=re.MULTILINE | re.DOTALL)


def snippets() -> dict[str, str]:
    """Programs by the heading under which they stand."""
    heading, found = "", {}
    for title, program in SNIPPETS:
        heading = title or heading
        if program:
            found[heading] = program
    return found


KEPT = {
    "": [pb.VOTE_KIND_THUMB],
    "Streams": [pb.VOTE_KIND_STARS],
    "Votes": [pb.VOTE_KIND_RANKING, pb.VOTE_KIND_EDIT],
    "On an event loop": [pb.VOTE_KIND_THUMB],
    "What goes wrong": [],
}


@pytest.mark.parametrize("heading", KEPT)
async def test_the_example_works(heading: str, server: Any, votes: Any) -> None:
    assert snippets().keys() == KEPT.keys()
    program = snippets()[heading].replace("127.0.0.1:50051", server.addresses.grpc)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert err == b""
    assert out or heading == "Votes"
    assert [event.kind for event in await votes("local")] == KEPT[heading]


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (README.parent / target).exists(), target


def test_the_figures_are_those_of_the_code() -> None:
    from thumbwheel_client import CHAT_SECONDS, VOTE_SECONDS

    assert f"A question has {CHAT_SECONDS:g} s and a vote {VOTE_SECONDS:g} s" in TEXT
