"""`thumbwheel export`: every current vote once, as JSON that says what was rated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel


async def ask(served: Served, user: str, text: str, n: int = 1) -> chat_pb2.ChatResponse:
    request = chat_pb2.ChatRequest(
        input=chat_pb2.ChatInput(messages=[pb.Message(role=pb.ROLE_USER, content=text)], n=n)
    )
    return await served.services.chat.Chat(request, metadata=served.services.identity(user))


async def rate(served: Served, user: str, key: str, response_id: str = "", **vote: Any) -> None:
    request = feedback_pb2.RateRequest(response_id=response_id, idempotency_key=key, **vote)
    await served.services.feedback.Rate(request, metadata=served.services.identity(user))


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("votes")]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_every_kind_of_vote(served: Served, thumbwheel: Thumbwheel) -> None:
    answers = (await ask(served, "ann", "naïve 🙂?", n=2)).answers
    ids = [answer.receipt.response_id for answer in answers]
    await rate(served, "ann", "1", ids[0], thumb=pb.THUMB_DOWN, reasons=["short"], comment="so so")
    await rate(served, "ann", "2", ids[0], stars=2)
    await rate(served, "ann", "3", ids[1], edit="better")
    items = [pb.RankedResponse(response_id=name, rank=place) for place, name in enumerate(ids, 1)]
    await rate(served, "ann", "4", ranking=pb.Ranking(items=items))

    done = await thumbwheel("export", "--format", "jsonl", "--server", served.addresses.grpc)
    assert done.code == 0, done.err
    votes = {vote["kind"]: vote for vote in lines(done.out)}
    assert len(votes) == len(done.out.splitlines()) == 4
    thumb = votes["thumb"]
    assert (thumb["value"], thumb["reasons"], thumb["comment"]) == ("down", ["short"], "so so")
    assert (thumb["version"], thumb["response_id"], thumb["turn_id"]) == ("base", ids[0], ids[0].rpartition("-")[0])
    assert thumb["prompt"] == [{"role": "user", "content": "naïve 🙂?"}]
    assert {"response_id": ids[0], "text": "NAÏVE 🙂?", "version": "base"} in thumb["answers"]
    assert thumb["answered_at"] <= thumb["rated_at"]
    assert votes["stars"]["value"] == 2
    assert votes["edit"]["value"] == "better"
    assert votes["ranking"]["value"] == [{"response_id": name, "rank": place} for place, name in enumerate(ids, 1)]
    assert votes["ranking"]["response_id"] is None
    assert {answer["response_id"] for answer in votes["ranking"]["answers"]} == set(ids)


async def test_all_pages_into_a_file_and_only_mine(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    for number in range(130):
        user = "ann" if number < 120 else "bob"
        answer = (await ask(served, user, f"question {number}")).answers[0]
        await rate(served, user, str(number), answer.receipt.response_id, thumb=pb.THUMB_UP)
    server = ("--server", served.addresses.grpc)

    done = await thumbwheel("export", "-o", "votes.jsonl", *server)
    assert (done.code, done.out, done.err) == (0, "", "")
    votes = lines((tmp_path / "votes.jsonl").read_text(encoding="utf-8"))
    assert {vote["prompt"][0]["content"] for vote in votes} == {f"question {number}" for number in range(130)}
    assert len({vote["rater"] for vote in votes}) == 2
    assert files(tmp_path) == ["votes.jsonl"]

    mine = await thumbwheel("export", "--mine", "--user", "bob", *server)
    assert len(lines(mine.out)) == 10


async def test_a_file_that_cannot_be_written(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    done = await thumbwheel("export", "-o", "no/such/folder/votes.jsonl", "--server", served.addresses.grpc)
    assert done.code == 1
    assert done.err == "thumbwheel: cannot write no/such/folder/votes.jsonl: No such file or directory\n"


async def test_a_failed_export_leaves_the_old_file(thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text("old\n", encoding="utf-8")
    done = await thumbwheel("export", "-o", "votes.jsonl", "--server", "127.0.0.1:1")
    assert done.code == 1
    assert files(tmp_path) == ["votes.jsonl"]
    assert (tmp_path / "votes.jsonl").read_text(encoding="utf-8") == "old\n"
