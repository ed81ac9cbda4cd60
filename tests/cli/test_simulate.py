"""Simulated raters against a real server and store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cli.patience import Patience
from cli.raters import RATERS, Judgement, Raters
from cli.tastes import BUILT_IN
from thumbwheel.errors import SetupError
from thumbwheel_client.v1 import feedback_pb2, models_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel

PROMPTS = [f"question {number}" for number in range(10)]


def likes_even(prompt: str, answer: str) -> bool:
    assert answer.endswith(prompt.upper())
    return int(prompt.split()[1]) % 2 == 0


def raters(
    served: Served,
    noise: float = 0.0,
    seed: int = 1,
    taste: Callable[[str, str], bool] = likes_even,
    concurrency: int = 4,
    patience: float = 60,
) -> tuple[Raters, list[Judgement]]:
    seen: list[Judgement] = []
    crowd = Raters(served.services, taste, PROMPTS, noise, seed, concurrency, Patience(patience), on_rated=seen.append)
    return crowd, seen


async def votes(served: Served) -> list[feedback_pb2.Vote]:
    request = feedback_pb2.ListVotesRequest(all_raters=True, include_turns=True, page_size=500)
    return list((await served.services.feedback.ListVotes(request)).votes)


async def test_what_is_rated_is_what_the_taste_says(served: Served) -> None:
    crowd, seen = raters(served)
    await crowd.rate(15)
    await crowd.rate(5)

    # Every prompt comes up once before any comes again.
    assert sorted(judgement.prompt for judgement in seen) == sorted(PROMPTS * 2)
    stored = await votes(served)
    assert len(stored) == 20
    for vote in stored:
        assert (vote.event.thumb == pb.THUMB_UP) == likes_even(vote.messages[0].content, vote.responses[0].text)
    assert len({vote.event.rater for vote in stored}) == min(RATERS, 20)
    tally = crowd.tally.versions["base"]
    assert (tally.ratings, tally.liked, tally.rated_up, tally.up_rate) == (20, 10, 10, 0.5)


async def test_noise_flips_its_share_and_the_tally_knows_both(served: Served) -> None:
    crowd, seen = raters(served, noise=0.25)
    await crowd.rate(120)

    flipped = sum(judgement.liked != judgement.rated_up for judgement in seen)
    assert 15 <= flipped <= 45  # 30 expected, 3 standard deviations
    assert crowd.tally.versions["base"].liked == 60
    assert sum(vote.event.thumb == pb.THUMB_UP for vote in await votes(served)) == sum(j.rated_up for j in seen)


async def test_a_seed_repeats_prompts_and_flips(served: Served) -> None:
    runs = []
    for seed in (7, 7, 8):
        crowd, seen = raters(served, noise=0.5, seed=seed, concurrency=1)
        await crowd.rate(12)
        runs.append([(judgement.prompt, judgement.rated_up) for judgement in seen])
    assert runs[0] == runs[1] != runs[2]
    # The same seed again cast new votes: it does not look like a repeat of the first run.
    assert len(await votes(served)) == 36


async def test_every_version_has_its_own_rate(served: Served) -> None:
    crowd, _ = raters(served)
    await crowd.rate(10)
    await served.publish("v1")
    await served.services.models.Promote(models_pb2.PromoteRequest(name="v1"))
    await crowd.rate(30)
    assert {name: tally.ratings for name, tally in crowd.tally.versions.items()} == {"base": 10, "v1": 30}


async def test_a_taste_that_fails_ends_it_with_its_own_words(served: Served) -> None:
    def broken(prompt: str, answer: str) -> bool:
        raise SetupError("taste broken failed on an answer")

    crowd, _ = raters(served, taste=broken)
    with pytest.raises(SetupError, match="taste broken"):
        await crowd.rate(5)
    assert await votes(served) == []


async def test_a_server_that_stays_away_ends_it(served: Served) -> None:
    crowd, seen = raters(served, patience=0.5)
    await crowd.rate(1)
    served.engine.die()
    with pytest.raises(grpc.RpcError):
        await crowd.rate(5)
    assert len(seen) == 1


async def test_the_command(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    (tmp_path / "short_ones.py").write_text("def likes(prompt, answer): return len(answer) < 20\n", encoding="utf-8")
    arguments = ("--ratings", "30", "--noise", "0", "--concurrency", "5", "--server", served.addresses.grpc)
    done = await thumbwheel("simulate", "--taste", "short_ones:likes", *arguments)

    assert done.code == 0, done.err
    stored = await votes(served)
    assert len(stored) == 30
    up = sum(len(vote.responses[0].text) < 20 for vote in stored)
    assert sum(vote.event.thumb == pb.THUMB_UP for vote in stored) == up
    assert done.out.splitlines()[0] == "30 ratings for the taste short_ones:likes"
    assert done.out.splitlines()[2].split() == ["base", "30", f"{up / 30:.1%}", f"{up / 30:.1%}"]


async def test_an_unknown_taste(thumbwheel: Thumbwheel) -> None:
    done = await thumbwheel("simulate", "--taste", "nice")
    assert done.code == 1
    assert done.err == f"thumbwheel: no taste 'nice': take {', '.join(BUILT_IN)}, or write module:function\n"
