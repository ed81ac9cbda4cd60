"""Each wire trips for what it is there for, and for nothing that happens on good days."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from learner.tripwires import SAMPLES, figures, look
from thumbwheel import config
from thumbwheel.freeze import Tripped
from thumbwheel_client.v1 import record_pb2 as pb

CROWD = 8
HOUR = 3_600_000


def thumbs(
    up: Sequence[bool], raters: int = 12, hours: float = 1.0, comments: Sequence[str] = ()
) -> list[tuple[str, pb.VoteEvent]]:
    """Votes in turn of so many raters, evenly spread over some hours, with comments on the first."""
    step = int(hours * HOUR / max(1, len(up) - 1))
    return [
        (
            f"{1_700_000_000_000 + i * step}-0",
            pb.VoteEvent(
                turn_id=f"t{i}", response_id=f"t{i}-0", rater=f"rater {i % raters}", kind=pb.VOTE_KIND_THUMB,
                thumb=pb.THUMB_UP if liked else pb.THUMB_DOWN, comment=comments[i] if i < len(comments) else "",
            ),
        )
        for i, liked in enumerate(up)
    ]  # fmt: skip


def cycle(
    up_rate: float, reward: float = 0.0, rate: float = 64.0, parent: str = "base", outcome: str = "released"
) -> pb.CycleRecord:
    """One of 64 votes."""
    metrics = {"batch_rated": 64.0, "batch_up_rate": up_rate, "votes_per_hour": rate, "ppo_reward_mean": reward}
    return pb.CycleRecord(batch=pb.BatchManifest(parent=parent), outcome=outcome, metrics=metrics)


def share(up_rate: float, of: int = 64) -> list[bool]:
    """That share is up, evenly spread."""
    return [(i * 37) % of < up_rate * of for i in range(of)]


def seen(
    events: Sequence[tuple[str, pb.VoteEvent]], past: Sequence[pb.CycleRecord] = (), parent: str = "live"
) -> list[Tripped]:
    return look(events, past, parent, config.Tripwires(), CROWD)


def test_figures_by_hand() -> None:
    events = thumbs([True, True, False, True, False], hours=2)
    stars = pb.VoteEvent(turn_id="t9", response_id="t9-0", rater="a", kind=pb.VOTE_KIND_STARS, stars=3)
    events.append((events[-1][0].replace("-0", "-1"), stars))
    assert figures(events) == pytest.approx({"batch_rated": 6, "batch_up_rate": 3.5 / 6, "votes_per_hour": 2.5})
    assert figures([]) == {}


def test_the_last_word_counts_and_what_is_taken_back_does_not() -> None:
    [(name, event)] = thumbs([True])
    changed, gone = pb.VoteEvent(), pb.VoteEvent()
    changed.CopyFrom(event)
    changed.thumb = pb.THUMB_DOWN
    gone.CopyFrom(event)
    gone.ClearField("value")
    gone.retracted = True
    assert figures([(name, event), (name, changed)])["batch_up_rate"] == 0
    assert "batch_up_rate" not in figures([(name, event), (name, gone)])


def test_what_an_operator_imported_trips_nothing_and_moves_no_figure() -> None:
    past = [cycle(0.5 + 0.02 * (i % 3), rate=40 + 10 * (i % 4)) for i in range(10)]
    cast_here = thumbs(share(0.5))
    brought = thumbs([True] * 500, raters=1, hours=0.001, comments=["the same"] * 500)
    assert {each.wire for each in seen(cast_here + brought, past)} >= {"few_raters", "sudden_change"}
    for _, event in brought:
        event.imported = True
    assert not seen(cast_here + brought, past)
    assert figures(cast_here + brought) == figures(cast_here)
    assert figures(brought) == {}


def test_a_quiet_day_trips_nothing() -> None:
    comments = ["too long", "Too long!", "wrong", "thanks", "no", "what?", "too long", "it rhymes"]
    past = [cycle(0.5 + 0.02 * (i % 3), rate=40 + 10 * (i % 4)) for i in range(10)]
    assert not seen(thumbs(share(0.5), comments=comments), past)


def test_a_taste_that_is_learnt_trips_nothing() -> None:
    # As the demo goes: each release promises more, and people do like it better.
    past = [cycle(0.56, 0.6, parent="v1"), cycle(0.4, 0.2, parent="v0"), cycle(0.15, -0.6)]
    assert not seen(thumbs(share(0.8)), past, parent="v2")
    settled = [cycle(0.15, outcome="rejected") for _ in range(8)]
    assert not seen(thumbs(share(0.8)), [cycle(0.15), *settled], parent="v1")


@pytest.mark.parametrize("now", [0.2, 0.05])
def test_reward_that_rises_while_votes_do_not(now: float) -> None:
    past = [cycle(0.2, 0.6), cycle(0.2, 0.0, outcome="rejected"), cycle(0.2, 0.1), cycle(0.2, -0.5)]
    [found] = seen(thumbs(share(now)), past)
    assert found.wire == "reward_without_votes"
    assert "promised +55% up-votes" in found.words
    assert len(found.samples) == SAMPLES
    assert not seen(thumbs(share(now)), past[:3])  # two releases are too few


def test_few_raters_in_a_crowd() -> None:
    events = thumbs(share(0.5))
    for _, event in events[:40]:
        event.rater = "rater 3"
    [found] = seen(events)
    assert found.wire == "few_raters"
    assert found.samples == tuple(f"t{i}-0" for i in events_of(events, "rater 3")[:SAMPLES])
    for _, event in events[40:]:
        event.rater = f"rater {int(event.turn_id[1:]) % 6}"
    assert not seen(events)  # no crowd


def events_of(events: Sequence[tuple[str, pb.VoteEvent]], rater: str) -> list[int]:
    """Numbers of the turns that somebody rated, newest first."""
    return [int(event.turn_id[1:]) for _, event in reversed(events) if event.rater == rater]


def test_many_say_the_same() -> None:
    comments = ["Buy  COLA!", "buy cola", "Buy Cola…", "ＢＵＹ cola", "buy, cola", "fine", "no", "why?", "", "ok"]
    [found] = seen(thumbs(share(0.5), comments=comments))
    assert (found.wire, found.words) == ("identical_texts", "5 of 9 comments and edits say the same")
    assert found.samples == ("t4-0", "t3-0", "t2-0", "t1-0", "t0-0")
    assert not seen(thumbs(share(0.5), raters=3, comments=comments))  # who are few may say the same
    assert not seen(thumbs(share(0.5), comments=[*comments[:4], "fine", "no"]))
    assert not seen(thumbs(share(0.5), comments=[*comments[:5], *(f"word {chr(97 + i)}" for i in range(20))]))


def test_identical_edits_count_as_well() -> None:
    events = thumbs(share(0.5))
    for name, event in events[:6]:
        edit = pb.VoteEvent(
            turn_id=event.turn_id,
            response_id=event.response_id,
            rater=event.rater,
            kind=pb.VOTE_KIND_EDIT,
            edit="Cola.",
        )
        events.append((name, edit))
    assert [found.wire for found in seen(events)] == ["identical_texts"]


@pytest.mark.parametrize(
    ("hours", "up_rate", "words"),
    [(1 / 1000, 0.5, "votes an hour, 64 are usual"), (1, 0.125, "12% up-votes"), (1, 0.9375, "94% up-votes")],
)
def test_sudden_changes(hours: float, up_rate: float, words: str) -> None:
    past = [cycle(0.5, parent="live") for _ in range(6)]
    [found] = seen(thumbs(share(up_rate), hours=hours), past)
    assert found.wire == "sudden_change"
    assert words in found.words
    assert not seen(thumbs(share(up_rate), hours=hours), past[:4])  # nothing is usual yet


def test_day_and_night_are_no_sudden_change() -> None:
    past = [cycle(0.5, rate=rate) for rate in (60, 70, 5, 60, 80, 65, 4, 55)]
    assert not seen(thumbs(share(0.5), hours=20), past)
    assert not seen(thumbs(share(0.5), hours=0.2), past)


def test_all_wires_are_told_at_once() -> None:
    events = thumbs(share(0.5), comments=["buy cola"] * 6)
    for _, event in events[10:]:
        event.rater = "loud"
    assert [found.wire for found in seen(events)] == ["few_raters", "identical_texts"]


def test_rankings_have_no_up_rate() -> None:
    items = [pb.RankedResponse(response_id=f"t1-{i}", rank=i + 1) for i in range(3)]
    event = pb.VoteEvent(turn_id="t1", rater="a", kind=pb.VOTE_KIND_RANKING, ranking=pb.Ranking(items=items))
    assert figures([("1-0", event)]) == {}
    assert not seen([("1-0", event)], [cycle(0.5) for _ in range(10)])
