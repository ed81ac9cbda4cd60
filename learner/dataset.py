"""From votes and turns to what the reward model and PPO learn from.

vote events ─► current votes ─► labels (thumbs, stars), pairs (rankings, edits)
turns ───────► answers: tokens, behaviour log-probabilities, version
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from thumbwheel.turn_log import Turn
from thumbwheel.vote_stream import StreamId
from thumbwheel_client.v1 import record_pb2 as pb

# (text) -> token ids of an answer, the end-of-turn token included
EncodeAnswer = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as tokens. `conversation` groups everything that grew from the same opening message."""

    key: str
    conversation: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    behaviour_logp: tuple[float, ...]
    version: str
    max_tokens: int
    trainable: bool
    """Sampled whole, by one version, from the policy's own distribution (temperature 1, top-p 1)."""


@dataclass(frozen=True, slots=True)
class Label:
    """An unpaired vote: `value` in [0, 1] on answers[answer]."""

    answer: int
    value: float
    rater: str
    at: int = 0
    """When it was cast, milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Pair:
    """answers[better] was preferred to answers[worse]; the pairs of one ranking share a weight of 1."""

    better: int
    worse: int
    share: float
    rater: str
    edit: bool = False
    """The better one is the rater's own words."""


@dataclass(slots=True)
class Dataset:
    """Answers and what was said of them, newest turn first."""

    answers: list[Answer] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of a rater's votes, 0 to 1 (see raters.py); 1 for who is not named."""

    def weight(self, rater: str) -> float:
        return self.weights.get(rater, 1.0)

    @property
    def votes(self) -> float:
        """How many there are, each as far as it counts."""
        said = [(label.rater, 1.0) for label in self.labels] + [(pair.rater, pair.share) for pair in self.pairs]
        return sum(share * self.weight(rater) for rater, share in said)

    @property
    def raters(self) -> set[str]:
        """Whose votes these are."""
        return {label.rater for label in self.labels} | {pair.rater for pair in self.pairs}

    def part(self, keep: Callable[[Answer], bool]) -> Dataset:
        """The votes on the answers that `keep` accepts; answers stay in place."""
        kept = [keep(answer) for answer in self.answers]
        return Dataset(
            self.answers,
            [label for label in self.labels if kept[label.answer]],
            [pair for pair in self.pairs if kept[pair.better]],
            self.weights,
        )

    def own_votes(self) -> dict[int, tuple[float, float]]:
        """Of each answer with labels or ranks the mean vote in [-1, 1], by weight, and the mean weight in [0, 1]."""
        said: dict[int, list[tuple[float, float]]] = defaultdict(list)  # vote, weight
        for label in self.labels:
            said[label.answer].append((2 * label.value - 1, self.weight(label.rater)))
        margins: dict[tuple[int, str], list[float]] = defaultdict(list)
        for pair in self.pairs:
            margins[pair.better, pair.rater].append(1.0)
            margins[pair.worse, pair.rater].append(-1.0)
        for (answer, rater), values in margins.items():
            said[answer].append((float(np.mean(values)), self.weight(rater)))
        own = {}
        for answer, votes in said.items():
            total = sum(weight for _, weight in votes)
            mean = sum(vote * weight for vote, weight in votes) / total if total else 0.0
            own[answer] = (mean, total / len(votes))
        return own

    def add_turn(self, turn: Turn, votes: Iterable[tuple[str, pb.VoteEvent]], encode: EncodeAnswer) -> None:
        """Adds a turn's voted answers. Votes that no longer fit the turn (an answer that is gone) are left out."""
        conversation = opening(turn.record.messages)
        places: dict[str, int] = {}

        def place(response: pb.ResponseRecord) -> int:
            if response.response_id not in places:
                places[response.response_id] = len(self.answers)
                self.answers.append(_answer(turn.record, response, conversation))
            return places[response.response_id]

        by_id = {response.response_id: response for response in turn.responses.values() if response.token_ids}
        for event_id, event in votes:
            rater, at = event.rater, StreamId.parse(event_id).millis
            if event.kind == pb.VOTE_KIND_RANKING:
                ranks = {item.response_id: item.rank for item in event.ranking.items if item.response_id in by_id}
                self.pairs += _ranked_pairs(ranks, lambda name: place(by_id[name]), rater)
                continue
            if event.response_id not in by_id:
                continue
            rated = place(by_id[event.response_id])
            if event.kind == pb.VOTE_KIND_THUMB:
                self.labels.append(Label(rated, float(event.thumb == pb.THUMB_UP), rater, at))
            elif event.kind == pb.VOTE_KIND_STARS:
                self.labels.append(Label(rated, (event.stars - 1) / 4, rater, at))
            elif event.kind == pb.VOTE_KIND_EDIT:
                better = len(self.answers)
                original = self.answers[rated]
                self.answers.append(
                    Answer(event_id, conversation, original.prompt_ids, tuple(encode(event.edit)), (), "", 0, False)
                )
                self.pairs.append(Pair(better, rated, 1.0, rater, edit=True))


def opening(messages: Sequence[pb.Message]) -> str:
    """Names a conversation by what it began with, so that the same question asked twice counts as one."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.role}\0{message.content.strip()}\0".encode())
        if message.role == pb.ROLE_USER:
            break
    return digest.hexdigest()


def held_out(conversation: str, share: float) -> bool:
    """Whether a conversation never trains. The same for ever, on every machine."""
    return int(hashlib.sha256(f"held out\0{conversation}".encode()).hexdigest()[:8], 16) < share * 2**32


def fold(conversation: str, folds: int) -> int:
    """The cross-validation fold of a conversation."""
    return int(hashlib.sha256(f"fold\0{conversation}".encode()).hexdigest()[:8], 16) % folds


def _answer(turn: pb.TurnRecord, response: pb.ResponseRecord, conversation: str) -> Answer:
    whole = response.finish_reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
    own = turn.sampling.temperature == 1 and turn.sampling.top_p == 1 and not turn.sampling.stop
    return Answer(
        key=response.response_id,
        conversation=conversation,
        prompt_ids=tuple(turn.prompt_token_ids),
        answer_ids=tuple(response.token_ids),
        behaviour_logp=tuple(response.logprobs),
        version=response.spans[0].version if response.spans else "",
        max_tokens=turn.sampling.max_tokens,
        trainable=whole and own and len(response.spans) == 1 and len(response.logprobs) == len(response.token_ids),
    )


def _ranked_pairs(ranks: Mapping[str, int], place: Callable[[str], int], rater: str) -> list[Pair]:
    ordered = [
        (first, second) if ranks[first] < ranks[second] else (second, first)
        for first, second in combinations(sorted(ranks), 2)
        if ranks[first] != ranks[second]
    ]
    return [Pair(place(better), place(worse), 1 / len(ordered), rater) for better, worse in ordered]
