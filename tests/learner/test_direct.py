"""DPO and KTO by TRL, on the tiny model; losses are held against the papers' formulas on the policy's own passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from learner import direct
from learner.policy import Answer, Batch, Policy
from learner.preferences import Preference, Verdict
from thumbwheel.config import Config, Direct
from thumbwheel.errors import TrainingDiverged

TOKENS = 2048
STILL = Direct(learning_rate=1e-12, epochs=1, batch=8, warmup_updates=0)
"""So that what is logged is what the policy was."""

dice = np.random.default_rng(1)


def words(count: int) -> tuple[int, ...]:
    return tuple(dice.integers(10, 40_000, count).tolist())


PROMPTS = [words(3 + i % 4) for i in range(8)]
PREFERENCES = [Preference(prompt, words(4 + i % 3), words(5)) for i, prompt in enumerate(PROMPTS)]
VERDICTS = [Verdict(prompt, words(4 + i % 3), i < 3) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    """Away from the base, so that it matters what the reference is."""
    policy = Policy(tiny_model, Config().learner.lora, 1)
    generator = torch.Generator().manual_seed(2)
    for tensor in policy.adapter_parameters():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator)
    return policy


def run(policy: Policy, examples: Sequence[Preference] | Sequence[Verdict], settings: Direct) -> list[dict[str, float]]:
    told: list[dict[str, float]] = []
    direct.train(policy, examples, settings, TOKENS, 7, told.append)
    return told


@torch.no_grad()
def log_ratios(policy: Policy, answers: Sequence[Answer]) -> torch.Tensor:
    """(B,) log policy(answer) - log base(answer)."""
    batch = Batch.of(answers, policy.device)
    below = policy.lower(batch)
    ours, theirs = (
        policy.answer_logps(policy.upper(below, batch, reference=reference), batch)[0].sum(1)
        for reference in (False, True)
    )
    return ours - theirs


def margins(policy: Policy) -> torch.Tensor:
    chosen = log_ratios(policy, [(each.prompt_ids, each.chosen_ids) for each in PREFERENCES])
    return chosen - log_ratios(policy, [(each.prompt_ids, each.rejected_ids) for each in PREFERENCES])


def test_the_loss_of_dpo_is_the_papers_with_the_base_as_reference(policy: Policy) -> None:
    expected = float(-logsigmoid(STILL.beta * margins(policy)).mean())
    assert abs(expected - np.log(2)) > 1e-3, "else the version itself could be the reference"
    [told] = run(policy, PREFERENCES, STILL)
    assert told["loss"] == pytest.approx(expected, abs=2e-4)
    assert told["margin"] == pytest.approx(float(STILL.beta * margins(policy).mean()), abs=1e-3)


def test_the_loss_of_kto_is_the_papers(policy: Policy) -> None:
    ratios = log_ratios(policy, [(each.prompt_ids, each.completion_ids) for each in VERDICTS])
    rows = list(VERDICTS)
    direct.random.Random(7).shuffle(rows)
    neighbours = [(each.prompt_ids, rows[place - 1].completion_ids) for place, each in enumerate(rows)]
    kl = log_ratios(policy, neighbours).mean().clamp(min=0)
    ups = torch.tensor([each.label for each in VERDICTS])
    losses = torch.where(
        ups,
        5 / 3 * (1 - torch.sigmoid(STILL.beta * (ratios - kl))),  # three ups count as much as five downs
        1 - torch.sigmoid(STILL.beta * (kl - ratios)),
    )
    [told] = run(policy, VERDICTS, STILL)
    assert told["loss"] == pytest.approx(float(losses.mean()), abs=2e-4)


def test_dpo_learns_to_prefer(policy: Policy) -> None:
    before = margins(policy)
    told = run(policy, PREFERENCES, Direct(learning_rate=3e-3, epochs=4, batch=4, warmup_updates=0))
    assert [len(told), told[-1]["loss"] < told[0]["loss"]] == [4, True]
    assert (margins(policy) > before).all()


def test_kto_learns_what_is_liked(policy: Policy) -> None:
    answers = [(each.prompt_ids, each.completion_ids) for each in VERDICTS]
    before = log_ratios(policy, answers)
    run(policy, VERDICTS, Direct(learning_rate=3e-3, epochs=6, batch=4, warmup_updates=0))
    rise = log_ratios(policy, answers) - before
    assert rise[:3].mean() > rise[3:].mean() + 0.5


@pytest.mark.parametrize("examples", [PREFERENCES, VERDICTS], ids=["dpo", "kto"])
def test_the_same_examples_and_seed_make_the_same_weights(
    policy: Policy, examples: Sequence[Preference] | Sequence[Verdict], tmp_path: Path
) -> None:
    policy.save_adapter(tmp_path / "start")
    made = []
    for name in "ab":
        policy.load_adapter(tmp_path / "start")
        run(policy, examples, Direct(epochs=2, batch=4))
        policy.save_adapter(tmp_path / name)
        made.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert made[0] == made[1]
    assert made[0] != (tmp_path / "start" / "adapter_model.safetensors").read_bytes()


def test_the_policy_is_left_as_it_was_but_for_its_weights(policy: Policy) -> None:
    trained = {name for name, tensor in policy._model.named_parameters() if tensor.requires_grad}
    value = policy.value_head.weight.clone()
    before = log_ratios(policy, [(each.prompt_ids, each.chosen_ids) for each in PREFERENCES])
    run(policy, PREFERENCES, STILL)
    assert list(policy._model.peft_config) == ["default"]
    assert {name for name, tensor in policy._model.named_parameters() if tensor.requires_grad} == trained
    assert not policy._model.training
    assert not {"forward"} & (vars(policy._model).keys() | vars(policy._model.get_base_model()).keys())
    assert torch.equal(policy.value_head.weight, value)
    after = log_ratios(policy, [(each.prompt_ids, each.chosen_ids) for each in PREFERENCES])
    assert torch.allclose(after, before, atol=1e-4)


def test_small_micro_batches_change_nothing_but_rounding(policy: Policy) -> None:
    told: list[dict[str, float]] = []
    direct.train(policy, PREFERENCES, STILL, 1, 7, told.append)
    [whole] = run(policy, PREFERENCES, STILL)
    assert told[0]["loss"] == pytest.approx(whole["loss"], abs=1e-4)


def test_an_answer_is_never_its_own_neighbour() -> None:
    rows = [{"completion_ids": (number,)} for number in range(9)]
    mismatched = direct._mismatched(rows, 4)
    assert [row["KL_completion_ids"][0] for row in mismatched] == [3, 0, 1, 2, 7, 4, 5, 6]


def test_weights_that_are_not_finite_are_said(policy: Policy) -> None:
    with pytest.raises(TrainingDiverged, match=r"learner\.direct\.learning_rate"):
        run(policy, PREFERENCES, Direct(learning_rate=1e38, epochs=2, batch=4, warmup_updates=0, max_grad_norm=1e30))


def test_progress_is_told(policy: Policy) -> None:
    shares: list[float] = []
    direct.train(policy, PREFERENCES, Direct(epochs=2, batch=4), TOKENS, 7, lambda figures: None, shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]
