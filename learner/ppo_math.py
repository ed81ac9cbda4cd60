"""The mathematics of PPO and GRPO: pure functions of tensors. No model, no configuration, no device, no state.

The language model and CartPole (``examples/cartpole.py``) are trained by the same functions.

Shapes
    (B, T)      B episodes of T steps. For a language model: B answers, T answer tokens, right-padded.
    (N, V)      N decisions among V actions (tokens).
Names, as in the papers
    logp        log pi(a|s) of the action taken, nats; `old_logp` under the policy before this iteration's updates,
                `behaviour_logp` under the policy that sampled, `ref_logp` under the reference
    adv, ret    advantage, return;  v, old_v  value now, value before this iteration's updates
    mask        1 on steps that count, 0 on padding
    count       number the sums are divided by. A minibatch that is computed in several micro-batches passes its own
                total, so that adding the parts up gives exactly the loss of the whole.
Sources
    [PPO]   Schulman et al. 2017, arXiv:1707.06347           [GAE]  Schulman et al. 2016, arXiv:1506.02438
    [RLHF]  Ziegler et al. 2019, arXiv:1909.08593            [KL]   Schulman 2020, joschu.net/blog/kl-approx.html
    [37]    Huang et al. 2022, "The 37 Implementation Details of PPO"
    [RB]    Amini et al. 2025, arXiv:2504.10637, the KL divergence of whole distributions instead of sampled tokens
    [VC]    Yuan et al. 2025, arXiv:2503.01491, PPO fails on a critic that starts wrong: fit it before it advises
    [GRPO]  Shao et al. 2024, arXiv:2402.03300
    [TIS]   Ionides 2008, truncated importance sampling; for sampler/trainer mismatch: Yao et al. 2025
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Mean of `x` where `mask` is 1: sum(x * mask) / count. Shapes (...) -> ()."""
    total = (x * mask).sum()
    return total / (mask.sum() if count is None else count)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of `x` where `mask` is 1. Shapes (...) -> ()."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean 0 and variance 1 over the masked entries, 0 elsewhere ([37], detail 7). Shape (...)."""
    return (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + eps) * mask


def gae(
    rewards: Tensor, values: Tensor, ends: Tensor, gamma: float, lam: float, last_value: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation ([GAE], equations 11, 12 and 16).

        delta_t = r_t + gamma v_{t+1} (1 - end_t) - v_t
        adv_t   = delta_t + gamma lam (1 - end_t) adv_{t+1}

    Args:
        rewards: (B, T).
        values: (B, T), of the state in which step t was taken.
        ends: (B, T), 1 where nothing follows step t: the last step of an episode, and padding.
        gamma: discount per step.
        lam: 0 trusts the values (TD), 1 trusts the rewards (Monte Carlo).
        last_value: (B,), value of the state after the last step; None where every row has ended by then.

    Returns:
        Advantages and returns (``adv + values``), both (B, T). With 0 rewards and values on padding, both are 0 there.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0]) if last_value is None else last_value  # v_{t+1}  (B,)
    advantage = torch.zeros_like(rewards[:, 0])  # adv_{t+1}  (B,)
    for t in reversed(range(rewards.shape[1])):
        goes_on = 1 - ends[:, t]
        delta = rewards[:, t] + gamma * following * goes_on - values[:, t]
        advantage = delta + gamma * lam * goes_on * advantage
        advantages[:, t] = advantage
        following = values[:, t]
    return advantages, advantages + values


def group_advantages(score: Tensor, group: Tensor, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Advantage over the other episodes from the same start, in units of their spread ([GRPO], section 4.1.2).

        adv_i = (score_i - mean(scores of its group)) / (std(scores of its group) + eps)

    Args:
        score: (B,), of the whole episode.
        group: (B,), integers; episodes from the same start share one.
        eps: keeps groups that scored alike from dividing by 0.

    Returns:
        Advantages, and the standard deviation (the population's) of each one's group, both (B,); 0 where it is alone.
    """
    same = (group[:, None] == group).to(score)  # (B, B)
    size = same.sum(1)  # (B,)
    centred = score - same @ score / size
    std = (same @ centred**2 / size).sqrt()
    return centred / (std + eps), std


def last_step(mask: Tensor) -> Tensor:
    """1 on the last masked step of each row, 0 elsewhere. Rows are right-padded. Shape (B, T)."""
    return mask * (torch.cumsum(mask, dim=1) == mask.sum(dim=1, keepdim=True))


def token_rewards(score: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of every answer token ([RLHF], equation 2): the score comes with the last, a KL penalty with each.

        r_t = score [t is last] - kl_coef KL(pi(.|s_t) || ref(.|s_t))

    The KL is that of the distributions, not log pi/ref of the token that was drawn: same mean, far less noise ([RB]).
    The token at t cannot change its own term, so that one's gradient must be added to the loss.

    Args:
        score: (B,), of the whole answer.
        kl: (B, T), nats.
        mask: (B, T).
        kl_coef: reward per nat.
    """
    return last_step(mask) * score[:, None] - kl_coef * kl * mask


def fit_values(x: Tensor, y: Tensor, fold: Tensor, folds: int, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """A linear critic by ridge regression, and what it says of states that it was not fitted on ([VC]).

    A critic that has seen an answer's return explains its luck away; one fitted on the other folds cannot.

    Args:
        x: (N, D), states.
        y: (N,), what is to be predicted.
        fold: (N,), integers in [0, folds); states of one episode belong to one fold.
        folds: at least 2, none of them empty.
        penalty: of the weights, in units of the states' mean variance; the constant is free.

    Returns:
        Predictions out of fold (N,), and weight (D,) and bias () of the fit on all.
    """
    rows = torch.cat([x, torch.ones_like(x[:, :1]), y[:, None]], dim=1).double()  # (N, D + 2)
    moments = [rows[fold == k].T @ rows[fold == k] for k in range(folds)]  # folds x (D + 2, D + 2)
    whole = torch.stack(moments).sum(0)

    def solve(moment: Tensor) -> tuple[Tensor, Tensor]:
        moment = moment / moment[-2, -2]
        mean, target = moment[:-2, -2], moment[-1, -2]
        covariance = moment[:-2, :-2] - torch.outer(mean, mean)
        covariance += penalty * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(mean)).to(covariance)
        weight = torch.linalg.solve(covariance, moment[:-2, -1] - mean * target)
        return weight, target - mean @ weight

    predicted = torch.empty_like(y)
    for k in range(folds):
        weight, bias = solve(whole - moments[k])
        predicted[fold == k] = (rows[fold == k, :-2] @ weight + bias).to(y)
    weight, bias = solve(whole)
    return predicted, weight.to(x), bias.to(x)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    mask: Tensor,
    clip_eps: float,
    weight: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """Clipped surrogate objective, negated ([PPO], equation 7). Shapes (...) -> ().

    Args:
        logp, old_logp, adv, mask: (...), see above; only `logp` carries a gradient.
        clip_eps: the ratio pi / pi_old earns nothing beyond 1 ± this.
        weight: (...), factor per step, from `truncated_importance`; None means 1.
        count: see the top.
    """
    ratio = torch.exp(logp - old_logp)
    surrogate = torch.minimum(ratio * adv, ratio.clamp(1 - clip_eps, 1 + clip_eps) * adv)
    if weight is not None:
        surrogate = surrogate * weight
    return -masked_mean(surrogate, mask, count)


def value_loss(
    v: Tensor, old_v: Tensor, ret: Tensor, mask: Tensor, clip: float, count: Tensor | float | None = None
) -> Tensor:
    """Half the squared error of the value, the worse of clipped and unclipped ([37], detail 9). Shapes (...) -> ()."""
    clipped = old_v + (v - old_v).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((v - ret) ** 2, (clipped - ret) ** 2), mask, count)


def log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """log pi(a|s), nats. Shapes (..., V), (...) -> (...)."""
    return torch.log_softmax(logits, dim=-1).gather(-1, action[..., None]).squeeze(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits), nats. Shapes (..., V) -> (...)."""
    logp = torch.log_softmax(logits, dim=-1)
    return -(logp.exp() * logp).sum(-1)


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Estimates KL(pi || ref) per sample: unbiased, low variance, never negative ([KL])."""
    return torch.expm1(ref_logp - logp) - (ref_logp - logp)


def clip_fraction(logp: Tensor, old_logp: Tensor, clip_eps: float) -> Tensor:
    """1 where the ratio has left the clip range, 0 elsewhere. Shape (...)."""
    return ((torch.exp(logp - old_logp) - 1).abs() > clip_eps).to(logp.dtype)


def explained_variance(v: Tensor, ret: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(ret - v) / Var(ret): 1 is perfect, 0 a constant, 0 too where the returns do not vary. -> ()."""
    variance = masked_var(ret, mask)
    if variance <= 1e-12:
        return torch.zeros_like(variance)
    return 1 - masked_var(ret - v, mask) / variance


def truncated_importance(old_logp: Tensor, behaviour_logp: Tensor, maximum: float) -> Tensor:
    """min(pi_old / pi_behaviour, maximum) per step ([TIS]): corrects for who sampled, variance bounded. (...)."""
    return torch.exp(old_logp - behaviour_logp).clamp(max=maximum)


def effective_sample_size(old_logp: Tensor, behaviour_logp: Tensor, mask: Tensor) -> Tensor:
    """Share of the answers that count: (sum w)^2 / (B sum w^2), w the likelihood ratio of the whole answer.

    Shapes (B, T) -> (); 1 where the sampling policy is the trained one, 1/B where one answer outweighs all.
    """
    log_w = ((old_logp - behaviour_logp) * mask).sum(dim=1)  # (B,)
    log_share = 2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)
    return log_share.exp() / log_w.shape[0]
