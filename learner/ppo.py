"""PPO on answers, one iteration at a time.

    samples ──► look back (no gradient, once) ──► rewards ──► values ──► advantages ──► epochs x minibatches of updates
                old log-probabilities, states,    score, KL   fitted     GAE            clipped surrogate, value loss,
                reference, KL                                                           KL

Departures from the paper, and why:

- The log-probabilities that the ratio starts from are recomputed here. The engine's (`behaviour_logp`) come from other
  kernels, perhaps another version: the ratio between the two enters as a truncated importance weight instead.
- The reward is terminal, with a KL penalty to the base at every token (arXiv:1909.08593). Its KL is that of the whole
  distributions (arXiv:2504.10637): the log-ratio of the sampled token has the same mean and drowns a few hundred
  answers' scores in noise. A token has no influence on its own term in the reward, so that gradient stands in the loss.
  How far the policy is from the base (`Rollout.kl`) is measured on its own fresh samples, never on those that it is
  just learning: such estimates are biased. It sets the price of the KL (`learner.kl_price`). Within an iteration
  `target_kl` watches.
- The critic starts from the reward model: a value is what that says of the answer so far (`Sample.outlook`), corrected
  by the value head. Before it advises, the head is fitted to the iteration's returns in closed form (VC-PPO,
  arXiv:2503.01491, warms it up by gradient), and advantages are taken from values of answers that the fit had not seen.
  Of the returns' variance, 288 answers: the head alone .30/.32/.27 for three tastes, from the outlook .68/.74/.64. Two
  halves of them gave gradients (lambda .95) whose cosine was .19/.10 with the head alone and .49/.46 with the outlook
  (brief, impersonal): much less luck in every step, and it is luck that spends the KL.
- Lambda is a little lower than the usual .95 for the same reason: that cosine is .65/.61 at .85. Very low it forgets
  what a word leads to: at .3, with the head alone, answers to be brief stayed as long, in fewer and longer words.
- An iteration learns from the best and the worst of its answers (`contrast`; PODS, arXiv:2504.13818): one that scores
  as usual teaches little, and to sample and score an answer took .4 s of two cores where to learn from it took .6 s.
  `Rollout.kl` is then that of the answers kept, which was up to 3 nats less than what the gate finds after the step.
- Every update also holds the policy to the base's own answers to plain questions (`learner.anchor`), as PPO-ptx holds
  to pretraining text. Answers that please say little about how to answer those, and without this they drift.
- The value head reads a detached trunk: with a few hundred answers, values must not bend the policy's features.
- GRPO (`learner.algorithm`) is the same loop without the critic: an answer's advantage, at each of its tokens, is what
  it scored above the other answers to its prompt (arXiv:2402.03300). The KL stands in the loss alone, as there, but is
  that of the distributions; and a token counts the same in a short answer and a long one (DAPO, arXiv:2503.14476).
- The order in which answers come does not matter: folds and shuffles go by what an answer says (`in_order`).
- A minibatch is computed in micro-batches of similar length, each divided by the whole minibatch's answer tokens: the
  gradient is that of the whole, whatever memory allows.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learner import ppo_math
from learner.kl_price import KlPrice
from learner.policy import Answer, Batch, Policy, Sample, microbatches
from thumbwheel import config
from thumbwheel.errors import TrainingDiverged

_LOOK_BACK_SHARE = 0.25  # of an iteration's time, for its progress
_ANCHORS_PER_UPDATE = 6
_VALUE_FOLDS = 4
_VALUE_PRIOR = 256.0
"""How many answers the critic's prior is worth. On 128 answers, out of fold, penalties of 1 to 3 times the states'
variance explained most of the reward model's score: .24/.22/.18 of its variance for three tastes."""

_COLLAPSED_ENTROPY = 0.1
"""Of a token's entropy when the cycle began, what is left where a policy has collapsed."""
_COLLAPSED_ANSWERS = 0.9
"""Share of the answers that is one and the same answer where it has."""
_TELLING_ANSWERS = 8
"""Fewer answers may be alike by chance."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is known of an iteration's B answers, `in_order`, before the first update. A tokens of the longest."""

    answers: list[Answer]
    hidden: list[Tensor]  # B x (T, D), below the adapter
    states: Tensor  # (B, A, D), what the critic sees
    reference: Tensor  # (B, A, D), final states with the adapter off
    mask: Tensor  # (B, A)
    old_logp: Tensor  # (B, A)
    entropy: Tensor  # (B, A)
    kl_old: Tensor  # (B, A), of the policy before this iteration to the base
    behaviour_logp: Tensor  # (B, A)
    outlook: Tensor  # (B, A), values before the head's correction
    score: Tensor  # (B,)

    @property
    def kl(self) -> float:
        """KL of the policy to the base in nats per answer, measured on the policy's own samples."""
        return float(self.kl_old.sum() / len(self.kl_old))


@dataclass(frozen=True, slots=True)
class _Targets:
    """What the updates aim at."""

    old_v: Tensor  # (B, A); 0 without a critic
    adv: Tensor  # (B, A), whitened
    ret: Tensor  # (B, A); 0 without a critic
    weight: Tensor  # (B, A), truncated importance
    kl_price: float  # reward per nat
    kl_coef: float  # the same in units of the whitened advantages


class Trainer:
    """Holds the optimiser over one cycle; the policy carries the weights."""

    def __init__(
        self,
        policy: Policy,
        settings: config.Ppo,
        seed: int,
        anchor: Sequence[Answer] = (),
        *,
        kl_price: float = 0.0,
        critic: bool = True,
    ) -> None:
        """
        Args:
            policy: what is trained.
            settings: how.
            seed: of every shuffle and draw.
            anchor: answers on which the policy shall stay the base.
            kl_price: what the cycle before paid for a nat at last, if more than `kl_coef`.
            critic: PPO; without one it is GRPO.
        """
        self._policy = policy
        self._anchor = anchor
        self._settings = settings
        self._critic = critic
        self._price = KlPrice(settings.kl_coef, settings.kl_budget, settings.fresh_iterations + 1, kl_price)
        self._shuffle = torch.Generator().manual_seed(seed)
        self._updates = 0
        self._entropy: float | None = None  # of a token, when the cycle began
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
            ValueError: no samples, an empty answer, or log-probabilities or an outlook that do not fit it.
            TrainingDiverged: a loss, a gradient or a score is not finite, or the policy has collapsed since the first
                iteration. The weights are those before that update.
        """
        return self.update(self.look_back(samples, progress), progress)

    def update(self, rollout: Rollout, progress: Callable[[float], None] | None = None) -> dict[str, float]:
        """The second half of `iterate`: moves the weights. A caller may look at `rollout.kl` first and refrain."""
        settings = self._settings
        self._check_alive(rollout)
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
        samples = in_order(samples)
        answers = [sample.answer for sample in samples]
        size = (len(answers), max(len(sample.answer_ids) for sample in samples))
        device, width = self._policy.device, self._policy.width
        mask, old_logp, entropy, kl, behaviour_logp, outlook = (torch.zeros(size, device=device) for _ in range(6))
        states, references = (torch.zeros(*size, width, device=device) for _ in range(2))
        hidden = self._policy.activations(answers)
        done = 0
        for group in microbatches(answers, range(len(answers)), self._settings.tokens_per_microbatch):
            batch, below = self._gather(answers, hidden, group)
            rows = group, slice(None, batch.mask.shape[1])
            final = self._policy.upper(below, batch, reference=False)
            reference = self._policy.upper(below, batch, reference=True)
            mask[rows], states[rows], references[rows] = batch.mask, self._policy.states(final), reference.float()
            old_logp[rows], entropy[rows], kl[rows] = self._policy.answer_logps(final, batch, reference)
            done += len(group)
            if progress:
                progress(_LOOK_BACK_SHARE * done / len(answers))
        for row, sample in enumerate(samples):
            behaviour_logp[row, : len(sample.answer_ids)] = torch.tensor(sample.behaviour_logp)
            outlook[row, : len(sample.outlook)] = torch.tensor(sample.outlook)
        score = torch.tensor([sample.reward for sample in samples], device=device)
        return Rollout(answers, hidden, states, references, mask, old_logp, entropy, kl, behaviour_logp, outlook, score)

    def _check_alive(self, rollout: Rollout) -> None:
        entropy = float(ppo_math.masked_mean(rollout.entropy, rollout.mask))
        if self._entropy is None:
            self._entropy = entropy  # what the parent was like is not this cycle's doing: it may be trained out of it
        elif why := collapse(rollout.answers, entropy, self._entropy):
            raise TrainingDiverged(
                f"the policy has collapsed: {why}. Lower learner.ppo.learning_rate or raise learner.ppo.kl_coef."
            )

    def _targets(self, rollout: Rollout) -> _Targets:
        kl_price = self._price.after(rollout.kl)
        return self._against_critic(rollout, kl_price) if self._critic else self._against_group(rollout, kl_price)

    @torch.no_grad()
    def _against_critic(self, rollout: Rollout, kl_price: float) -> _Targets:
        settings, mask = self._settings, rollout.mask
        rewards = ppo_math.token_rewards(rollout.score, rollout.kl_old, mask, kl_price)
        ends = ppo_math.last_step(mask) + (1 - mask)
        old_v = self._fitted_values(rollout, rewards, ends)
        adv, ret = ppo_math.gae(rewards, old_v, ends, settings.gamma, settings.lam)
        # The loss weighs advantages in units of their spread, so the penalty must be in these units too.
        kl_coef = kl_price * float(torch.rsqrt(ppo_math.masked_var(adv, mask) + 1e-8))
        # Over the whole iteration, not the minibatch: a minibatch of a few answers is a poor judge of the mean.
        adv = ppo_math.whiten(adv, mask)
        weight = ppo_math.truncated_importance(rollout.old_logp, rollout.behaviour_logp, settings.max_importance)
        return _Targets(old_v, adv, ret, weight, kl_price, kl_coef)

    @torch.no_grad()
    def _against_group(self, rollout: Rollout, kl_price: float) -> _Targets:
        settings, mask = self._settings, rollout.mask
        numbers: dict[tuple[int, ...], int] = {}
        group = [numbers.setdefault(prompt, len(numbers)) for prompt, _ in rollout.answers]
        adv, std = ppo_math.group_advantages(rollout.score, torch.tensor(group, device=mask.device))
        # The loss weighs advantages in units of their groups' spread, so the penalty must be in these units too.
        kl_coef = kl_price * float(torch.rsqrt((std**2).mean() + 1e-8))
        weight = ppo_math.truncated_importance(rollout.old_logp, rollout.behaviour_logp, settings.max_importance)
        nothing = torch.zeros_like(mask)
        return _Targets(nothing, adv[:, None] * mask, nothing, weight, kl_price, kl_coef)

    def _fitted_values(self, rollout: Rollout, rewards: Tensor, ends: Tensor) -> Tensor:
        """Corrects the value head where its predictions were off; (B, A) values that have not seen their own answer."""
        policy, mask = self._policy, rollout.mask
        values = (rollout.outlook + policy.values(rollout.states)) * mask
        folds = min(_VALUE_FOLDS, len(mask))
        if folds < 2:
            return values
        _, returns = ppo_math.gae(rewards, torch.zeros_like(rewards), ends, self._settings.gamma, lam=1.0)
        chosen = mask.bool()
        fold = (torch.arange(len(mask), device=mask.device) % folds)[:, None].expand_as(mask)[chosen]
        correction, weight, bias = ppo_math.fit_values(
            rollout.states[chosen], (returns - values)[chosen], fold, folds, _VALUE_PRIOR / len(mask)
        )
        policy.value_head.weight.add_(weight)
        policy.value_head.bias.add_(bias)
        return values.masked_scatter(chosen, values[chosen] + correction)

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
            rows = group, slice(None, batch.mask.shape[1])
            old_logp, reference = rollout.old_logp[rows], rollout.reference[rows].to(below)
            old_v, adv, ret, weight = (x[rows] for x in (targets.old_v, targets.adv, targets.ret, targets.weight))

            final = policy.upper(below, batch, reference=False)
            logp, entropy, kl = policy.answer_logps(final, batch, reference, entropy_grad=settings.entropy_coef > 0)

            pg_loss = ppo_math.policy_loss(logp, old_logp, adv, batch.mask, settings.clip_eps, weight, count)
            v_loss = torch.zeros_like(pg_loss)
            if self._critic:
                v = rollout.outlook[rows] + policy.values(policy.states(final))
                v_loss = ppo_math.value_loss(v, old_v, ret, batch.mask, settings.value_clip, count)
            ent = ppo_math.masked_mean(entropy, batch.mask, count)
            kl_loss = ppo_math.masked_mean(kl, batch.mask, count)
            loss = pg_loss + settings.value_coef * v_loss - settings.entropy_coef * ent + targets.kl_coef * kl_loss
            loss.backward()  # type: ignore[no-untyped-call]

            with torch.no_grad():
                parts = {
                    "loss": loss,
                    "policy_loss": pg_loss,
                    "value_loss": v_loss,
                    "entropy": ent,
                    "kl_loss": kl_loss,
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
        figures["anchor_kl"] = self._hold()
        return figures | self._step(figures["loss"] + settings.anchor_coef * figures["anchor_kl"])

    def _hold(self) -> float:
        """Adds the gradient of the KL to the base on a few anchors; returns that KL in nats per token."""
        if not (self._anchor and self._settings.anchor_coef):
            return 0.0
        drawn = torch.randperm(len(self._anchor), generator=self._shuffle)[:_ANCHORS_PER_UPDATE]
        answers = [self._anchor[i] for i in drawn]
        batch, below = self._gather(answers, self._policy.activations(answers), list(range(len(answers))))
        reference = self._policy.upper(below, batch, reference=True)
        final = self._policy.upper(below, batch, reference=False)
        _, _, kl = self._policy.answer_logps(final, batch, reference)
        loss = ppo_math.masked_mean(kl, batch.mask)
        (self._settings.anchor_coef * loss).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

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
            "explained_variance": float(ppo_math.explained_variance(targets.old_v, targets.ret, mask)),
            "kl_per_sequence": rollout.kl,
            "kl_price": targets.kl_price,
            "reward_mean": float(rollout.score.mean()),
            "reward_std": float(rollout.score.std(correction=0)),
            "value_mean": float(ppo_math.masked_mean(targets.old_v, mask)),
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


def collapse(answers: Sequence[Answer], entropy: float, before: float) -> str:
    """Why these fresh answers are those of a policy that has collapsed; empty where they are not.

    Args:
        answers: prompts and what was said to them.
        entropy: of a token along them, nats.
        before: the same at a time when all was well.
    """
    if entropy < _COLLAPSED_ENTROPY * before:
        return f"the entropy of a token has fallen from {before:.3g} to {entropy:.3g} nats"
    alike = max(Counter(answer for _, answer in answers).values())
    if len(answers) >= _TELLING_ANSWERS and alike >= _COLLAPSED_ANSWERS * len(answers):
        return f"{alike} of {len(answers)} answers are one and the same"
    return ""


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples in the same order, however they came: as good as shuffled, by a digest of what they say."""

    def place(sample: Sample) -> tuple[bytes, float, tuple[float, ...]]:
        return hashlib.sha256(repr(sample.answer).encode()).digest(), sample.reward, sample.behaviour_logp

    return sorted(samples, key=place)


def contrast(samples: Sequence[Sample], keep: int) -> list[Sample]:
    """The `keep` samples with the most telling rewards: half from the top, half from the bottom."""
    if len(samples) <= keep:
        return list(samples)
    ranked = sorted(in_order(samples), key=lambda sample: sample.reward)  # stable: which of two equals stays is settled
    low = keep // 2
    return ranked[:low] + ranked[low - keep :]


def groups(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Answers to the same prompt, of prompts with several."""
    by_prompt: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in in_order(samples):
        by_prompt[sample.prompt_ids].append(sample)
    return [group for group in by_prompt.values() if len(group) > 1]


def contrast_groups(samples: Sequence[Sample], keep: int) -> list[Sample]:
    """Whole groups, those whose rewards lie farthest apart first, of `keep` samples at most, but one group at least."""
    kept: list[Sample] = []
    for group in sorted(groups(samples), key=lambda group: -statistics.pstdev(one.reward for one in group)):
        if not kept or len(kept) + len(group) <= keep:
            kept += group
    return kept


def _check(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ValueError("no samples")
    for sample in samples:
        if len(sample.behaviour_logp) != len(sample.answer_ids):
            raise ValueError(f"{len(sample.behaviour_logp)} log-probabilities for {len(sample.answer_ids)} tokens")
        if len(sample.outlook) not in (0, len(sample.answer_ids)):
            raise ValueError(f"an outlook of {len(sample.outlook)} values for {len(sample.answer_ids)} tokens")
        if not all(map(math.isfinite, (sample.reward, *sample.behaviour_logp, *sample.outlook))):
            raise TrainingDiverged("a sample's reward, outlook or a log-probability is not finite")
