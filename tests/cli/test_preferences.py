"""Preferences out of votes: how much is remembered, and that it is not more for a larger export."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from cli import export, preferences
from thumbwheel_client.v1 import feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb


def vote(number: int, up: bool, prompt: str, text: str, rater: str = "ann") -> feedback_pb2.Vote:
    turn_id = f"t{number}"
    event = pb.VoteEvent(
        turn_id=turn_id, response_id=f"{turn_id}-0", rater=rater, kind=pb.VOTE_KIND_THUMB,
        thumb=pb.THUMB_UP if up else pb.THUMB_DOWN,
    )  # fmt: skip
    return feedback_pb2.Vote(
        event=event,
        event_id=f"{number}-0",
        messages=[pb.Message(role=pb.ROLE_USER, content=prompt)],
        responses=[pb.ResponseRecord(response_id=event.response_id, text=text)],
    )


def pairs(dpo: preferences.Dpo, *votes: feedback_pb2.Vote) -> list[tuple[str, str]]:
    found = [row for each in votes for row in dpo.rows([each])]
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found]


def test_a_prompt_asked_without_end_does_not_pair_everything_with_everything() -> None:
    dpo = preferences.Dpo()
    found = pairs(dpo, *(vote(number, number % 2 == 0, "Hi", f"answer {number}") for number in range(100)))
    assert len(set(found)) == len(found) <= 100 * preferences.WAITING
    # Only with the latest.
    assert max(abs(int(one.split()[1]) - int(other.split()[1])) for one, other in found) < 2 * preferences.WAITING


def test_the_same_words_twice_are_no_second_pair() -> None:
    said = [vote(1, True, "Hi", "good"), vote(2, False, "Hi", "bad"), vote(3, True, "Hi", "good")]
    assert pairs(preferences.Dpo(), *said) == [("good", "bad")]
    assert pairs(preferences.Dpo(), vote(1, True, "Hi", "same"), vote(2, False, "Hi", "same")) == []


def test_only_so_many_prompts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "REMEMBERED", 3)
    asked = [vote(number, True, f"question {number}", "good") for number in range(4)]
    again = [vote(9, False, f"question {number}", "bad") for number in (0, 3)]
    assert pairs(preferences.Dpo(), *asked, *again) == [("good", "bad")]


@pytest.mark.parametrize("format", list(export.Format))
async def test_a_larger_export_takes_no_more_memory(format: export.Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "REMEMBERED", 50)
    monkeypatch.setattr(export.row_files, "GROUP_ROWS", 50)

    class Pages:
        """Answers with 20 votes of some 2,000 characters a page."""

        def __init__(self, pages: int) -> None:
            self.left = pages

        async def ListVotes(self, request: Any, **_: Any) -> feedback_pb2.ListVotesResponse:
            self.left -= 1
            first = 20 * self.left
            return feedback_pb2.ListVotesResponse(
                votes=[vote(n, n % 2 == 0, f"prompt {n // 2}", f"{n}" * 500) for n in range(first, first + 20)],
                next_page_token="more" if self.left else "",
                total_turns=20,
            )

    async def peak(pages: int) -> int:
        services: Any = SimpleNamespace(feedback=Pages(pages), identity=lambda user: ())
        rows, _ = export._made_of(format)
        with open("/dev/null", "wb") as sink, export._writer(format, sink) as writer:  # noqa: ASYNC230, PTH123
            tracemalloc.start()
            async for turn in export.all_turns(services, "", everybody=True):
                for row in rows(turn.votes):
                    writer.write(row)
            reached = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return reached

    await peak(10)  # what is imported and cached by the first
    small, large = await peak(20), await peak(200)
    assert large < 1.3 * small
