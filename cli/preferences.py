"""Preferences as TRL's trainers take them: thumbs for KTO, pairs for DPO.

kto  {"prompt": [messages], "completion": [message], "label": bool}
dpo  {"prompt": [messages], "chosen": [message], "rejected": [message]}
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

from cli import row_values
from cli.vote_rows import Row, messages_of, name_rater
from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1.feedback_pb2 import Vote
from thumbwheel_client.v1.import_pb2 import ImportedAnswer, ImportedRanks, ImportedVote
from thumbwheel_client.v1.record_pb2 import THUMB_DOWN, THUMB_UP, VoteEvent

GOOD_STARS, BAD_STARS = 4, 2
"""From so many stars on an answer is liked; up to so many it is not. Three say neither."""
REMEMBERED = 1000
"""Prompts whose answers wait for a counterpart ..."""
WAITING = 8
"""... and how many answers of each kind."""


def liked(event: VoteEvent) -> bool | None:
    """Whether somebody liked an answer; None for a vote that does not say."""
    match event.WhichOneof("value"):
        case "thumb":
            return event.thumb == THUMB_UP
        case "stars":
            return True if event.stars >= GOOD_STARS else False if event.stars <= BAD_STARS else None
    return None


class Kto:
    """A row for every answer with an opinion; of a thumb and stars by one rater the thumb says it more plainly."""

    def rows(self, turn: Sequence[Vote]) -> Iterator[Row]:
        """
        Args:
            turn: all votes on one turn.
        """
        for vote in _opinions(turn):
            completion = _said(_rated(vote))
            yield {"prompt": messages_of(vote), "completion": completion, "label": liked(vote.event)}


@dataclass(slots=True)
class _Answers:
    """Latest texts that one rater liked, and did not."""

    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def join(self, others: _Answers) -> None:
        self.good = (self.good + others.good)[-WAITING:]
        self.bad = (self.bad + others.bad)[-WAITING:]


class Dpo:
    """Pairs from rankings, edits, and opposite opinions of one rater on answers to one prompt.

    Who asks again and likes the second answer better has said so in two turns: the latest prompts are remembered.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, _Answers] = OrderedDict()

    def rows(self, turn: Sequence[Vote]) -> Iterator[Row]:
        """
        Args:
            turn: all votes on one turn.
        """
        pairs = [pair for vote in turn for pair in _compared(vote)] + self._opposites(turn)
        for chosen, rejected in dict.fromkeys(pairs):
            if chosen.strip() and rejected.strip() and chosen != rejected:
                yield {"prompt": messages_of(turn[0]), "chosen": _said(chosen), "rejected": _said(rejected)}

    def _opposites(self, turn: Sequence[Vote]) -> list[tuple[str, str]]:
        pairs = []
        for vote in _opinions(turn):
            key = _prompt_key(vote)
            known = self._answers.setdefault(key, _Answers())
            self._answers.move_to_end(key)
            text = _rated(vote)
            if liked(vote.event):
                new = _Answers(good=[text] if text not in known.good else [])
            else:
                new = _Answers(bad=[text] if text not in known.bad else [])
            pairs += [*product(new.good, known.bad), *product(known.good, new.bad)]
            known.join(new)
        while len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        return pairs


def vote_of_kto(row: Any) -> ImportedVote:
    """A row to be imported.

    Raises:
        InvalidInput: it is none; names the column.
    """
    row = row_values.table(row, "row")
    if not isinstance(row.get("label"), bool):
        raise InvalidInput("label", "must be true or false")
    vote = ImportedVote(
        messages=row_values.messages(row.get("prompt"), "prompt"),
        answers=[ImportedAnswer(text=row_values.answer(row.get("completion"), "completion"))],
        thumb=THUMB_UP if row["label"] else THUMB_DOWN,
    )
    name_rater(vote, row.get("rater"))
    return vote


def vote_of_dpo(row: Any) -> ImportedVote:
    """A row to be imported.

    Raises:
        InvalidInput: it is none; names the column.
    """
    row = row_values.table(row, "row")
    texts = [row_values.answer(row.get(column), column) for column in ("chosen", "rejected")]
    vote = ImportedVote(
        messages=row_values.messages(row.get("prompt"), "prompt"),
        answers=[ImportedAnswer(index=index, text=text) for index, text in enumerate(texts)],
        ranks=ImportedRanks(ranks=[1, 2]),
    )
    name_rater(vote, row.get("rater"))
    return vote


def _opinions(turn: Sequence[Vote]) -> list[Vote]:
    """One vote for each answer that somebody liked or did not, and that is still there with its conversation."""
    found: dict[tuple[str, str], Vote] = {}
    for vote in turn:
        if liked(vote.event) is None or not vote.messages or not _rated(vote).strip():
            continue
        place = (vote.event.rater, vote.event.response_id)
        if vote.event.WhichOneof("value") == "thumb" or place not in found:
            found[place] = vote
    return list(found.values())


def _compared(vote: Vote) -> Iterator[tuple[str, str]]:
    """(better, worse) of a ranking or an edit."""
    event, texts = vote.event, {answer.response_id: answer.text for answer in vote.responses}
    if not vote.messages:
        return
    if event.WhichOneof("value") == "edit" and event.response_id in texts:
        yield event.edit, texts[event.response_id]
    places = [item for item in event.ranking.items if item.response_id in texts]
    for one, other in combinations(sorted(places, key=lambda item: item.rank), 2):
        if one.rank != other.rank:
            yield texts[one.response_id], texts[other.response_id]


def _rated(vote: Vote) -> str:
    """The text of the rated answer; empty if it is no longer kept."""
    return next((answer.text for answer in vote.responses if answer.response_id == vote.event.response_id), "")


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _prompt_key(vote: Vote) -> bytes:
    asked = json.dumps([vote.event.rater, messages_of(vote)])
    return hashlib.sha256(asked.encode()).digest()
