"""Signs that votes are not what they seem. Pure: a batch's votes and the cycles before it in, tripped wires out.

    reward_without_votes  the reward has risen over the last releases, and people like the answers no better
    few_raters            in a crowd, most votes come from few
    identical_texts       in a crowd, many say the same word for word
    sudden_change         votes come much faster or slower, or approve much more or less, than they used to

A wire that trips says nothing of guilt: a newspaper's mention looks like an attack. A person has to look.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from thumbwheel import config
from thumbwheel.freeze import Tripped
from thumbwheel.vote_stream import StreamId
from thumbwheel_client.v1 import record_pb2 as pb

WIRES = ("reward_without_votes", "few_raters", "identical_texts", "sudden_change")
LOOK_BACK = 10
"""Cycles that a batch is held against."""
SETTLED = 5
"""Fewer former cycles than this say nothing of what is usual."""
SAMPLES = 5
RATE_FLOOR = 1.0
"""Least deviation of the votes per hour, as a natural logarithm: day and night differ by as much."""
UP_RATE_FLOOR = 0.05

Events = Sequence[tuple[str, pb.VoteEvent]]
"""Event id and vote, in the order in which they were cast."""


def figures(events: Events) -> dict[str, float]:
    """What the batches after this one are held against; it is kept with the cycle's metrics."""
    events = _cast_here(events)
    found: dict[str, float] = {}
    liked = [value for value in map(_value, _standing(events)) if value is not None]
    if liked:
        found |= {"batch_rated": float(len(liked)), "batch_up_rate": float(np.mean(liked))}
    times = [StreamId.parse(event_id).millis for event_id, _ in events]
    if times and times[-1] > times[0]:
        found["votes_per_hour"] = (len(times) - 1) * 3_600_000 / (times[-1] - times[0])
    return found


def look(
    events: Events, past: Sequence[pb.CycleRecord], parent: str, settings: config.Tripwires, crowd: int
) -> list[Tripped]:
    """The wires that these votes trip.

    Args:
        events: the batch.
        past: committed cycles, newest first, with the `figures` of their batches among their metrics.
        parent: the version that is live.
        crowd: fewer raters than this may well be few, and use the same words.
    """
    standing, now = _standing(_cast_here(events)), figures(events)
    found = [_reward_without_votes(standing, now, past, settings)]
    found += [_sudden_change(standing, now, past, parent, settings)]
    if len({event.rater for event in standing}) >= crowd:
        found += [_few_raters(standing, settings), _identical_texts(standing, settings)]
    return sorted((each for each in found if each), key=lambda each: WIRES.index(each.wire))


def _reward_without_votes(
    standing: Sequence[pb.VoteEvent],
    now: Mapping[str, float],
    past: Sequence[pb.CycleRecord],
    settings: config.Tripwires,
) -> Tripped | None:
    needed = ("ppo_reward_mean", "batch_up_rate", "batch_rated")
    released = [c.metrics for c in past if c.outcome == "released" and all(name in c.metrics for name in needed)]
    if len(released) < settings.reward_cycles or "batch_up_rate" not in now:
        return None
    last, first = released[0], released[settings.reward_cycles - 1]
    # A reward is 1 for an answer that everybody likes and -1 for one that nobody does: twice an up-rate.
    promised = (last["ppo_reward_mean"] - first["ppo_reward_mean"]) / 2
    rise = now["batch_up_rate"] - first["batch_up_rate"]
    error = math.hypot(*(_error(each["batch_up_rate"], each["batch_rated"]) for each in (now, first)))
    if promised <= error or rise > error or rise + 2 * error >= promised:
        return None
    words = f"over {settings.reward_cycles} releases the reward promised {promised:+.0%} up-votes, it was {rise:+.0%}"
    disliked = (event for event in standing if (value := _value(event)) is not None and value < 0.5)
    return Tripped("reward_without_votes", words, _samples(disliked))


def _few_raters(standing: Sequence[pb.VoteEvent], settings: config.Tripwires) -> Tripped | None:
    votes, total = Counter(event.rater for event in standing), len(standing)
    same = sum(count * (count - 1) for count in votes.values()) / (total * (total - 1))
    if same <= settings.same_rater:
        return None
    [(loudest, count)] = votes.most_common(1)
    words = (
        f"of {len(votes)} raters one cast {count} of {total} votes; the chance that two votes are by the same rater "
    )
    words += f"is {same:.0%}, {settings.same_rater:.0%} allowed"
    return Tripped("few_raters", words, _samples(event for event in standing if event.rater == loudest))


def _identical_texts(standing: Sequence[pb.VoteEvent], settings: config.Tripwires) -> Tripped | None:
    said = [(text, event) for event in standing for text in map(_plain, (event.comment, event.edit)) if text]
    if not said:
        return None
    [(commonest, count)] = Counter(text for text, _ in said).most_common(1)
    if count < settings.identical_texts or count < settings.identical_share * len(said):
        return None
    words = f"{count} of {len(said)} comments and edits say the same"
    return Tripped("identical_texts", words, _samples(event for text, event in said if text == commonest))


def _sudden_change(
    standing: Sequence[pb.VoteEvent],
    now: Mapping[str, float],
    past: Sequence[pb.CycleRecord],
    parent: str,
    settings: config.Tripwires,
) -> Tripped | None:
    changes: list[str] = []
    if "votes_per_hour" in now:
        usual = [math.log(rate) for rate in _former(past, "votes_per_hour")]
        if abs(_surprise(math.log(now["votes_per_hour"]), usual, RATE_FLOOR)) > settings.sudden_change:
            changes.append(f"{now['votes_per_hour']:.0f} votes an hour, {math.exp(np.median(usual)):.0f} are usual")
    if "batch_up_rate" in now:
        up, error = now["batch_up_rate"], _error(now["batch_up_rate"], now["batch_rated"])
        usual, floor = _former(past, "batch_up_rate"), max(UP_RATE_FLOOR, error)
        # That a new version is liked better than those before it is what all this is for.
        same = _former([cycle for cycle in past if cycle.batch.parent == parent], "batch_up_rate")
        fallen, risen = -_surprise(up, usual, floor), _surprise(up, same, floor)
        if max(fallen, risen) > settings.sudden_change:
            changes.append(f"{up:.0%} up-votes, {np.median(usual):.0%} are usual")
    return Tripped("sudden_change", "; ".join(changes), _samples(standing)) if changes else None


def _former(past: Sequence[pb.CycleRecord], name: str) -> list[float]:
    return [cycle.metrics[name] for cycle in past if name in cycle.metrics]


def _surprise(value: float, former: Sequence[float], floor: float) -> float:
    """In robust standard deviations (1.4826 times the median absolute deviation); 0 while nothing is usual yet."""
    if len(former) < SETTLED:
        return 0.0
    middle = float(np.median(former))
    return (value - middle) / max(1.4826 * float(np.median(np.abs(np.array(former) - middle))), floor)


def _error(rate: float, votes: float) -> float:
    """Standard error of a share; never 0, by one vote more of either kind."""
    smoothed = (rate * votes + 1) / (votes + 2)
    return math.sqrt(smoothed * (1 - smoothed) / (votes + 2))


def _cast_here(events: Events) -> Events:
    """Without what an operator imported: of that a person knows already, and thousands in a second are no attack."""
    return [entry for entry in events if not entry[1].imported]


def _standing(events: Events) -> list[pb.VoteEvent]:
    """What each rater has said last of each answer, as far as it was not taken back."""
    latest: dict[tuple[str, str, str, int], pb.VoteEvent] = {}
    for _, event in events:
        place = (event.rater, event.turn_id, event.response_id, int(event.kind))
        latest.pop(place, None)  # so that the order is that of the last word
        latest[place] = event
    return [event for event in latest.values() if not event.retracted]


def _value(event: pb.VoteEvent) -> float | None:
    """0 to 1; None for a vote that compares."""
    match event.kind:
        case pb.VOTE_KIND_THUMB:
            return float(event.thumb == pb.THUMB_UP)
        case pb.VOTE_KIND_STARS:
            return (event.stars - 1) / 4
    return None


def _plain(text: str) -> str:
    """Letters and digits only, for what differs in nothing else says the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(sign if sign.isalnum() else " " for sign in folded).split())


def _samples(events: Iterable[pb.VoteEvent]) -> tuple[str, ...]:
    """Ids of the latest answers of these votes."""
    names = [
        name for event in events for name in [event.response_id, *(i.response_id for i in event.ranking.items)] if name
    ]
    return tuple(list(dict.fromkeys(reversed(names)))[:SAMPLES])
