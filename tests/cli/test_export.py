"""`thumbwheel export`: every current vote once, in the format that was asked for."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest

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


async def opinions(served: Served, user: str, text: str, *thumbs: pb.Thumb) -> list[str]:
    """A thumb on each answer of one turn; returns the texts."""
    answers = (await ask(served, user, text, n=len(thumbs))).answers
    for answer, thumb in zip(answers, thumbs, strict=True):
        await rate(served, user, answer.receipt.response_id, answer.receipt.response_id, thumb=thumb)
    return [answer.text for answer in answers]


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
    assert (thumb["thumb"], thumb["reasons"], thumb["comment"]) == ("down", ["short"], "so so")
    assert (thumb["stars"], thumb["ranking"], thumb["edit"]) == (None, [], None)
    assert (thumb["version"], thumb["response_id"], thumb["turn_id"]) == ("base", ids[0], ids[0].rpartition("-")[0])
    assert thumb["prompt"] == [{"role": "user", "content": "naïve 🙂?"}]
    assert {"response_id": ids[0], "text": "NAÏVE 🙂?", "version": "base"} in thumb["answers"]
    assert thumb["answered_at"] <= thumb["rated_at"]
    assert votes["stars"]["stars"] == 2
    assert votes["edit"]["edit"] == "better"
    assert votes["ranking"]["ranking"] == [{"response_id": name, "rank": place} for place, name in enumerate(ids, 1)]
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


def said(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


async def test_kto_has_thumbs_and_plain_stars(served: Served, thumbwheel: Thumbwheel) -> None:
    served.engine.script = lambda weights, prompt, index: f"answer {index}"
    for number, stars in enumerate((5, 4, 3, 2)):
        answer = (await ask(served, "ann", f"stars {stars}")).answers[0]
        await rate(served, "ann", f"stars {number}", answer.receipt.response_id, stars=stars)
    await opinions(served, "bob", "thumbs", pb.THUMB_UP, pb.THUMB_DOWN)
    both = (await ask(served, "bob", "both")).answers[0].receipt.response_id
    await rate(served, "bob", "1", both, thumb=pb.THUMB_DOWN)
    await rate(served, "bob", "2", both, stars=5)
    await rate(served, "bob", "3", both, edit="neither")

    done = await thumbwheel("export", "--format", "kto", "--server", served.addresses.grpc)
    assert done.code == 0, done.err
    rows = lines(done.out)
    assert all(set(row) == {"prompt", "completion", "label"} for row in rows)
    labels = {(row["prompt"][0]["content"], row["completion"][0]["content"]): row["label"] for row in rows}
    assert labels == {
        ("stars 5", "answer 0"): True,
        ("stars 4", "answer 0"): True,
        ("stars 2", "answer 0"): False,
        ("thumbs", "answer 0"): True,
        ("thumbs", "answer 1"): False,
        ("both", "answer 0"): False,
    }
    assert all(row["prompt"] == said(row["prompt"][0]["content"], "user") for row in rows)
    assert all(row["completion"] == said(row["completion"][0]["content"]) for row in rows)
    assert done.err.startswith("6 rows from 9 votes; ")


async def test_dpo_has_every_comparison_once(served: Served, thumbwheel: Thumbwheel) -> None:
    counter = iter(range(100))
    served.engine.script = lambda weights, prompt, index: f"answer {next(counter)}"
    first = await opinions(served, "ann", "thumbs", pb.THUMB_UP, pb.THUMB_DOWN, pb.THUMB_DOWN)
    ranked = (await ask(served, "ann", "ranking", n=3)).answers
    ranks = zip(ranked, (2, 1, 2), strict=True)
    items = [pb.RankedResponse(response_id=answer.receipt.response_id, rank=rank) for answer, rank in ranks]
    await rate(served, "ann", "1", ranking=pb.Ranking(items=items))
    best = ranked[1].receipt.response_id
    await rate(served, "ann", "2", best, thumb=pb.THUMB_UP)
    await rate(served, "ann", "3", ranked[0].receipt.response_id, thumb=pb.THUMB_DOWN)
    await rate(served, "ann", "4", best, edit="better yet")
    # Asked again, and somebody else's opinion of the same question, which is no opposite of hers.
    again = await opinions(served, "ann", "again", pb.THUMB_DOWN)
    again += await opinions(served, "ann", "again", pb.THUMB_UP)
    await opinions(served, "bob", "again", pb.THUMB_DOWN)

    done = await thumbwheel("export", "--format", "dpo", "-o", "-", "--server", served.addresses.grpc)
    assert done.code == 0, done.err
    rows = lines(done.out)
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in rows)
    texts = [answer.text for answer in ranked]
    expected = [
        ("again", again[1], again[0]),
        ("ranking", texts[1], texts[0]),
        ("ranking", texts[1], texts[2]),
        ("ranking", "better yet", texts[1]),
        ("thumbs", first[0], first[1]),
        ("thumbs", first[0], first[2]),
    ]
    pairs = [(row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    assert sorted(pairs) == sorted(expected)
    assert all(row[side] == said(row[side][0]["content"]) for row in rows for side in ("chosen", "rejected"))
    assert "rows from" in done.err


async def test_parquet_holds_the_same_table(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    answers = (await ask(served, "ann", "naïve?", n=2)).answers
    ids = [answer.receipt.response_id for answer in answers]
    await rate(served, "ann", "1", ids[0], thumb=pb.THUMB_DOWN, reasons=["short"], comment="so so")
    await rate(served, "ann", "2", ids[0], stars=2)
    await rate(served, "ann", "3", ids[1], edit="better")
    items = [pb.RankedResponse(response_id=name, rank=place) for place, name in enumerate(ids, 1)]
    await rate(served, "ann", "4", ranking=pb.Ranking(items=items))
    server = ("--server", served.addresses.grpc)

    done = await thumbwheel("export", "--format", "parquet", "-o", "votes.parquet", *server)
    assert (done.code, done.out, done.err) == (0, "", "")
    rows = pyarrow.parquet.read_table(tmp_path / "votes.parquet").to_pylist()
    for row in rows:
        row |= {name: row[name].isoformat() for name in ("answered_at", "rated_at")}
    assert rows == lines((await thumbwheel("export", *server)).out)
    assert files(tmp_path) == ["votes.parquet"]

    # To a pipe, which cannot tell where it is.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "cli.main", "export", "--format", "parquet", *server,
        stdout=asyncio.subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    piped, _ = await process.communicate()
    assert len(pyarrow.parquet.read_table(io.BytesIO(piped))) == 4


async def test_without_pyarrow_it_says_what_is_missing(
    served: Served, thumbwheel: Thumbwheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "pyarrow.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]))
    words = ("export", "--format", "parquet", "-o", "votes.parquet", "--server", served.addresses.grpc)
    done = await thumbwheel(*words)
    assert done.code == 1
    assert done.err.strip().endswith("pip install 'thumbwheel[export]'")
    assert files(tmp_path) == []


async def test_a_terminal_sees_how_far_it_is(served: Served, tmp_path: Path) -> None:
    for number in range(3):
        await opinions(served, "ann", f"question {number}", pb.THUMB_UP)
    terminal, its_end = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "cli.main", "export", "-o", "votes.jsonl", "--server", served.addresses.grpc,
        stderr=its_end, cwd=tmp_path, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(its_end)
    assert await process.wait() == 0
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "3 rows" in shown
    assert "100%" in shown
