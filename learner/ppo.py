"""PPO on answers, one iteration at a time.

    samples ──► look back (no gradient, once) ──► rewards ──► advantages ──► epochs x minibatches of updates
                activations, old and reference                GAE            clipped surrogate + value loss
                log-probabilities, values

Departures from the paper, and why:

- The log-probabilities that the ratio starts from are recomputed here. The engine's (`behaviour_logp`) come from other
  kernels, perhaps another version: the ratio between the two enters as a truncated importance weight instead.
- The reward is terminal, with a per-token KL penalty to the base (arXiv:1909.08593). How far the policy is from the
  base is measured on its own fresh samples (`Rollout.kl`), never on those that it is just learning: such estimates are
  biased (k1) or heavy-tailed (k3 said 9.9 nats where the next fresh samples said 2.1).
  Within an iteration `target_kl` watches.
- The value head reads a detached trunk: with a few hundred answers, values must not bend the policy's features.
- A minibatch is computed in micro-batches of similar length, each divided by the whole minibatch's answer tokens: the
  gradient is that of the whole, whatever memory allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learner import ppo_math
from learner.policy import Answer, Batch, Policy, Sample, microbatches
from thumbwheel import config
from thumbwheel.errors import TrainingDiverged

_LOOK_BACK_SHARE = 0.25  # of an iteration's time, for its progress


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is known of an iteration's answers before the first update. B answers, A tokens of the longest."""

    answers: list[Answer]
    hidden: list[Tensor]  # B x (T, D), below the adapter
    mask: Tensor  # (B, A)
    old_logp: Tensor  # (B, A)
    ref_logp: Tensor  # (B, A)
    old_v: Tensor  # (B, A)
    entropy: Tensor  # (B, A)
    behaviour_logp: Tensor  # (B, A)
    score: Tensor  # (B,)

    @property
    def kl(self) -> float:
        """KL of the policy to the base in nats per answer, measured on the policy's own samples."""
        return _per_answer(ppo_math.kl_k1(self.old_logp, self.ref_logp), self.mask)


@dataclass(frozen=True, slots=True)
class _Targets:
    """What the updates aim at."""

    adv: Tensor  # (B, A), whitened
    ret: Tensor  # (B, A)
    weight: Tensor  # (B, A), truncated importance


class Trainer:
    """Holds the optimiser over one cycle; the policy carries the weights."""

    def __init__(self, policy: Policy, settings: config.Ppo, seed: int) -> None:
        self._policy = policy
        self._settings = settings
        self._shuffle = torch.Generator().manual_seed(seed)
        self._updates = 0
        self._optimiser = torch.optim.AdamW(
            [
                {"params": policy.adapter_parameters(), "lr": settings.learning_rate},
                {"params": list(policy.value_head.parameters()), "lr": settings.value_learning_rate},
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )

    def iterate(self, samples: Sequence[Sample], progress: Callable[[float], None] | None = None) -> dict[str, float]:
        """One iteration: learns from the samples, `epochs` passes of `minibatches` updates.

        Args:
            samples: answers of (nearly) the current policy, with their scores.
            progress: told the share that is done, in [0, 1].

        Returns:
            The quantities that are logged; `stopped_early` is 1 where `target_kl` ended the iteration.

        Raises:
            ValueError: no samples, an empty answer, or log-probabilities that do not fit it.
            TrainingDiverged: a loss, a gradient or a score is not finite. The weights are those before that update.
        """
        return self.update(self.look_back(samples, progress), progress)

    def update(self, rollout: Rollout, progress: Callable[[float], None] | None = None) -> dict[str, float]:
        """The second half of `iterate`: moves the weights. A caller may look at `rollout.kl` first and refrain."""
        settings = self._settings
        targets = self._targets(rollout)

        steps: list[dict[str, float]] = []
        planned = settings.epochs * min(settings.minibatches, len(rollout.answers))
        stopped = False
        for minibatch in self._minibatches(len(rollout.answers)):
            step = self._update(minibatch, rollout, targets)
            steps.append(step)
            if progress:
                progress(_LOOK_BACK_SHARE + (1 - _LOOK_BACK_SHARE) * len(steps) / planned)
            stopped = step["approx_kl"] > settings.target_kl
            if stopped:
                break
        return self._stats(rollout, targets, steps) | {"stopped_early": float(stopped)}

    @torch.no_grad()
    def look_back(self, samples: Sequence[Sample], progress: Callable[[float], None] | None = None) -> Rollout:
        """The first half of `iterate`: one pass over the answers with the weights as they are. Raises as `iterate`."""
        _check(samples)
        answers = [sample.answer for sample in samples]
        size = (len(answers), max(len(sample.answer_ids) for sample in samples))
        mask, old_logp, ref_logp, old_v, entropy, behaviour_logp = (
            torch.zeros(size, device=self._policy.device) for _ in range(6)
        )
        hidden = self._policy.activations(answers)
        done = 0
        for group in microbatches(answers, range(len(answers)), self._settings.tokens_per_microbatch):
            batch, below = self._gather(answers, hidden, group)
            columns = batch.mask.shape[1]
            final = self._policy.upper(below, batch, reference=False)
            reference = self._policy.upper(below, batch, reference=True)
            mask[group, :columns] = batch.mask
            old_logp[group, :columns], entropy[group, :columns] = self._policy.answer_logps(final, batch)
            ref_logp[group, :columns], _ = self._policy.answer_logps(reference, batch)
            old_v[group, :columns] = self._policy.values(final) * batch.mask
            done += len(group)
            if progress:
                progress(_LOOK_BACK_SHARE * done / len(answers))
        for row, sample in enumerate(samples):
            behaviour_logp[row, : len(sample.answer_ids)] = torch.tensor(sample.behaviour_logp)
        score = torch.tensor([sample.reward for sample in samples], device=self._policy.device)
        return Rollout(answers, hidden, mask, old_logp, ref_logp, old_v, entropy, behaviour_logp, score)

    def _targets(self, rollout: Rollout) -> _Targets:
        settings, mask = self._settings, rollout.mask
        rewards = ppo_math.token_rewards(rollout.score, rollout.old_logp, rollout.ref_logp, mask, settings.kl_coef)
        ends = ppo_math.last_step(mask) + (1 - mask)
        adv, ret = ppo_math.gae(rewards, rollout.old_v, ends, settings.gamma, settings.lam)
        # Over the whole iteration, not the minibatch: a minibatch of a few answers is a poor judge of the mean.
        adv = ppo_math.whiten(adv, mask)
        weight = ppo_math.truncated_importance(rollout.old_logp, rollout.behaviour_logp, settings.max_importance)
        return _Targets(adv, ret, weight)

    def _minibatches(self, size: int) -> Iterator[list[int]]:
        """Indices of each update's answers: every epoch sees every answer once, in a new order."""
        for _ in range(self._settings.epochs):
            order = torch.randperm(size, generator=self._shuffle)
            for part in order.tensor_split(min(self._settings.minibatches, size)):
                yield part.tolist()

    def _update(self, minibatch: list[int], rollout: Rollout, targets: _Targets) -> dict[str, float]:
        """One optimiser step over a minibatch; the figures are its means, before the step."""
        settings, policy = self._settings, self._policy
        count = rollout.mask[minibatch].sum()  # answer tokens of the whole minibatch
        sums: dict[str, Tensor] = {}
        self._optimiser.zero_grad()
        for group in microbatches(rollout.answers, minibatch, settings.tokens_per_microbatch):
            batch, below = self._gather(rollout.answers, rollout.hidden, group)
            rows = slice(None, batch.mask.shape[1])
            old_logp, old_v = rollout.old_logp[group, rows], rollout.old_v[group, rows]
            adv, ret, weight = (x[group, rows] for x in (targets.adv, targets.ret, targets.weight))

            final = policy.upper(below, batch, reference=False)
            logp, entropy = policy.answer_logps(final, batch, entropy_grad=settings.entropy_coef > 0)
            v = policy.values(final)

            pg_loss = ppo_math.policy_loss(logp, old_logp, adv, batch.mask, settings.clip_eps, weight, count)
            v_loss = ppo_math.value_loss(v, old_v, ret, batch.mask, settings.value_clip, count)
            ent = ppo_math.masked_mean(entropy, batch.mask, count)
            loss = pg_loss + settings.value_coef * v_loss - settings.entropy_coef * ent
            loss.backward()  # type: ignore[no-untyped-call]

            with torch.no_grad():
                parts = {
                    "loss": loss,
                    "policy_loss": pg_loss,
                    "value_loss": v_loss,
                    "entropy": ent,
                    # k3 and -k1 of [KL] between the policy before this iteration and now, as cleanrl logs them
                    "approx_kl": ppo_math.masked_mean(ppo_math.kl_k3(old_logp, logp), batch.mask, count),
                    "old_approx_kl": ppo_math.masked_mean(old_logp - logp, batch.mask, count),
                    "clipfrac": ppo_math.masked_mean(
                        ppo_math.clip_fraction(logp, old_logp, settings.clip_eps), batch.mask, count
                    ),
                }
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        figures = {name: float(value) for name, value in sums.items()}
        return figures | self._step(figures["loss"])

    def _step(self, loss: float) -> dict[str, float]:
        """Clips the gradient and moves the weights, unless something is not finite."""
        rate = self._settings.learning_rate * min(1.0, (self._updates + 1) / max(1, self._settings.warmup_updates))
        self._optimiser.param_groups[0]["lr"] = rate
        adapter = self._policy.adapter_parameters()
        head = list(self._policy.value_head.parameters())
        # Apart, because the value's gradient is large while it is wrong and would scale the policy's away.
        norm = float(nn.utils.clip_grad_norm_(adapter, self._settings.max_grad_norm))
        value_norm = float(nn.utils.clip_grad_norm_(head, self._settings.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm) and math.isfinite(value_norm)):
            raise TrainingDiverged(
                f"update {self._updates + 1}: loss {loss:.3g}, gradient norm {norm:.3g} (value head {value_norm:.3g}). "
                "Lower learner.ppo.learning_rate."
            )
        self._optimiser.step()
        self._updates += 1
        return {"grad_norm": norm, "value_grad_norm": value_norm, "learning_rate": rate}

    def _gather(self, answers: list[Answer], hidden: list[Tensor], group: list[int]) -> tuple[Batch, Tensor]:
        batch = Batch.of([answers[i] for i in group], self._policy.device)
        below = nn.utils.rnn.pad_sequence([hidden[i] for i in group], batch_first=True)  # (B, T, D)
        return batch, below

    def _stats(self, rollout: Rollout, targets: _Targets, steps: list[dict[str, float]]) -> dict[str, float]:
        mask = rollout.mask
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return means | {
            "learning_rate": steps[-1]["learning_rate"],
            "value_learning_rate": self._settings.value_learning_rate,
            "explained_variance": float(ppo_math.explained_variance(rollout.old_v, targets.ret, mask)),
            "kl_per_sequence": rollout.kl,
            "reward_mean": float(rollout.score.mean()),
            "reward_std": float(rollout.score.std(correction=0)),
            "value_mean": float(ppo_math.masked_mean(rollout.old_v, mask)),
            "return_mean": float(ppo_math.masked_mean(targets.ret, mask)),
            "entropy_before": float(ppo_math.masked_mean(rollout.entropy, mask)),
            "importance_mean": float(ppo_math.masked_mean(targets.weight, mask)),
            "effective_sample_size": float(
                ppo_math.effective_sample_size(rollout.old_logp, rollout.behaviour_logp, mask)
            ),
            "answer_tokens_mean": float(mask.sum() / len(mask)),
            "samples": float(len(mask)),
            "iteration_updates": float(len(steps)),
            "updates": float(self._updates),
        }


def _per_answer(x: Tensor, mask: Tensor) -> float:
    """Mean over answers of the sum over an answer's tokens."""
    return float((x * mask).sum() / len(mask))


def _check(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ValueError("no samples")
    for sample in samples:
        if len(sample.behaviour_logp) != len(sample.answer_ids):
            raise ValueError(f"{len(sample.behaviour_logp)} log-probabilities for {len(sample.answer_ids)} tokens")
        if not (math.isfinite(sample.reward) and all(map(math.isfinite, sample.behaviour_logp))):
            raise TrainingDiverged("a sample's reward or a log-probability is not finite")
