"""Whole iterations on a tiny random Llama."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from learner.policy import Batch, Policy, Sample
from learner.ppo import Trainer, collapse, contrast, contrast_groups, groups, in_order
from thumbwheel import config
from thumbwheel.errors import TrainingDiverged

LORA = config.Lora(rank=4, alpha=8, layers=0.5)
SETTINGS = config.Ppo(learning_rate=1e-3, warmup_updates=2, epochs=2, minibatches=2)
WANTED = 11


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return Policy(tiny_model, LORA, seed=1)


def sampled(policy: Policy, count: int, seed: int = 0) -> list[Sample]:
    """Answers of several lengths with the log-probabilities under the policy as it is; scored by share of WANTED."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        prompt = tuple(torch.randint(3, 40, (2 + index % 4,), generator=generator).tolist())
        answer = tuple(torch.randint(8, 14, (1 + (3 * index) % 7,), generator=generator).tolist())
        reward = answer.count(WANTED) / len(answer)
        samples.append(Sample(prompt, answer, (0.0,) * len(answer), "base", reward))
    return on_policy(policy, samples)


def on_policy(policy: Policy, samples: list[Sample]) -> list[Sample]:
    rollout = Trainer(policy, SETTINGS, seed=0).look_back(samples)
    logps = dict(zip(rollout.answers, rollout.old_logp.tolist(), strict=True))  # its rows have an order of their own
    return [
        dataclasses.replace(sample, behaviour_logp=tuple(logps[sample.answer][: len(sample.answer_ids)]))
        for sample in samples
    ]


def test_an_iteration_reports_what_cleanrl_logs(policy: Policy) -> None:
    samples = sampled(policy, 8)
    shares: list[float] = []
    stats = Trainer(policy, SETTINGS, seed=3).iterate(samples, shares.append)
    assert {
        "policy_loss", "value_loss", "entropy", "approx_kl", "old_approx_kl", "clipfrac", "explained_variance",
        "learning_rate", "value_learning_rate", "grad_norm", "kl_per_sequence", "reward_mean",
        "reward_std", "effective_sample_size", "answer_tokens_mean", "updates", "stopped_early",
    } <= stats.keys()  # fmt: skip
    assert all(math.isfinite(value) for value in stats.values())
    assert stats["updates"] == 4
    assert stats["effective_sample_size"] == pytest.approx(1, abs=1e-4)  # on-policy
    assert stats["kl_per_sequence"] == pytest.approx(0, abs=1e-4)  # started at the base
    assert stats["reward_mean"] == pytest.approx(sum(sample.reward for sample in samples) / 8, abs=1e-6)
    assert stats["answer_tokens_mean"] == sum(len(sample.answer_ids) for sample in samples) / 8
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_it_learns_to_say_what_is_rewarded(policy: Policy) -> None:
    """The likelihood of the rewarded token rises against the others'."""
    prompt = (5, 6, 7)
    samples = [Sample(prompt, (token,), (0.0,), "base", float(token == WANTED)) for token in range(8, 16)]
    trainer = Trainer(policy, SETTINGS, seed=3)
    before = on_policy(policy, samples)
    for _ in range(6):
        trainer.iterate(on_policy(policy, samples))
    after = on_policy(policy, samples)
    gain = [a.behaviour_logp[0] - b.behaviour_logp[0] for a, b in zip(after, before, strict=True)]
    wanted = gain.pop(WANTED - 8)
    assert wanted > max(gain) + 0.1


def test_without_a_critic_it_learns_from_the_other_answers_to_the_prompt(policy: Policy) -> None:
    """One prompt pays ten times as much as the other, whatever is said: nothing is learned of that."""
    samples = [
        Sample((5, 6, prompt), (token,), (0.0,), "base", scale + float(token == WANTED))
        for prompt, scale in ((7, 0.0), (8, 10.0))
        for token in range(8, 16)
    ]
    trainer = Trainer(policy, SETTINGS, seed=3, critic=False)
    targets = trainer._targets(trainer.look_back(samples))
    adv = sorted(round(value, 3) for value in targets.adv[:, 0].tolist())
    assert adv == [-0.378] * 14 + [2.645] * 2  # 1 of 8: mean 1/8, standard deviation √7/8
    before = on_policy(policy, samples)
    for _ in range(6):
        stats = trainer.iterate(on_policy(policy, samples))
    after = on_policy(policy, samples)
    gain = [a.behaviour_logp[0] - b.behaviour_logp[0] for a, b in zip(after, before, strict=True)]
    wanted = [gain[start + WANTED - 8] for start in (0, 8)]
    assert min(wanted) > max(set(gain) - set(wanted)) + 0.1
    assert stats["value_loss"] == stats["value_grad_norm"] == stats["explained_variance"] == 0
    assert torch.count_nonzero(policy.value_head.weight) == 0


def test_values_learn_to_explain_the_returns(policy: Policy) -> None:
    samples = sampled(policy, 16)
    trainer = Trainer(policy, SETTINGS.model_copy(update={"value_clip": 10.0, "learning_rate": 1e-9}), seed=3)
    for _ in range(10):
        last = trainer.iterate(samples)["explained_variance"]
    assert last > 0.3


def test_advantages_come_from_values_that_have_not_seen_their_answer(policy: Policy) -> None:
    """One answer is praised beyond all others: a critic that had seen it would expect some of that."""
    samples = in_order(sampled(policy, 16))
    outlier = [dataclasses.replace(samples[0], reward=100.0), *samples[1:]]
    trainer = Trainer(policy, SETTINGS, seed=3)
    usual, praised = (trainer._targets(trainer.look_back(batch)) for batch in (samples, outlier))
    others = slice(4, None, 4)  # the rest of its fold; the head itself, corrected by the first fit, is the same for all
    assert praised.old_v[0, 0] - usual.old_v[0, 0] == pytest.approx(
        float((praised.old_v[others, 0] - usual.old_v[others, 0]).mean()), abs=0.2
    )
    assert policy.value_head.bias > 1  # but what comes after knows


def test_the_critic_starts_from_the_outlook(policy: Policy) -> None:
    """Who knew the reward all along learns nothing from it: what is left to advantages is rounding."""
    samples = [
        dataclasses.replace(sample, outlook=(sample.reward,) * len(sample.answer_ids)) for sample in sampled(policy, 16)
    ]
    trainer = Trainer(policy, SETTINGS, seed=3)
    rollout = trainer.look_back(samples)
    targets = trainer._targets(rollout)
    torch.testing.assert_close(targets.old_v, rollout.score[:, None] * rollout.mask, atol=1e-4, rtol=0)
    stats = trainer.update(rollout)
    assert stats["explained_variance"] > 0.99
    blind = Trainer(policy, SETTINGS, seed=3).iterate(sampled(policy, 16))
    assert blind["explained_variance"] < 0.9


def test_the_value_loss_counts_the_outlook(policy: Policy) -> None:
    samples = [
        dataclasses.replace(sample, outlook=(sample.reward,) * len(sample.answer_ids)) for sample in sampled(policy, 16)
    ]
    assert Trainer(policy, SETTINGS, seed=3).iterate(samples)["value_loss"] < 1e-3


def trained(model: Path, samples: list[Sample], settings: config.Ppo, folder: Path) -> tuple[dict[str, float], bytes]:
    policy = Policy(model, LORA, seed=1)
    stats = Trainer(policy, settings, seed=3).iterate(samples)
    policy.save_adapter(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return stats, b"".join(path.read_bytes() for path in files)


def test_the_same_samples_and_seed_give_the_same_bytes(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    samples = sampled(policy, 8)
    first = trained(tiny_model, samples, SETTINGS, tmp_path / "a")
    assert first == trained(tiny_model, samples, SETTINGS, tmp_path / "b")
    assert first[1] != trained(tiny_model, sampled(policy, 8, seed=1), SETTINGS, tmp_path / "c")[1]


def test_the_order_in_which_samples_come_changes_nothing(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    """Not even rounding. One answer comes twice, with two rewards."""
    samples = sampled(policy, 8)
    samples.append(dataclasses.replace(samples[0], reward=0.75))
    first = trained(tiny_model, samples, SETTINGS, tmp_path / "a")
    assert first == trained(tiny_model, samples[::-1], SETTINGS, tmp_path / "b")
    assert first == trained(tiny_model, samples[5:] + samples[:5], SETTINGS, tmp_path / "c")


def test_microbatches_change_nothing_but_rounding(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    samples = sampled(policy, 8)
    whole, _ = trained(tiny_model, samples, SETTINGS, tmp_path / "a")
    small = SETTINGS.model_copy(update={"tokens_per_microbatch": 1})  # every answer alone
    split, _ = trained(tiny_model, samples, small, tmp_path / "b")
    assert split == pytest.approx(whole, rel=1e-3, abs=1e-4)


def test_the_rate_warms_up_over_the_cycle(policy: Policy) -> None:
    samples = sampled(policy, 4)
    trainer = Trainer(policy, SETTINGS.model_copy(update={"warmup_updates": 8, "epochs": 1}), seed=3)
    rates = [trainer.iterate(samples)["learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([2e-3 / 8, 4e-3 / 8, 6e-3 / 8, 1e-3, 1e-3])


def test_a_stale_policys_samples_are_weighted_down(policy: Policy) -> None:
    samples = sampled(policy, 8)
    stale = [
        dataclasses.replace(sample, behaviour_logp=tuple(logp - 3 * (row % 2) for logp in sample.behaviour_logp))
        for row, sample in enumerate(samples)
    ]
    stats = Trainer(policy, SETTINGS, seed=3).iterate(stale)
    assert stats["effective_sample_size"] < 0.6
    assert 1 < stats["importance_mean"] < SETTINGS.max_importance  # e^3, truncated at 2, on half of them


def test_an_iteration_stops_when_the_kl_runs_away(policy: Policy) -> None:
    samples = sampled(policy, 8)
    wild = SETTINGS.model_copy(update={"learning_rate": 0.05, "epochs": 10, "warmup_updates": 0})
    stats = Trainer(policy, wild, seed=3).iterate(samples)
    assert stats["stopped_early"] == 1
    assert stats["iteration_updates"] < 20


def test_kl_per_sequence_is_that_of_the_distributions_along_the_samples(policy: Policy) -> None:
    samples = sampled(policy, 8)
    trainer = Trainer(policy, SETTINGS, seed=3)
    assert trainer.look_back(samples).kl == pytest.approx(0, abs=1e-5)
    trainer.iterate(samples)
    slow = 0.0
    for sample in samples:
        batch = Batch.of([sample.answer], policy.device)
        below = policy.lower(batch)
        p, q = (
            torch.log_softmax(policy.upper(below, batch, reference=reference)[0] @ policy._head.T, dim=-1)
            for reference in (False, True)
        )
        slow += float((p.exp() * (p - q)).sum().detach())
    assert trainer.look_back(samples).kl == pytest.approx(slow / 8, rel=1e-3)
    assert slow > 0.001


def test_the_penalty_holds_the_policy_near_the_base(policy: Policy, tiny_model: Path) -> None:
    samples = sampled(policy, 8)
    far = []
    for kl_coef in (0.0, 5.0):
        fresh = Policy(tiny_model, LORA, seed=1)
        trainer = Trainer(fresh, SETTINGS.model_copy(update={"kl_coef": kl_coef}), seed=3)
        for _ in range(4):
            trainer.iterate(samples)
        far.append(trainer.look_back(samples).kl)
    assert far[1] < 0.5 * far[0]


def test_the_price_of_the_kl_rises_with_what_is_measured(policy: Policy) -> None:
    samples = sampled(policy, 8)
    trainer = Trainer(policy, SETTINGS.model_copy(update={"kl_budget": 1e-4}), seed=3)
    prices = [trainer.iterate(samples)["kl_price"] for _ in range(3)]
    assert prices[0] == SETTINGS.kl_coef  # nothing measured yet but that it is the base
    assert prices == sorted(prices)
    assert prices[2] > SETTINGS.kl_coef
    dear = Trainer(policy, SETTINGS, seed=3, kl_price=0.3)
    assert dear.iterate(samples)["kl_price"] == pytest.approx(0.3)


def test_what_is_not_finite_ends_with_a_clear_error(policy: Policy) -> None:
    samples = sampled(policy, 4)
    with pytest.raises(TrainingDiverged, match="not finite"):
        Trainer(policy, SETTINGS, seed=3).iterate([dataclasses.replace(samples[0], reward=math.nan), *samples[1:]])
    with torch.no_grad():
        policy.value_head.bias.fill_(math.inf)
    before = [parameter.clone() for parameter in policy.adapter_parameters()]
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        Trainer(policy, SETTINGS, seed=3).iterate(samples)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.adapter_parameters(), strict=True))


def test_a_policy_that_collapses_ends_with_a_clear_error(policy: Policy) -> None:
    samples = sampled(policy, 8)
    alike = [dataclasses.replace(sample, answer_ids=(WANTED,), behaviour_logp=(-9.0,)) for sample in samples]
    trainer = Trainer(policy, SETTINGS, seed=3)
    trainer.iterate(alike)  # it came like this: nothing has collapsed
    before = [parameter.clone() for parameter in policy.adapter_parameters()]
    with pytest.raises(TrainingDiverged, match="collapsed: 8 of 8 answers are one and the same"):
        trainer.iterate(alike)
    policy._head = policy._head * 1000.0  # logits far apart
    with pytest.raises(TrainingDiverged, match="collapsed: the entropy of a token has fallen from"):
        trainer.iterate(samples)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.adapter_parameters(), strict=True))


def test_what_a_collapse_looks_like() -> None:
    said = [((prompt,), (prompt, 2)) for prompt in range(20)]
    assert collapse(said, 1.0, 2.0) == ""
    assert "from 2 to 0.1 nats" in collapse(said, 0.1, 2.0)
    assert collapse(said[:3] + [((prompt,), (7,)) for prompt in range(17)], 1.0, 2.0) == ""
    assert "18 of 20" in collapse(said[:2] + [((prompt,), (7,)) for prompt in range(18)], 1.0, 2.0)
    assert collapse([((1,), (7,))] * 4, 1.0, 2.0) == "", "too few to tell"


def test_samples_that_make_no_sense_are_refused(policy: Policy) -> None:
    trainer = Trainer(policy, SETTINGS, seed=3)
    with pytest.raises(ValueError, match="no samples"):
        trainer.iterate([])
    with pytest.raises(ValueError, match="2 log-probabilities for 1 tokens"):
        trainer.iterate([Sample((1,), (2,), (0.0, 0.0), "base")])
    with pytest.raises(ValueError, match="an outlook of 2 values for 1 tokens"):
        trainer.iterate([Sample((1,), (2,), (0.0,), "base", outlook=(0.0, 0.0))])


def test_an_anchor_holds_what_nobody_rates(policy: Policy, tiny_model: Path) -> None:
    """What is learned after one prompt spills over to others, less so where their answers are an anchor."""
    samples = sampled(policy, 8)
    plain = tuple(((40 + i, 41, 42), (8 + i, 9, 10)) for i in range(8))
    drift = []
    for anchor in ((), plain):
        fresh = Policy(tiny_model, LORA, seed=1)
        settings = SETTINGS.model_copy(update={"anchor_coef": 100.0, "kl_coef": 0.0})
        trainer = Trainer(fresh, settings, seed=3, anchor=anchor)
        for _ in range(6):
            stats = trainer.iterate(samples)
        assert (stats["anchor_kl"] > 0) == bool(anchor)
        known = [Sample(prompt, answer, (0.0,) * len(answer), "base") for prompt, answer in plain]
        drift.append(trainer.look_back(known).kl)
    assert drift[1] < 0.5 * drift[0]


def test_contrast_keeps_the_best_and_the_worst() -> None:
    samples = [Sample((1,), (2,), (0.0,), "base", reward) for reward in (0.0, 5.0, -1.0, 2.0, 4.0, 1.0)]
    assert [sample.reward for sample in contrast(samples, 4)] == [-1.0, 0.0, 4.0, 5.0]
    assert [sample.reward for sample in contrast(samples, 3)] == [-1.0, 4.0, 5.0]
    assert contrast(samples, 6) == samples
    assert contrast(samples[:2], 6) == samples[:2]


def test_which_of_equally_rewarded_samples_are_kept_does_not_depend_on_their_order() -> None:
    samples = [Sample((1,), (token,), (0.0,), "base", float(token % 2)) for token in range(2, 14)]
    assert contrast(samples, 5) == contrast(samples[::-1], 5)


def test_groups_are_answers_to_the_same_prompt() -> None:
    samples = [Sample((prompt,), (token,), (0.0,), "base", 0.0) for token in (4, 5) for prompt in (1, 2)]
    lonely = Sample((3,), (4,), (0.0,), "base", 0.0)
    found = groups([*samples, lonely])
    assert sorted(sorted(sample.answer for sample in group) for group in found) == [
        [((1,), (4,)), ((1,), (5,))],
        [((2,), (4,)), ((2,), (5,))],
    ]


def test_contrast_keeps_whole_groups_the_most_telling_first() -> None:
    rewards = {1: (0.0, 0.1), 2: (0.9, 1.0, -1.0), 3: (0.0, 1.0), 4: (-1.0,)}
    samples = [
        Sample((prompt,), (token,), (0.0,), "base", reward)
        for prompt, group in rewards.items()
        for token, reward in enumerate(group)
    ]

    def kept(keep: int) -> list[int]:
        return [sample.prompt_ids[0] for sample in contrast_groups(samples, keep)]

    assert kept(7) == [2, 2, 2, 3, 3, 1, 1]
    assert kept(6) == [2, 2, 2, 3, 3]
    assert kept(4) == [2, 2, 2], "no half groups"
    assert kept(1) == [2, 2, 2], "one at least"
    assert contrast_groups(samples[::-1], 5) == contrast_groups(samples, 5)
