"""Numbers computed by hand or by slow loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learner import ppo_math


def close(a: Tensor | float, b: object, atol: float = 1e-6) -> None:
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-5, check_dtype=False)


MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def test_masked_mean_and_variance_ignore_padding() -> None:
    x = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    close(ppo_math.masked_mean(x, MASK), 3.0)
    close(ppo_math.masked_var(x, MASK), (4 + 1 + 9) / 3)


def test_masked_mean_divides_by_the_given_count() -> None:
    close(ppo_math.masked_mean(torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]]), MASK, count=9.0), 1.0)


def test_whiten_gives_mean_0_and_variance_1_and_0_on_padding() -> None:
    white = ppo_math.whiten(torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]]), MASK)
    spread = math.sqrt(14 / 3)
    close(white, [[-2 / spread, -1 / spread, 0], [3 / spread, 0, 0]])


def test_gae_golden_case() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5)
    adv, ret = ppo_math.gae(rewards, values, torch.tensor([[0.0, 0.0, 1.0]]), gamma=1.0, lam=0.95)
    close(adv, [[0.45125, 0.475, 0.5]])
    close(ret, [[0.95125, 0.975, 1.0]])


def test_gae_bootstraps_an_episode_that_goes_on() -> None:
    adv, _ = ppo_math.gae(
        torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.zeros(1, 1), 0.9, 0.95, last_value=torch.tensor([10.0])
    )
    close(adv, [[1 + 0.9 * 10 - 2]])


def slow_gae(rewards: Tensor, values: Tensor, ends: Tensor, gamma: float, lam: float, last: Tensor) -> Tensor:
    """Equation 16 as it stands: adv_t = sum over l of (gamma lam)^l delta_{t+l}, up to the episode's end."""
    rows, steps = rewards.shape
    adv = torch.zeros_like(rewards)
    for b in range(rows):
        for t in range(steps):
            factor = 1.0
            for u in range(t, steps):
                after = values[b, u + 1] if u + 1 < steps else last[b]
                adv[b, t] += factor * (rewards[b, u] + gamma * after * (1 - ends[b, u]) - values[b, u])
                factor *= gamma * lam
                if ends[b, u]:
                    break
    return adv


def test_gae_equals_the_sum_it_is_defined_by() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(4, 12, generator=generator) for _ in range(2))
    ends = (torch.rand(4, 12, generator=generator) < 0.2).float()
    last = torch.randn(4, generator=generator)
    adv, ret = ppo_math.gae(rewards, values, ends, 0.97, 0.9, last)
    close(adv, slow_gae(rewards, values, ends, 0.97, 0.9, last), atol=1e-5)
    close(ret, adv + values)


def test_gae_of_a_padded_answer_is_that_of_the_answer_alone() -> None:
    rewards, values = torch.tensor([[0.1, 0.7]]), torch.tensor([[0.3, 0.2]])
    alone, _ = ppo_math.gae(rewards, values, torch.tensor([[0.0, 1.0]]), 1.0, 0.95)
    pad = torch.zeros(1, 3)
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    ends = ppo_math.last_step(mask) + (1 - mask)
    adv, ret = ppo_math.gae(torch.cat([rewards, pad], 1), torch.cat([values, pad], 1), ends, 1.0, 0.95)
    close(adv[:, :2], alone)
    close(adv[:, 2:], pad)
    close(ret[:, 2:], pad)


def test_last_step_marks_the_last_token_of_each_answer() -> None:
    close(ppo_math.last_step(MASK), [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def test_token_rewards_by_hand() -> None:
    kl = torch.tensor([[0.5, 1.0, 9.0], [0.0, 9.0, 9.0]])
    rewards = ppo_math.token_rewards(torch.tensor([1.0, -1.0]), kl, MASK, kl_coef=0.1)
    close(rewards, [[-0.05, 0.9, 0.0], [-1.0, 0.0, 0.0]])


def test_fit_values_by_hand() -> None:
    """One state in two folds: x is -1 and 1 in each, y is 3 x + 5 in the first and x + 5 in the second."""
    x, fold = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
    y = torch.tensor([2.0, 8.0, 4.0, 6.0])
    free = ppo_math.fit_values(x, y, fold, 2, penalty=0.0)
    close(free[0], [4.0, 6.0, 2.0, 8.0])  # what the other fold says
    close(free[1], [2.0])
    close(free[2], 5.0)
    # The variance of x is 1, so a penalty of 1 halves the weight and leaves the constant.
    close(ppo_math.fit_values(x, y, fold, 2, penalty=1.0)[0], [4.5, 5.5, 3.5, 6.5])


def test_fit_values_explains_what_is_linear_and_nothing_of_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator)
    fold, every = torch.arange(400) // 10 % 4, torch.ones(400)
    line, noise = x @ torch.randn(20, generator=generator), torch.randn(400, generator=generator)
    assert ppo_math.explained_variance(ppo_math.fit_values(x, line, fold, 4, 0.1)[0], line, every) > 0.9
    assert ppo_math.explained_variance(ppo_math.fit_values(x, noise, fold, 4, 0.1)[0], noise, every) < 0.02


@pytest.mark.parametrize(
    ("ratio", "adv", "objective"),
    [
        (1.1, 2.0, 2.2),  # within the range
        (1.5, 2.0, 2.4),  # good, and gone far enough: clipped at 1.2
        (0.5, 2.0, 1.0),  # good, but made unlikely: not clipped, so that it can come back
        (0.5, -2.0, -1.6),  # bad, and gone far enough: clipped at 0.8
        (1.5, -2.0, -3.0),  # bad, and made likely: not clipped
    ],
)
def test_policy_loss_clips_as_in_figure_1_of_the_paper(ratio: float, adv: float, objective: float) -> None:
    one = torch.ones(1)
    close(ppo_math.policy_loss(one * math.log(ratio), 0 * one, one * adv, one, clip_eps=0.2), -objective)


def test_policy_loss_earns_no_gradient_beyond_the_clip() -> None:
    logp = torch.tensor([math.log(1.5), math.log(1.1)], requires_grad=True)
    ppo_math.policy_loss(logp, torch.zeros(2), torch.ones(2), torch.ones(2), 0.2).backward()
    close(logp.grad, [0.0, -1.1 / 2])


def test_gradient_at_ratio_1_is_the_policy_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, requires_grad=True)
    action, adv = torch.randint(0, 7, (5,), generator=generator), torch.randn(5, generator=generator)
    logp = ppo_math.log_prob(logits, action)
    (surrogate,) = torch.autograd.grad(
        ppo_math.policy_loss(logp, logp.detach(), adv, torch.ones(5), 0.2), logits, retain_graph=True
    )
    (reinforce,) = torch.autograd.grad(-(adv * logp).mean(), logits)
    close(surrogate, reinforce)


def test_importance_weights_scale_each_step() -> None:
    loss = ppo_math.policy_loss(
        torch.zeros(2), torch.zeros(2), torch.tensor([1.0, 3.0]), torch.ones(2), 0.2, weight=torch.tensor([2.0, 0.5])
    )
    close(loss, -(2.0 + 1.5) / 2)


@pytest.mark.parametrize(
    ("v", "loss"),
    [
        (1.1, 0.5 * 0.9**2),  # within the clip: the plain error
        (1.9, 0.5 * 0.8**2),  # moved .9 towards 2: only .2 of it counts
        (0.5, 0.5 * 1.5**2),  # moved away: the worse of the two, so that it can come back
    ],
)
def test_value_loss_by_hand(v: float, loss: float) -> None:
    one = torch.ones(1)
    close(ppo_math.value_loss(one * v, one, one * 2, one, clip=0.2), loss)


def test_losses_of_the_parts_add_up_to_the_loss_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logp, old_logp, adv, v, old_v, ret = (torch.randn(6, 5, generator=generator) for _ in range(6))
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]).float()
    whole = ppo_math.policy_loss(logp, old_logp, adv, mask, 0.2)
    whole_v = ppo_math.value_loss(v, old_v, ret, mask, 0.2)
    parts = parts_v = torch.zeros(())
    for rows in ([0, 3], [1, 2, 4], [5]):
        parts = parts + ppo_math.policy_loss(logp[rows], old_logp[rows], adv[rows], mask[rows], 0.2, count=mask.sum())
        parts_v = parts_v + ppo_math.value_loss(v[rows], old_v[rows], ret[rows], mask[rows], 0.2, count=mask.sum())
    close(parts, whole)
    close(parts_v, whole_v)


def test_log_prob_and_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    close(ppo_math.log_prob(logits, torch.tensor([1, 0])), [math.log(0.75), math.log(0.5)])
    close(ppo_math.entropy(logits), [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(2)])


def test_kl_k3_against_the_exact_divergence() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    exact = (p * (p / q).log()).sum()
    logp, ref_logp = p.log(), q.log()
    close((p * ppo_math.kl_k3(logp, ref_logp)).sum(), exact)
    assert (ppo_math.kl_k3(logp, ref_logp) >= 0).all()
    close(ppo_math.kl_k3(torch.tensor(0.0), torch.tensor(math.log(2.0))), 1 - math.log(2))


def test_clip_fraction() -> None:
    logp = torch.tensor([1.0, 1.1, 1.3, 0.7]).log()
    close(ppo_math.clip_fraction(logp, torch.zeros(4), 0.2), [0.0, 0.0, 1.0, 1.0])


def test_explained_variance() -> None:
    ret, mask = torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    close(ppo_math.explained_variance(ret, ret, mask), 1.0)
    close(ppo_math.explained_variance(torch.zeros(4), ret, mask), 0.0)
    close(ppo_math.explained_variance(-ret, ret, mask), -3.0)
    close(ppo_math.explained_variance(torch.tensor([1.0, 2.0, 4.0, 0.0]), torch.ones(4), mask), 0.0)


def test_truncated_importance() -> None:
    old_logp = torch.tensor([0.1, 0.4, 0.9]).log()
    close(ppo_math.truncated_importance(old_logp, torch.tensor([0.2, 0.4, 0.1]).log(), 2.0), [0.5, 1.0, 2.0])


def policy_gradient(logits: Tensor, drawn: Tensor, adv: Tensor, weight: Tensor | None) -> Tensor:
    """Gradient of the surrogate at ratio 1 with action a drawn with probability drawn[a]: exact, nothing is sampled."""
    logp = torch.log_softmax(logits, dim=-1)
    loss = ppo_math.policy_loss(logp, logp.detach(), adv, drawn, 0.2, weight, count=1.0)
    return torch.autograd.grad(loss, logits)[0]


def test_stale_data_bias_the_gradient_and_importance_weights_take_the_bias_away() -> None:
    """A bandit with 4 arms, by the formula: d E[adv] / d logits_a = pi_a (adv_a - E[adv])."""
    logits = torch.tensor([0.5, 0.0, -0.5, -1.0], requires_grad=True)
    pi = torch.softmax(logits, dim=-1).detach()
    stale = torch.softmax(torch.tensor([-0.3, 0.1, 0.4, -0.4]), dim=-1)
    adv = torch.tensor([1.0, -0.5, 0.3, 2.0])
    analytic = -pi * (adv - (pi * adv).sum())
    ratio = pi / stale
    weight = ppo_math.truncated_importance(pi.log(), stale.log(), 3.0)
    assert ratio.max() < 3  # nothing is truncated
    close(policy_gradient(logits, pi, adv, None), analytic)
    close(policy_gradient(logits, stale, adv, weight), analytic)
    assert (policy_gradient(logits, stale, adv, None) - analytic).norm() > 0.3 * analytic.norm()


def test_truncation_leaves_the_bias_of_what_it_cuts_off() -> None:
    """The arms whose ratio is above the bound count too little, by (ratio - bound) each, and no others."""
    logits = torch.tensor([1.0, 0.0, 0.0, -1.0], requires_grad=True)
    pi, stale = torch.softmax(logits, dim=-1).detach(), torch.tensor([0.1, 0.3, 0.3, 0.3])
    adv = torch.tensor([1.0, -0.5, 0.3, 2.0])
    whole, cut = pi / stale, ppo_math.truncated_importance(pi.log(), stale.log(), 2.0)
    assert (whole > 2).tolist() == [True, False, False, False]
    missing = policy_gradient(logits, pi, adv, None) - policy_gradient(logits, stale, adv, cut)
    only = torch.tensor([1.0, 0.0, 0.0, 0.0])
    close(missing, policy_gradient(logits, stale * only, adv, whole - 2.0))


def test_effective_sample_size_by_hand() -> None:
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    behaviour = torch.zeros(2, 2)
    close(ppo_math.effective_sample_size(behaviour, behaviour, mask), 1.0)
    old_logp = torch.tensor([[math.log(2.0), math.log(1.5)], [0.0, 99.0]])  # weights 3 and 1; padding does not count
    close(ppo_math.effective_sample_size(old_logp, behaviour, mask), (3 + 1) ** 2 / (2 * (9 + 1)))
    close(ppo_math.effective_sample_size(old_logp * 1000, behaviour, mask), 0.5)  # one outweighs all, no overflow


def test_group_advantages_by_hand() -> None:
    """Three answers to one prompt, one to another, two to a third; they need not lie side by side."""
    score, group = torch.tensor([1.0, 5.0, 4.0, 0.0, 4.0, 2.0]), torch.tensor([7, 3, 7, 0, 7, 0])
    adv, std = ppo_math.group_advantages(score, group, eps=0.0)
    root = 2**0.5  # (1, 4, 4): mean 3, variance (4 + 1 + 1) / 3
    close(std, [root, 0.0, root, 1.0, root, 1.0])
    others = [0, 2, 3, 4, 5]
    close(adv[others], [-2 / root, 1 / root, -1.0, 1 / root, 1.0])
    alone = ppo_math.group_advantages(score, group)[0][1]
    assert alone == 0, "one answer says nothing of what was to be expected"


def test_group_advantages_of_answers_that_scored_alike_are_nothing() -> None:
    adv, _ = ppo_math.group_advantages(torch.tensor([0.7, 0.7, 0.7, 0.1]), torch.tensor([0, 0, 0, 1]))
    assert adv.abs().max() < 1e-2
