"""`thumbwheel chat` on a pipe and on a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from typing import TYPE_CHECKING

from thumbwheel_client.v1 import feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel


async def votes(served: Served) -> list[feedback_pb2.Vote]:
    """Current votes with their turns, in the order in which they were given."""
    request = feedback_pb2.ListVotesRequest(all_raters=True, include_turns=True)
    page = await served.services.feedback.ListVotes(request)
    return sorted(page.votes, key=lambda vote: [int(part) for part in vote.event_id.split("-")])


async def test_a_conversation_with_every_kind_of_vote(served: Served, thumbwheel: Thumbwheel) -> None:
    lines = ["hello there", "+", "tell me more", "s 4", "-", "e", "A better answer.", "and now", "/quit", "not read"]
    done = await thumbwheel("chat", "--server", served.addresses.grpc, "--user", "ann", typed="\n".join(lines))

    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "HELLO THERE", "— base", "rated", "TELL ME MORE", "— base", "rated", "rated", "rated", "AND NOW", "— base",
    ]  # fmt: skip
    first, *second = await votes(served)
    assert (first.event.thumb, first.responses[0].text) == (pb.THUMB_UP, "HELLO THERE")
    assert [vote.event.WhichOneof("value") for vote in second] == ["stars", "thumb", "edit"]
    assert (second[0].event.stars, second[1].event.thumb) == (4, pb.THUMB_DOWN)
    assert second[2].event.edit == "A better answer."
    assert len({vote.event.rater for vote in [first, *second]}) == 1
    said = [message.content for message in second[0].messages]
    assert said == ["hello there", "HELLO THERE", "tell me more"]


async def test_a_correction_goes_on_in_the_conversation(served: Served, thumbwheel: Thumbwheel) -> None:
    lines = ["one", "e", "The better one.", "two", "+"]
    assert (await thumbwheel("chat", "--server", served.addresses.grpc, typed="\n".join(lines))).code == 0

    _, last = await votes(served)
    assert [message.content for message in last.messages] == ["one", "The better one.", "two"]


async def test_again_replaces_the_answer_and_new_forgets(served: Served, thumbwheel: Thumbwheel) -> None:
    lines = ["one", "r", "+", "two", "+", "/new", "three", "+"]
    assert (await thumbwheel("chat", "--server", served.addresses.grpc, typed="\n".join(lines))).code == 0

    again, second, fresh = await votes(served)
    assert [message.content for message in again.messages] == ["one"]
    assert [message.content for message in second.messages] == ["one", "ONE", "two"]
    assert [message.content for message in fresh.messages] == ["three"]


async def test_votes_need_an_answer(served: Served, thumbwheel: Thumbwheel) -> None:
    done = await thumbwheel("chat", "--server", served.addresses.grpc, typed="+\ne\nr\ns 9\n")

    assert done.code == 0
    assert done.out.splitlines() == [
        "there is no answer to rate yet", "there is no answer to correct yet", "there is no message to answer yet",
        "S 9", "— base",
    ]  # fmt: skip
    assert await votes(served) == []


async def test_the_version_that_answers_is_shown(served: Served, thumbwheel: Thumbwheel) -> None:
    await served.publish("v1")
    done = await thumbwheel("chat", "--server", served.addresses.grpc, "--version", "v1", typed="hi")
    assert done.out.splitlines() == ["v1: HI", "— v1"]

    refused = await thumbwheel("chat", "--server", served.addresses.grpc, "--version", "v9", typed="hi\nho")
    assert refused.code == 1
    assert refused.err.count("\n") == 2
    assert "v9" in refused.err
    assert "Traceback" not in refused.err


async def test_nobody_there(thumbwheel: Thumbwheel) -> None:
    done = await thumbwheel("chat", "--server", "127.0.0.1:1", typed="hi")
    assert (done.code, done.err) == (1, "thumbwheel: nothing answers at 127.0.0.1:1: start it with make run\n")


async def test_ctrl_c_cancels_the_answer_and_twice_leaves(served: Served) -> None:
    terminal, child = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "cli.main", "chat", "--server", served.addresses.grpc,
        stdin=child, stdout=child, stderr=child, env=os.environ | {"TERM": "dumb", "COLUMNS": "160"},
    )  # fmt: skip
    os.close(child)
    shown = b""  # not text: a read may end within a character

    async def until(text: str) -> None:
        """Waits until the terminal shows `text`, beyond what was waited for before."""
        nonlocal shown
        async with asyncio.timeout(30):
            while text.encode() not in shown:
                shown += await asyncio.to_thread(os.read, terminal, 4096)
        shown = shown.partition(text.encode())[2]

    await until("/quit")
    await until("you ›")
    served.engine.resume.clear()  # the answer hangs after its receipt
    os.write(terminal, b"hello\n")
    async with asyncio.timeout(30):
        while not served.engine.running:  # noqa: ASYNC110 - the engine announces nothing
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    await until("cancelled")
    await until("you ›")
    async with asyncio.timeout(30):
        while served.engine.running:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)
    served.engine.resume.set()
    os.write(terminal, b"again\n")
    await until("AGAIN")
    await until("you ›")
    process.send_signal(signal.SIGINT)
    await until("Ctrl-C again to leave")
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == 0
    os.close(terminal)
