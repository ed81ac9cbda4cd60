"""The mathematics of PPO against TRL 1.12's, the last version with a PPOTrainer.

``fixtures/trl_ppo.json`` holds what the statements of its ``trl/experimental/ppo/ppo_trainer.py`` (from the reward of
each token to the losses) gave in float64 for fixed random inputs: 5 answers of 6, 4, 1, 3 and 6 tokens among 6 columns.

Where we depart on purpose, the test says so:

- TRL gives the score one column after the last token, where there is one; here it comes with the last token.
- TRL whitens by the unbiased variance; here it is the population's, as in Huang et al. 2022.
- TRL counts as clipped where the clip decided the loss; here, wherever the ratio has left the range, as cleanrl does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner import ppo_math

FIXTURE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "trl_ppo.json").read_text(encoding="utf-8"))
SETTINGS: dict[str, float] = FIXTURE["settings"]


def given(name: str) -> Tensor:
    return torch.tensor(FIXTURE["inputs"][name], dtype=torch.float64)


def theirs(name: str) -> Tensor:
    return torch.tensor(FIXTURE["trl"][name], dtype=torch.float64)


def close(mine: Tensor, trl: Tensor) -> None:
    torch.testing.assert_close(mine, trl, atol=1e-12, rtol=1e-12)


MASK = theirs("mask")  # (B, T), answer tokens
VALUES = theirs("mask_values")  # (B, T), and the column after them


def test_kl_estimators_agree() -> None:
    logp, ref_logp = given("logprobs"), given("ref_logprobs")
    close(ppo_math.kl_k3(logp, ref_logp) * MASK, theirs("k3"))
    close((logp - ref_logp) * MASK, theirs("k1"))


def test_token_rewards_agree_but_for_the_column_of_the_score() -> None:
    mine = ppo_math.token_rewards(given("scores"), theirs("k1"), MASK, SETTINGS["kl_coef"])
    full = given("last_token") == MASK.shape[1] - 1
    assert full.sum() == 2
    close(mine[full], theirs("rewards")[full])
    close(mine.sum(1), theirs("rewards").sum(1))


def test_advantages_and_returns_agree() -> None:
    values = given("values") * VALUES
    ends = ppo_math.last_step(VALUES) + (1 - VALUES)
    adv, ret = ppo_math.gae(theirs("rewards"), values, ends, SETTINGS["gamma"], SETTINGS["lam"])
    close(adv, theirs("advantages"))
    close(ret, theirs("returns"))


def test_whitening_agrees_but_for_the_variance() -> None:
    count = MASK.sum()
    close(ppo_math.whiten(theirs("advantages"), MASK, eps=0) * torch.sqrt((count - 1) / count), exact_whitened())


def exact_whitened() -> Tensor:
    """Theirs without the 1e-8 beside the variance."""
    unbiased = ppo_math.masked_var(theirs("advantages"), MASK) * MASK.sum() / (MASK.sum() - 1)
    return theirs("whitened") * torch.sqrt((unbiased + 1e-8) / unbiased)


def test_policy_loss_agrees() -> None:
    loss = ppo_math.policy_loss(
        given("new_logprobs"), given("logprobs"), theirs("whitened"), MASK, SETTINGS["clip_eps"]
    )
    close(loss, theirs("pg_loss"))


def test_value_loss_agrees() -> None:
    old_v = given("values") * VALUES
    loss = ppo_math.value_loss(given("vpred") * VALUES, old_v, theirs("returns"), VALUES, SETTINGS["value_clip"])
    close(loss, theirs("vf_loss"))
    close(theirs("pg_loss") + SETTINGS["value_coef"] * loss, theirs("loss"))


def test_entropy_agrees() -> None:
    close(ppo_math.entropy(given("logits")), theirs("entropy"))


def test_clip_fraction_counts_those_too_that_the_clip_left_alone() -> None:
    logp, old_logp, adv = given("new_logprobs"), given("logprobs"), theirs("whitened")
    outside = ppo_math.clip_fraction(logp, old_logp, SETTINGS["clip_eps"])
    decided = outside * ((logp > old_logp) == (adv > 0))  # gone the way that the advantage wants it to go
    assert float(ppo_math.masked_mean(decided, MASK)) == pytest.approx(float(theirs("pg_clipfrac")))  # of float32
    assert ppo_math.masked_mean(outside, MASK) > theirs("pg_clipfrac")
