"""A cycle on a real store and a real, tiny policy; only the rollouts are made up (tests/test_loop.py has real ones)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from learner import app, cycle, gate, metrics
from learner.anchor import Anchor
from learner.competence import Competence
from learner.cycle import Wheel
from learner.features import FeatureCache
from learner.policy import Policy, Sample
from learner.ppo import Rollout, Trainer
from learner.publish import Publisher
from learner.reporter import Reporter
from learner.reward_lora import FILE, Gain, RewardLora
from learner.rollouts import Sampled
from learner.safety import Safety
from thumbwheel import artifacts
from thumbwheel.config import Config, load
from thumbwheel.erasure import Erasure
from thumbwheel.errors import AdapterRefused, LearnerFrozen, PersonErased
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.freeze import Brake
from thumbwheel.lease import Lease
from thumbwheel.records import now
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

SETTINGS = (
    "learner.reward_model.min_auc=0", "learner.gate.min_win_rate=0", "learner.gate.win_rate_margin=1",
    "learner.gate.min_length_ratio=0", "learner.gate.max_length_ratio=1000", "learner.gate.min_judge_votes=1",
    "learner.gate.max_kl=1000", "learner.ppo.kl_budget=1000", "learner.ppo.fresh_iterations=1",
    "learner.ppo.rollouts=8", "learner.ppo.epochs=1", "learner.ppo.minibatches=2",
)  # fmt: skip


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def files(folder: Path) -> set[str]:
    """Names of those below it."""
    return {entry.name for entry in folder.rglob("*")}


class MadeUp:
    """Answers of random tokens. `meddle` is called before each batch of them."""

    def __init__(self) -> None:
        self.meddle: Callable[[], Awaitable[None]] | None = None
        self.logp = -10.0
        self.says: tuple[int, ...] = ()
        """The same to everybody; empty: random tokens."""
        self.asked: list[str] = []

    async def sample(
        self, version: str, prompts: Sequence[Sequence[int]], *, max_tokens: int, seed: int, n: int = 1, **_: float
    ) -> list[Sampled]:
        self.asked.append(version)
        if self.meddle is not None:
            await self.meddle()
        dice = np.random.default_rng(seed)
        drawn = [
            (place, tuple(dice.integers(10, 40_000, 6).tolist())) for place in range(len(prompts)) for _ in range(n)
        ]
        answers = [(place, self.says or tokens) for place, tokens in drawn]
        return [Sampled(place, tokens, (self.logp,) * len(tokens), "words", False) for place, tokens in answers]


class Bench:
    """A wheel and the means to feed it."""

    def __init__(self, wheel: Wheel, rollouts: MadeUp, store: Store, reporter: Reporter) -> None:
        self.wheel = wheel
        self.reporter = reporter
        self.store = store
        self.rollouts = rollouts

    async def votes(
        self,
        count: int,
        first: int = 0,
        prompts: int = 1000,
        raters: int = 0,
        comment: str = "",
        imported: bool = False,
    ) -> None:
        for number in range(first, first + count):
            rater = f"rater {number % raters}" if raters else "owner"
            dice = np.random.default_rng(number)
            turn = pb.TurnRecord(
                turn_id=f"t{number}",
                owner=rater,
                created_at=now(),
                messages=[pb.Message(role=pb.ROLE_USER, content=f"Question {number % prompts}?")],
                prompt_token_ids=[1, 100 + number % prompts, 7],
                sampling=pb.Sampling(max_tokens=8, temperature=1.0, top_p=1.0),
            )
            answer = pb.ResponseRecord(
                response_id=f"t{number}-0",
                text="words",
                token_ids=dice.integers(10, 40_000, 6).tolist(),
                logprobs=[-10.0] * 6,
                finish_reason=pb.FINISH_REASON_LENGTH,
                spans=[pb.VersionSpan(version="base")],
                finished_at=now(),
            )
            if imported:
                del answer.logprobs[:]
                del answer.spans[:]
            await self.wheel.turns.append(turn, answer)
            event = pb.VoteEvent(
                turn_id=turn.turn_id, response_id=answer.response_id, rater=rater, kind=pb.VOTE_KIND_THUMB,
                thumb=pb.THUMB_UP if number % 2 else pb.THUMB_DOWN, comment=comment, created_at=now(),
                imported=imported,
            )  # fmt: skip
            await self.wheel.feedback.append(event, f"key {number}")


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return Policy(tiny_model, Config().learner.lora, 1)


@pytest.fixture
async def make(
    redis_url: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, policy: Policy
) -> AsyncIterator[Callable[..., Awaitable[Bench]]]:
    stores = []
    pages = tmp_path_factory.mktemp("pages") / "reports"

    def split(tokens: Sequence[int]) -> list[tuple[str, int]]:
        return [(f"word{token % 9}", 1) for token in tokens]

    async def make(*settings: str) -> Bench:
        config = load(Path("/dev/null"), [*SETTINGS, *settings], {})
        store = await Store.open(redis_url, "test")
        stores.append(store)
        registry, rollouts = Registry(store), MadeUp()
        lease = Lease(store, "test", 60)
        assert await lease.acquire()
        turns = TurnLog(store, config.turn_log)
        reporter = Reporter(pages, config.learner.reports.keep, registry, turns, policy, split)
        wheel = Wheel(
            settings=config.learner,
            stream=VoteStream(store),
            turns=turns,
            feedback=FeedbackLog(store, config.feedback),
            registry=registry,
            erasure=Erasure(store),
            brake=Brake(store),
            lease=lease,
            policy=policy,
            features=FeatureCache(),
            rollouts=rollouts,  # type: ignore[arg-type]
            publisher=Publisher(registry, tmp_path, "digest"),
            competence=Competence(rollouts, lambda text: [5, 6, 7]),  # type: ignore[arg-type]
            safety=Safety(rollouts, lambda text: [5, 6, 7]),  # type: ignore[arg-type]
            anchor=Anchor(MadeUp(), lambda text: [5, 6, 7]),  # type: ignore[arg-type]
            encode=lambda text: [9, 8, 7],
            reporter=reporter,
        )
        return Bench(wheel, rollouts, store, reporter)

    yield make
    for store in stores:
        await store.close()


async def test_a_cycle_releases_and_spends_its_votes(make: Callable[..., Awaitable[Bench]], tmp_path: Path) -> None:
    bench = await make()
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "released", record.reasons
    live = await bench.wheel.registry.live()
    assert live.name == record.version
    assert live.metrics["votes"] == 60
    manifest = artifacts.verify_version(tmp_path, live)
    assert manifest["facts"]["base_digest"] == "digest"
    assert manifest["facts"]["batch_digest"] == record.batch.digest
    assert await bench.wheel.stream.waiting() == 0
    # Folders of the steps on the way are gone; the version's stays.
    assert names(tmp_path) == [live.path]
    assert not bench.wheel.policy._memo, "a long life with many cycles takes no more memory than one of them"
    page = bench.reporter.folder / "cycle-1.html"
    told = page.read_text(encoding="utf-8")
    for said in ("cycle-1: released", record.version, *record.reasons, "Question ", "word1", "KL to the base"):
        assert said in told
    assert (stat.S_IMODE(page.stat().st_mode), stat.S_IMODE(page.parent.stat().st_mode)) == (0o600, 0o700)


async def test_votes_from_elsewhere_are_enough_to_learn_from(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They teach what is liked; the policy practises on their questions and never trains on their answers."""
    seen: list[Sample] = []
    look_back = Trainer.look_back

    def spy(self: Trainer, samples: Sequence[Sample], *rest: Any) -> Rollout:
        seen.extend(sample for sample in samples if sample.reward)  # the gate's have none
        return look_back(self, samples, *rest)

    monkeypatch.setattr(Trainer, "look_back", spy)
    bench = await make()
    await bench.votes(60, imported=True)
    record = await bench.wheel.turn()
    assert record.outcome == "released", record.reasons
    assert {sample.version[:5] for sample in seen} == {"v1.0-"}
    assert {sample.prompt_ids[0] for sample in seen} == {1}
    assert await bench.wheel.stream.waiting() == 0


async def test_lora_learns_beside_the_head_and_is_handed_on(
    make: Callable[..., Awaitable[Bench]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path | None] = []
    learn = RewardLora.learn

    def spy(self: RewardLora, data: Any, logits: Any, parent: Path | None, *rest: Any) -> Gain:
        begun.append(parent)
        found = learn(self, data, logits, parent, *rest)
        self.gain = Gain(1.0, 0.5)  # what people like here is chance
        return found

    monkeypatch.setattr(RewardLora, "learn", spy)
    bench = await make("learner.reward_model.lora_votes=40")
    await bench.votes(60)
    first = await bench.wheel.turn()
    assert first.outcome == "released", first.reasons
    assert {"reward_lora_gain", "reward_lora_gain_error", "reward_lora_pays"} < first.metrics.keys()
    folder = tmp_path / (await bench.wheel.registry.live()).path
    assert (folder / FILE).is_file()
    await bench.votes(60, first=60)
    await bench.wheel.turn()
    assert begun == [None, folder]


async def test_the_policy_is_paid_for_what_lora_knows(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards: list[list[float]] = []
    look_back = Trainer.look_back

    def spy(self: Trainer, samples: Sequence[Sample], *rest: Any) -> Rollout:
        rewards.append([sample.reward for sample in samples if sample.reward])
        return look_back(self, samples, *rest)

    monkeypatch.setattr(Trainer, "look_back", spy)
    monkeypatch.setattr(RewardLora, "lift", lambda self, pairs: np.full(len(pairs), 20.0))
    bench = await make()
    await bench.votes(60)
    await bench.wheel.turn()
    rated, fresh = rewards[:2]
    assert min(rated) > -0.01, "half of it is a person's own vote"
    assert min(fresh) > 0.99


@pytest.mark.parametrize("least", [0, 1000])
async def test_below_its_votes_lora_is_not_tried(
    make: Callable[..., Awaitable[Bench]], tmp_path: Path, least: int
) -> None:
    bench = await make(f"learner.reward_model.lora_votes={least}")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "released", record.reasons
    assert "reward_lora_gain" not in record.metrics
    assert FILE.name not in files(tmp_path)


async def test_too_few_votes_end_the_cycle_and_say_so(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make("learner.reward_model.min_votes=30")
    await bench.votes(12)
    record = await bench.wheel.turn()
    assert record.outcome == "too_few_votes"
    assert "30 are needed" in record.reasons[0]
    assert (await bench.wheel.registry.live()).name == "base"
    assert await bench.wheel.stream.waiting() == 0


async def test_a_reward_model_below_the_floor_ends_the_cycle_and_says_so(
    make: Callable[..., Awaitable[Bench]],
) -> None:
    bench = await make("learner.reward_model.min_auc=0.99")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "reward_model_below_floor"
    assert "AUC" in record.reasons[0]
    assert not bench.rollouts.asked


async def test_the_gate_can_refuse_and_the_live_version_stays(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make("learner.gate.min_win_rate=1")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "rejected"
    assert "win rate" in record.reasons[0]
    assert (await bench.wheel.registry.live()).name == "base"
    refused = await bench.wheel.registry.get(record.version)
    assert refused.state == pb.VERSION_STATE_REJECTED
    assert list(refused.reasons) == list(record.reasons)


async def test_what_all_candidates_are_held_against_is_asked_once(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make("learner.gate.min_win_rate=1", "learner.ppo.fresh_iterations=2")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "rejected"
    asked = bench.rollouts.asked
    # Twice to train after it (no more of the last), then held-out prompts, plain and harmful questions of each.
    assert sorted(asked.count(name) for name in set(asked) - {"base"}) == [3, 4, 4]
    assert asked.count("base") == 3  # it is the version that is live, too


async def test_the_policy_trains_on_samples_with_an_outlook(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sample] = []
    look_back = Trainer.look_back

    def spy(self: Trainer, samples: Sequence[Sample], *rest: Any) -> Rollout:
        seen.extend(sample for sample in samples if sample.reward)
        return look_back(self, samples, *rest)

    monkeypatch.setattr(Trainer, "look_back", spy)
    bench = await make()
    await bench.votes(60)
    await bench.wheel.turn()
    assert {sample.version[:2] for sample in seen} == {"ba", "v1"}  # rated, and fresh
    assert all(len(sample.outlook) == len(sample.answer_ids) for sample in seen)
    assert all(-1 < value < 1 for sample in seen for value in sample.outlook)
    assert len({sample.outlook[0] for sample in seen}) == 1  # before the first word all look alike
    assert len({sample.outlook[-1] for sample in seen}) > len(seen) / 2


async def test_the_reward_that_is_told_is_of_all_answers_not_of_those_learned_from(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await make("learner.ppo.learned_rollouts=2")
    scored: list[float] = []

    def contrast(samples: Sequence[Sample], keep: int) -> list[Sample]:
        scored[:] = [sample.reward for sample in samples]
        return original(samples, keep)

    original = cycle.contrast
    monkeypatch.setattr(cycle, "contrast", contrast)
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert len(scored) == 8
    assert record.metrics["ppo_samples"] == 2
    assert record.metrics["ppo_reward_mean"] == pytest.approx(float(np.mean(scored)), abs=1e-6)


async def test_grpo_samples_groups_and_learns_from_whole_ones(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make(
        "learner.algorithm=grpo", "learner.ppo.group=4", "learner.ppo.rollouts=12", "learner.ppo.learned_rollouts=8"
    )
    await bench.votes(60)  # one answer to each prompt: the iteration on traffic is left out
    record = await bench.wheel.turn()
    assert record.outcome == "released", record.reasons
    assert record.metrics["ppo_samples"] == 8
    assert record.metrics["ppo_updates"] == 2  # of the one fresh iteration
    assert record.metrics["ppo_value_loss"] == 0
    assert {name[:5] for name in bench.rollouts.asked} == {"base", "v1.0-", "v1.1-"}


async def test_grpo_learns_from_traffic_where_a_prompt_has_several_rated_answers(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[tuple[int, ...]]] = []
    look_back = Trainer.look_back

    def spy(self: Trainer, samples: Sequence[Sample], *rest: Any) -> Rollout:
        prompts.append([sample.prompt_ids for sample in samples])
        return look_back(self, samples, *rest)

    monkeypatch.setattr(Trainer, "look_back", spy)
    bench = await make("learner.algorithm=grpo", "learner.ppo.group=4")
    await bench.votes(60, prompts=11)
    record = await bench.wheel.turn()
    assert record.metrics["ppo_updates"] == 4  # traffic, and the fresh iteration
    traffic = prompts[0]
    assert len(traffic) >= cycle.LEAST_SAMPLES
    assert all(traffic.count(prompt) > 1 for prompt in traffic)


async def test_kto_learns_from_votes_one_by_one(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make("learner.algorithm=kto", "learner.direct.epochs=2")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "released", record.reasons
    assert 40 < record.metrics["direct_examples"] < 60  # those that are not held out
    assert record.metrics["direct_grad_norm"] > 0
    assert record.version.startswith("v1.1-"), "of two epochs the second"
    assert not any("ppo" in name for name in record.metrics)
    told = (bench.reporter.folder / "cycle-1.html").read_text(encoding="utf-8")
    assert "Entropy of a token" in told


async def test_dpo_learns_from_opposite_votes_on_a_prompt(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make("learner.algorithm=dpo")
    await bench.votes(60, prompts=11)
    record = await bench.wheel.turn()
    assert record.outcome == "released", record.reasons
    assert record.metrics["direct_examples"] >= cycle.LEAST_SAMPLES
    assert record.metrics["direct_margin"] > 0


async def test_an_epoch_that_went_too_far_leaves_the_ones_before(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = iter([gate.Verdict(False, ("too far",), {}), gate.Verdict(True, (), {})])
    monkeypatch.setattr(cycle, "judge", lambda *_: next(verdicts))
    bench = await make("learner.algorithm=kto", "learner.direct.epochs=3")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "released"
    assert record.version.startswith("v1.1-"), "of three epochs the second"


async def test_votes_that_make_no_pairs_are_too_few_for_dpo(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make("learner.algorithm=dpo")
    await bench.votes(60)  # one answer to each prompt
    record = await bench.wheel.turn()
    assert record.outcome == "too_few_votes"
    assert record.reasons[0].startswith("0 pairs of a better and a worse answer")
    assert await bench.wheel.stream.waiting() == 0


async def test_a_step_beyond_the_kl_budget_is_taken_back(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "LEAST_SAMPLES", 1000)  # so that the first step is the base itself, at 0 nats
    bench = await make("learner.ppo.kl_budget=1e-9", "learner.ppo.fresh_iterations=3")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.version.startswith("v1.0-")
    trained = dict.fromkeys(name for name in bench.rollouts.asked if name.startswith("v"))
    assert [name[:5] for name in trained] == ["v1.0-", "v1.1-"], "the third step was never made"


async def test_numbers_that_are_not_finite_end_the_cycle_not_the_process(
    make: Callable[..., Awaitable[Bench]],
) -> None:
    bench = await make()
    bench.rollouts.logp = float("nan")
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "diverged"
    assert "not finite" in record.reasons[0]


async def test_a_collapsed_policy_ends_the_cycle_not_the_process(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make()
    bench.rollouts.says = (11, 12, 13)
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert record.outcome == "diverged"
    assert "8 of 8 answers are one and the same" in record.reasons[0]
    assert (await bench.wheel.registry.live()).name == "base"
    assert await bench.wheel.stream.waiting() == 0


async def test_a_killed_cycle_is_repeated_with_the_same_votes_and_makes_the_same_version(
    make: Callable[..., Awaitable[Bench]], tmp_path: Path
) -> None:
    bench = await make()
    await bench.votes(60)
    staged: list[str] = []

    async def die() -> None:
        staged.extend(names(tmp_path))
        raise KeyError("killed")

    bench.rollouts.meddle = die
    with pytest.raises(KeyError):
        await bench.wheel.turn()
    await bench.votes(5, first=60)  # these wait for the next cycle

    await bench.wheel.lease.release()  # a killed learner's lapses

    again = await make()
    record = await again.wheel.turn()
    assert len(record.batch.event_ids) == 60
    assert record.batch.cycle_id == "cycle-1"
    assert again.rollouts.asked[0].split("-")[1] in staged[0]  # the name ends in the digest of the weights
    assert await again.wheel.stream.waiting() == 5


async def test_a_repeated_cycle_takes_up_the_answers_that_were_sampled_for_it(
    make: Callable[..., Awaitable[Bench]], tmp_path: Path
) -> None:
    """An engine rounds as its company lets it, and would not say the same again."""
    bench = await make("learner.ppo.fresh_iterations=2")
    await bench.votes(60)

    async def die_later() -> None:
        if len(bench.rollouts.asked) == 2:
            raise KeyError("killed")

    bench.rollouts.meddle = die_later
    with pytest.raises(KeyError):
        await bench.wheel.turn()
    await bench.wheel.lease.release()  # a killed learner's lapses

    again = await make("learner.ppo.fresh_iterations=2")
    again.rollouts.logp = -10.5
    record = await again.wheel.turn()
    asked = again.rollouts.asked[0]  # nothing of the first step's weights, and the second step has the same as before
    assert asked.startswith("v1.1-")
    assert asked == bench.rollouts.asked[1]
    assert names(tmp_path) == [(await again.wheel.registry.get(record.version)).path], "nothing is kept"


async def test_what_a_killed_learner_remembered_changes_no_bit(
    make: Callable[..., Awaitable[Bench]], tiny_model: Path
) -> None:
    """One cycle has filled its caches when it dies in the next; who repeats that begins with empty ones."""
    warm = await make()
    await warm.votes(60)
    await warm.wheel.turn()
    await warm.votes(60, first=60)

    async def die() -> None:
        raise KeyError("killed")

    warm.rollouts.meddle = die
    with pytest.raises(KeyError):
        await warm.wheel.turn()
    await warm.wheel.lease.release()  # a killed learner's lapses

    cold = await make()
    cold.wheel.policy = Policy(tiny_model, Config().learner.lora, 1)
    record = await cold.wheel.turn()
    assert record.metrics["ppo_samples"] == 8
    assert cold.rollouts.asked[0] == warm.rollouts.asked[-1]  # the name ends in the digest of the weights
    assert cold.rollouts.asked[0].startswith("v2.0-")


async def test_who_is_erased_during_a_cycle_is_not_learned_from(
    make: Callable[..., Awaitable[Bench]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await make()
    await bench.votes(60)
    sample = bench.rollouts.sample

    async def erase_first(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(bench.rollouts, "sample", sample)
        await bench.wheel.erasure.erase("owner")
        return await sample(*args, **more)

    monkeypatch.setattr(bench.rollouts, "sample", erase_first)
    with pytest.raises(PersonErased):
        await bench.wheel.turn()
    assert (await bench.wheel.registry.live()).name == "base"
    record = await bench.wheel.turn()
    assert (record.batch.cycle_id, record.outcome) == ("cycle-1", "too_few_votes")


async def test_who_is_erased_leaves_the_pages(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make()
    await bench.votes(60)
    await bench.wheel.turn()
    files = [bench.reporter.folder / f"cycle-1.{kind}" for kind in ("html", "json")]
    assert all("Question " in file.read_text(encoding="utf-8") for file in files)
    following = asyncio.create_task(bench.reporter.follow(bench.wheel.erasure, 0.01))
    await bench.wheel.erasure.erase("owner")
    async with asyncio.timeout(10):
        while any("Question " in file.read_text(encoding="utf-8") for file in files):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    following.cancel()
    left = files[0].read_text(encoding="utf-8")
    assert "word1" not in left
    assert "cycle-1: released" in left


@pytest.mark.parametrize("keep", [0, 1, 2])
async def test_the_latest_pages_are_kept(make: Callable[..., Awaitable[Bench]], keep: int) -> None:
    bench = await make("learner.reward_model.min_votes=1000", f"learner.reports.keep={keep}")
    for number in range(3):
        await bench.votes(4, first=4 * number)
        assert (await bench.wheel.turn()).outcome == "too_few_votes"
    pages = sorted(file.name for file in bench.reporter.folder.glob("*.html"))
    assert pages == [*(f"cycle-{number}.html" for number in range(1, 4)), "index.html"][3 - keep :] * bool(keep)


async def test_a_page_that_cannot_be_written_fails_no_cycle(
    make: Callable[..., Awaitable[Bench]], caplog: pytest.LogCaptureFixture
) -> None:
    bench = await make()
    bench.reporter.folder.write_text("a file where the folder should be", encoding="utf-8")
    await bench.votes(60)
    before = metrics.report_failures._value.get()
    assert (await bench.wheel.turn()).outcome == "released"
    assert metrics.report_failures._value.get() == before + 1
    assert "report_failed" in caplog.messages
    assert "Question " not in caplog.text


async def test_a_released_version_is_listed_to_whom_it_learned_from(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make()
    await bench.votes(60)
    record = await bench.wheel.turn()
    assert (await bench.wheel.erasure.erase("owner")).versions == (record.version,)


async def test_votes_that_trip_a_wire_wait_until_a_person_lets_them_pass(
    make: Callable[..., Awaitable[Bench]], caplog: pytest.LogCaptureFixture
) -> None:
    bench = await make("learner.reward_model.min_votes=1", "learner.poll=0.01")
    await bench.votes(60, raters=12, comment="buy cola")
    with pytest.raises(LearnerFrozen, match="identical_texts"):
        await bench.wheel.turn()
    [said] = [record for record in caplog.records if record.msg == "frozen"]
    assert (said.levelname, said.__dict__["wire"]) == ("ERROR", "identical_texts")
    assert "cola" not in str(said.__dict__)

    # The leader stands, and says so; votes wait.
    leading = asyncio.create_task(app._lead(bench.wheel))
    await come_true(lambda: shown("stage", stage="frozen") == shown("frozen", wire="identical_texts") == 1)
    await bench.votes(5, first=60)
    await come_true(lambda: shown("votes_waiting") == 65)
    assert not leading.done()
    assert await bench.wheel.registry.committed() == 0
    assert not bench.rollouts.asked

    # Released, it takes the same batch, and it trips no more.
    frozen = await bench.wheel.brake.frozen()
    assert frozen is not None
    assert len(frozen.tripped[0].samples) == 5
    await bench.wheel.brake.release(frozen)
    await come_true(lambda: shown("votes_waiting") == 5)
    leading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leading
    [record] = await bench.wheel.registry.lineage(5)
    assert (record.batch.cycle_id, len(record.batch.event_ids)) == ("cycle-1", 60)
    assert record.metrics["batch_up_rate"] == 0.5
    assert shown("frozen", wire="identical_texts") == 0


async def come_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - a gauge sends no event
            await asyncio.sleep(0.01)


def shown(name: str, **labels: str) -> float | None:
    """A figure of the learner's page."""
    return REGISTRY.get_sample_value(f"thumbwheel_learner_{name}", labels)


async def test_what_operators_chose_meanwhile_stands(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make()
    await bench.votes(60)
    registry = bench.wheel.registry
    await registry.register(pb.VersionRecord(name="theirs", state=pb.VERSION_STATE_CANDIDATE, path="x"))

    async def promote() -> None:
        await registry.promote("theirs", "by hand")

    bench.rollouts.meddle = promote
    record = await bench.wheel.turn()
    assert record.outcome == "superseded"
    assert (await registry.live()).name == "theirs"
    assert (await registry.get(record.version)).state == pb.VERSION_STATE_REJECTED


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: shutil.rmtree(folder),
        lambda folder: (folder / "adapter_config.json").unlink(),
        lambda folder: tear(folder / "adapter_model.safetensors"),
    ],
)
async def test_a_torn_parent_is_taken_back_and_the_votes_train_the_version_before_it(
    make: Callable[..., Awaitable[Bench]], tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    bench = await make()
    await bench.votes(60)
    torn = await bench.wheel.registry.get((await bench.wheel.turn()).version)
    spoil(tmp_path / torn.path)
    await bench.votes(60, first=60)
    with pytest.raises(AdapterRefused):
        await bench.wheel.turn()
    assert (await bench.wheel.registry.get(torn.name)).state == pb.VERSION_STATE_ROLLED_BACK
    record = await bench.wheel.turn()
    assert (record.batch.cycle_id, record.batch.parent, record.outcome) == ("cycle-2", "base", "released")
    assert len(record.batch.event_ids) == 60


def tear(file: Path) -> None:
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size // 2)


async def test_cycles_go_on_after_one_whose_record_is_corrupt(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make()
    await bench.votes(60)
    await bench.wheel.turn()
    store = bench.store
    await store.call("LSET", store.keys.lineage, 0, b"rotten")
    await bench.votes(60, first=60)
    assert (await bench.wheel.turn()).batch.cycle_id == "cycle-2"


async def test_votes_on_stale_answers_fit_the_reward_model_but_do_not_train_the_policy(
    make: Callable[..., Awaitable[Bench]],
) -> None:
    bench = await make("learner.ppo.max_staleness=0")
    await bench.votes(60)
    first = await bench.wheel.turn()
    assert first.outcome == "released"
    await bench.votes(60, first=100)  # still answers of the base, which is two releases old by the next cycle
    second = await bench.wheel.turn()
    assert second.metrics["ppo_samples"] == 8  # only the fresh rollouts


async def test_a_heartbeat_goes_on_while_torch_works(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make()
    await bench.votes(60)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1

    task = asyncio.create_task(beat())
    await bench.wheel.turn()
    task.cancel()
    assert beats > 100
