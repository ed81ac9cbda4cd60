"""`thumbwheel import`: a file's votes into a server, by every format, and what is said of rows that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli import importing
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


async def kept(served: Served) -> list[feedback_pb2.Vote]:
    request = feedback_pb2.ListVotesRequest(all_raters=True, include_turns=True)
    page = await served.services.feedback.ListVotes(request, metadata=served.services.identity("operator"))
    return list(page.votes)


def summary(votes: list[feedback_pb2.Vote]) -> set[tuple[str, str, str]]:
    """Question, answers, and the opinion of each."""
    return {
        (
            vote.messages[-1].content,
            "|".join(answer.text for answer in vote.responses),
            {pb.THUMB_UP: "up", pb.THUMB_DOWN: "down"}.get(vote.event.thumb)
            or "|".join(str(item.rank) for item in vote.event.ranking.items),
        )
        for vote in votes
    }


async def test_kto_and_dpo_as_trl_has_them(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    admin = ("--server", served.addresses.admin)
    kto = write(
        tmp_path / "kto.jsonl",
        {"prompt": user("plain"), "completion": said("yes"), "label": True},
        {"prompt": "as text", "completion": "no", "label": False, "rater": "ann"},
    )
    done = await thumbwheel("import", kto, "--format", "kto", *admin)
    assert (done.code, done.out, done.err) == (0, "2 votes kept, 0 known already, 0 refused\n", "")
    dpo = write(
        tmp_path / "dpo.jsonl",
        {"prompt": user("pair"), "chosen": said("good"), "rejected": said("bad"), "score_chosen": 9.5},
    )
    done = await thumbwheel("import", dpo, "--format", "dpo", "--rater", "ann", *admin)
    assert done.out == "1 votes kept, 0 known already, 0 refused\n", done.err
    found = await kept(served)
    assert summary(found) == {("plain", "yes", "up"), ("as text", "no", "down"), ("pair", "good|bad", "1|2")}
    raters = {vote.messages[-1].content: vote.event.rater for vote in found}
    assert raters["as text"] == raters["pair"] != raters["plain"]

    again = await thumbwheel("import", kto, "--format", "kto", *admin)
    assert again.out == "0 votes kept, 2 known already, 0 refused\n"
    assert await kept(served) == found


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
async def test_an_export_goes_into_another_store_whole(
    served: Served, thumbwheel: Thumbwheel, tmp_path: Path, format: str
) -> None:
    metadata = served.services.identity("ann")
    question = chat_pb2.ChatInput(messages=[pb.Message(role=pb.ROLE_USER, content="naïve 🙂?")], n=2)
    answers = (await served.services.chat.Chat(chat_pb2.ChatRequest(input=question), metadata=metadata)).answers
    ids = [answer.receipt.response_id for answer in answers]
    items = [pb.RankedResponse(response_id=name, rank=place) for place, name in enumerate(reversed(ids), 1)]
    votes: list[dict[str, Any]] = [
        {"response_id": ids[0], "thumb": pb.THUMB_DOWN, "reasons": ["short"], "comment": "so so"},
        {"response_id": ids[1], "stars": 4},
        {"response_id": ids[1], "edit": "better"},
        {"ranking": pb.Ranking(items=items)},
    ]
    for number, vote in enumerate(votes):
        request = feedback_pb2.RateRequest(idempotency_key=str(number), **vote)
        await served.services.feedback.Rate(request, metadata=metadata)
    name, out = f"votes.{format}", ("--server", served.addresses.grpc)
    admin = ("--format", format, "--server", served.addresses.admin)
    assert (await thumbwheel("export", "--format", format, "-o", name, *out)).code == 0

    known = await thumbwheel("import", name, *admin)
    assert known.out == "0 votes kept, 4 known already, 0 refused\n", known.err
    before = [json.loads(line) for line in (await thumbwheel("export", *out)).out.splitlines()]
    await served.forget_everything()
    assert await kept(served) == []
    brought = await thumbwheel("import", name, *admin)
    assert brought.out == "4 votes kept, 0 known already, 0 refused\n", brought.err
    after = [json.loads(line) for line in (await thumbwheel("export", *out)).out.splitlines()]

    def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without what is not taken along: where the vote stood in the stream, and which version answered."""
        for row in rows:
            del row["event_id"], row["version"]
            row["ranking"].sort(key=lambda item: item["rank"])
            for answer in row["answers"]:
                del answer["version"]
        return sorted(rows, key=lambda row: row["kind"])

    assert comparable(after) == comparable(before)


async def test_open_webuis_feedback(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    history = {
        "a": {"id": "a", "parentId": None, "role": "user", "content": "Hi"},
        "b": {"id": "b", "parentId": "a", "role": "assistant", "content": "Hello.", "timestamp": 1_700_000_000},
        "b2": {"id": "b2", "parentId": "a", "role": "assistant", "content": "Yo."},
        "c": {"id": "c", "parentId": "b", "role": "user", "content": "And?"},
        "d": {"id": "d", "parentId": "c", "role": "assistant", "content": "Nothing.", "timestamp": 1_700_000_100},
    }

    def feedback(message: str, **data: Any) -> dict[str, Any]:
        return {
            "id": f"feedback {message}", "user_id": "5c1f", "version": 0, "type": "rating",
            "data": {"model_id": "thumbwheel", "sibling_model_ids": ["other"], "reason": None, "comment": "", **data},
            "meta": {"arena": False, "chat_id": "chat", "message_id": message, "model_id": "thumbwheel"},
            "snapshot": {"chat": {"id": "chat", "chat": {"history": {"messages": history, "currentId": "d"}}}},
            "created_at": 1_700_000_150, "updated_at": 1_700_000_200,
        }  # fmt: skip

    rows = [
        feedback("d", rating=1, reason="accurate_information", comment="right", details={"rating": 9}),
        feedback("b2", rating="-1"),
        feedback("d", rating=None),
        feedback("gone", rating=1),
        feedback("d", rating=1) | {"type": "comment"},
        feedback("d", rating=1) | {"snapshot": None},
        feedback("c", rating=1),
        "nothing",
    ]
    (tmp_path / "feedback.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ("import", "feedback.json", "--format", "openwebui", "--server", served.addresses.admin)
    done = await thumbwheel(*words)
    assert done.code == 1
    assert done.out == "2 votes kept, 0 known already, 6 refused\n"
    assert done.err.splitlines() == [
        "row 3: data.rating: is neither 1 nor -1",
        "row 4: snapshot: does not hold the rated message and those before it",
        "row 5: type: is not rating",
        "row 6: snapshot: must be an object",
        "row 7: snapshot: must be a text, or one message of the assistant's",
        "row 8: feedback: must be an object",
    ]
    found = {vote.event.thumb: vote for vote in await kept(served)}
    up, down = found[pb.THUMB_UP], found[pb.THUMB_DOWN]
    assert [message.content for message in up.messages] == ["Hi", "Hello.", "And?"]
    assert [answer.text for answer in up.responses] == ["Nothing."]
    assert (list(up.event.reasons), up.event.comment) == (["accurate_information"], "right")
    assert (up.answered_at.seconds, up.event.created_at.seconds) == (1_700_000_100, 1_700_000_200)
    assert [answer.text for answer in down.responses] == ["Yo."]
    assert up.event.rater == down.event.rater

    # The opinion has changed since: a later export says so, an older one does not.
    rows = [feedback("d", rating=-1) | {"updated_at": 1_700_000_300}, feedback("d", rating=1)]
    (tmp_path / "feedback.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (await thumbwheel(*words)).out == "1 votes kept, 1 known already, 0 refused\n"
    assert [vote.event.thumb for vote in await kept(served)] == [pb.THUMB_DOWN, pb.THUMB_DOWN]


async def test_what_is_refused_is_told_and_kept_aside(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    secret = "nobody else's business"
    rows = [{"prompt": user(secret), "completion": said(secret), "label": "up"} for _ in range(importing.SHOWN)]
    rows.append({"prompt": user(secret), "completion": said(" "), "label": True})
    rows.append({"prompt": user("fine"), "completion": said("fine"), "label": True})
    name = write(tmp_path / "kto.jsonl", *rows)
    with (tmp_path / name).open("a", encoding="utf-8") as file:
        file.write('{"prompt"\n{"prompt": "half \\ud83d", "completion": "x", "label": true}\n')
    words = ("import", name, "--format", "kto", "--server", served.addresses.admin)
    done = await thumbwheel(*words, "--rejects", "rejects.jsonl")
    assert done.code == 1
    assert done.out == "1 votes kept, 0 known already, 23 refused\n"
    told = done.err.splitlines()
    assert told[0] == "row 1: label: must be true or false"
    assert len(told) == importing.SHOWN + 1
    assert told[-1] == "... and 3 more; --rejects keeps them all"
    assert secret not in done.err
    rejected = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {row["number"]: row for row in rejected}
    assert len(found) == len(rejected) == 23
    assert found[1] == {"number": 1, "reason": "label: must be true or false", "row": rows[0]}
    assert found[21]["reason"] == "answers[0].text: empty"
    assert (found[23]["reason"], found[23]["row"]) == ("is no JSON", '{"prompt"\n')
    assert found[24]["reason"] == "holds characters that are none"
    assert summary(await kept(served)) == {("fine", "fine", "up")}


async def test_a_dry_run_keeps_nothing(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    name = write(tmp_path / "kto.jsonl", {"prompt": "a", "completion": "b", "label": True})
    words = ("import", name, "--format", "kto", "--server", served.addresses.admin)
    assert (await thumbwheel(*words, "--dry-run")).out == "1 votes would be kept, 0 known already, 0 refused\n"
    assert await kept(served) == []


async def test_more_than_one_call_holds_and_from_standard_input(served: Served, thumbwheel: Thumbwheel) -> None:
    # The engine's context takes some 4,000 bytes of answer; 250 of 3,000 are more than a server receives at once.
    rows = [{"prompt": f"question {n}", "completion": "x" * 3000, "label": n % 2 == 0} for n in range(250)]
    rows.append({"prompt": "large", "completion": "x" * (importing.BYTES_A_CALL + 1), "label": True})
    typed = "\n".join(map(json.dumps, rows))
    done = await thumbwheel("import", "-", "--format", "kto", "--server", served.addresses.admin, typed=typed)
    assert done.out == "250 votes kept, 0 known already, 1 refused\n", done.err
    assert done.err.startswith("row 251: 524")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("absent.jsonl",), "cannot read absent.jsonl: No such file or directory"),
        (("there.jsonl", "--format", "openwebui"), "this is no JSON"),
        (("there.jsonl", "--format", "parquet"), "this is no Parquet file"),
        (("there.jsonl", "--rejects", "no/folder"), "cannot write no/folder: No such file or directory"),
    ],
)
async def test_files_that_cannot_be_used(
    thumbwheel: Thumbwheel, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "there.jsonl").write_text("{", encoding="utf-8")
    done = await thumbwheel("import", *words, "--server", "127.0.0.1:1")
    assert done.code == 1
    assert done.err.startswith(f"thumbwheel: {message}")
    assert len(done.err.splitlines()) == 1
