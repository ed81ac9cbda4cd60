"""LoRA on top of the reward model: what the head on frozen features cannot say, learned once votes are many.

    activations ──► upper layers, an adapter of the reward's own on ──► mean over the answer's tokens ──► · w ──► lift
                                                         an answer's logit = what the head says of it + its lift

- It begins at nothing (w = 0): the reward model is the head's until something else is learned.
- The head's logits to which it is added while it learns are out of fold. In fold the head has already explained the
  noise of the very votes that are to teach what it does not know.
- One pass per cycle over at most ANSWERS answers, from where the parent's cycle left it: what a pass costs is bounded,
  and the next one goes on.
- Conversations of one fold never train it, in no cycle. On these it must lower the log loss by more than a standard
  error, or it is not used; where it is surely worse it is not handed on either, and the next cycle starts afresh.
- The critic's outlook and the doubt remain the head's. So does the gate's judge: what it judges has not seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn import functional

from learner import adapter
from learner.dataset import Dataset, fold
from learner.policy import Answer, Batch, Policy, microbatches
from learner.reward_model import Floats, Targets

FILE = Path("training") / "reward_lora.safetensors"
NAME = "reward"
FOLDS = 5
UNSEEN = 0
"""The fold that never trains it."""
ANSWERS = 512
JUDGED = 256
"""Most answers that a pass learns from, and that it is judged on."""
LEARNING_RATE = 1e-3
"""A pass is a few dozen steps. A tiny model's gain in nats, 400 votes on order of words: .026 after six passes at 3e-4,
.094 after four at 1e-3, .45 after four at 3e-3. With the embedded model one pass gained nothing at 3e-4 (400 votes) nor
at 1e-3 (1,000)."""
_HEAD = "head"


@dataclass(frozen=True, slots=True)
class Gain:
    """How much lower the log loss per vote is with it, on conversations that it never saw; nats."""

    mean: float
    error: float
    """Standard error over conversations, which are what was drawn."""

    @property
    def pays(self) -> bool:
        return self.mean > self.error

    @property
    def harms(self) -> bool:
        return not self.mean >= -self.error  # so does what is not a number


class RewardLora:
    """Of one cycle. Before it has learned, and where that does not pay, no answer is lifted."""

    def __init__(self, policy: Policy, tokens_per_microbatch: int) -> None:
        self._policy = policy
        self._tokens = tokens_per_microbatch
        self._head = torch.zeros(policy.width, device=policy.device, requires_grad=True)  # (D,)
        self.gain: Gain | None = None

    def learn(
        self,
        data: Dataset,
        logits: Floats,
        parent: Path | None,
        seed: int,
        progress: Callable[[float], None] | None = None,
    ) -> Gain:
        """One pass over the votes, and what it has brought.

        Args:
            data: votes.
            logits: (N,) what the head says of data.answers without having seen them.
            parent: the folder of the version to go on from; None, or nothing of this there, starts afresh.
            seed: of the order, and of a fresh start.

        Raises:
            AdapterRefused: the parent's has another shape, or is not finite.
        """
        targets = Targets.of(data)
        unseen = np.array([fold(answer.conversation, FOLDS) == UNSEEN for answer in data.answers])
        dice = np.random.default_rng(seed)
        groups = _together(targets, len(data.answers), dice)
        taught = _some([group for group in groups if not unseen[group[0]]], ANSWERS)
        judged = [row for group in _some([group for group in groups if unseen[group[0]]], JUDGED) for row in group]
        pairs = [(answer.prompt_ids, answer.answer_ids) for answer in data.answers]
        total = sum(map(len, taught)) + len(judged)
        with self._policy.wearing(NAME) as tensors:
            self._begin(tensors, parent, seed)
            optimiser = torch.optim.AdamW([*self._policy.adapter_parameters(), self._head], LEARNING_RATE)
            done = 0
            for rows in _steps(taught, pairs, self._tokens):
                self._step(optimiser, [pairs[row] for row in rows], rows, logits, targets)
                done += len(rows)
                if progress:
                    progress(done / total)
        lift = np.zeros(len(data.answers))
        lift[judged] = self.of([pairs[row] for row in judged])
        keep = np.isin(np.arange(len(data.answers)), judged)
        self.gain = _gain(data, targets.on(keep), logits, lift)
        return self.gain

    def lift(self, pairs: Sequence[Answer]) -> Floats:
        """(N,) what to add to the head's logits: 0 where that does not pay."""
        return self.of(pairs) if self.gain and self.gain.pays else np.zeros(len(pairs))

    @torch.no_grad()
    def of(self, pairs: Sequence[Answer]) -> Floats:
        """(N,) what it says, used or not."""
        lifts = np.zeros(len(pairs))
        with self._policy.wearing(NAME):
            for group in microbatches(pairs, range(len(pairs)), self._tokens):
                lifts[group] = self._forward([pairs[i] for i in group]).double().cpu().numpy()
        return lifts

    def save(self, folder: Path) -> None:
        """Beside what else a version keeps of its training, for the next cycle; nothing if it harms."""
        if self.gain is None or self.gain.harms:
            return
        (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
        with self._policy.wearing(NAME) as tensors:
            state = adapter.on_cpu(tensors | {_HEAD: self._head})
        safetensors.torch.save_file(state, folder / FILE, {"format": "pt"})

    def _begin(self, tensors: dict[str, Tensor], parent: Path | None, seed: int) -> None:
        state = tensors | {_HEAD: self._head.detach()}
        if parent and (parent / FILE).is_file():
            given = safetensors.torch.load_file(parent / FILE)
            adapter.check(parent.name, given, state)
        else:
            given = adapter.fresh(tensors, seed) | {_HEAD: torch.zeros_like(self._head)}
        adapter.copy(given, state)

    def _step(
        self, optimiser: torch.optim.Optimizer, pairs: list[Answer], rows: list[int], logits: Floats, targets: Targets
    ) -> None:
        place = {row: number for number, row in enumerate(rows)}
        votes = targets.on(np.isin(np.arange(len(logits)), rows))

        def at(which: NDArray[np.int64]) -> Tensor:
            return torch.tensor([place[row] for row in which.tolist()], dtype=torch.long, device=self._policy.device)

        def told(values: Floats) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._policy.device)

        z = told(logits[rows]) + self._forward(pairs)  # (B,)
        label_loss = functional.binary_cross_entropy_with_logits(
            z[at(votes.rows)], told(votes.values), told(votes.weights), reduction="sum"
        )
        pair_loss = told(votes.pair_weights) @ functional.softplus(z[at(votes.worse)] - z[at(votes.better)])
        weight = votes.weights.sum() + votes.pair_weights.sum()
        if not weight:
            return
        optimiser.zero_grad()
        ((label_loss + pair_loss) / weight).backward()
        nn.utils.clip_grad_norm_(self._policy.adapter_parameters(), 1.0)
        optimiser.step()

    def _forward(self, pairs: Sequence[Answer]) -> Tensor:
        """(B,) lifts; the policy wears the adapter."""
        batch = Batch.of(pairs, self._policy.device)
        below = nn.utils.rnn.pad_sequence(self._policy.activations(pairs), batch_first=True)  # (B, T, D)
        # The states of the answer's tokens themselves, not of those that predict them: the last word is to be seen.
        own = replace(batch, predictors=batch.predictors + 1)
        final = self._policy.upper(below, own, reference=False).float()
        states = functional.rms_norm(final, (final.shape[-1],)) * batch.mask[..., None]
        mean = states.sum(1) / batch.mask.sum(1, keepdim=True)  # (B, D)
        return mean @ self._head


def _together(targets: Targets, answers: int, dice: np.random.Generator) -> list[list[int]]:
    """Answers with votes, shuffled in groups: those that are compared with one another are one."""
    edges = (np.ones(len(targets.better)), (targets.better, targets.worse))
    _, group = connected_components(coo_array(edges, shape=(answers, answers)), directed=False)
    members: dict[int, list[int]] = {}
    for row in np.unique(np.concatenate([targets.rows, targets.better, targets.worse])).tolist():
        members.setdefault(int(group[row]), []).append(row)
    found = list(members.values())
    return [found[i] for i in dice.permutation(len(found))]


def _some(groups: list[list[int]], most: int) -> list[list[int]]:
    """The first of them, with `most` answers at most."""
    sizes = np.cumsum([len(group) for group in groups])
    return groups[: int(np.searchsorted(sizes, most, side="right"))]


def _steps(groups: Sequence[list[int]], pairs: Sequence[Answer], tokens: int) -> Iterator[list[int]]:
    """Answers of as many groups as `tokens` hold with their padding; a group that is too large goes alone."""
    step: list[int] = []
    for group in groups:
        longest = max(sum(map(len, pairs[row])) for row in (*step, *group))
        if step and longest * (len(step) + len(group)) > tokens:
            yield step
            step = []
        step = [*step, *group]
    if step:
        yield step


def _gain(data: Dataset, targets: Targets, logits: Floats, lift: Floats) -> Gain:
    weights = np.concatenate([targets.weights, targets.pair_weights])
    gained = targets.losses(logits) - targets.losses(logits + lift)
    voted = np.concatenate([targets.rows, targets.better])
    _, conversation = np.unique([data.answers[row].conversation for row in voted], return_inverse=True)
    by_conversation = np.bincount(conversation, gained), np.bincount(conversation, weights)
    count, total = len(by_conversation[0]), weights.sum()
    if count < 2 or not total:
        return Gain(0.0, 0.0)
    mean = float(gained.sum() / total)
    # Of a ratio of sums over conversations.
    spread = by_conversation[0] - mean * by_conversation[1]
    return Gain(mean, float(np.sqrt((spread**2).sum() * count / (count - 1)) / total))
