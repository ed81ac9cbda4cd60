"""A candidate's trial: it, the live version and the base answer what trained nobody; the gate judges what is seen.

What does not depend on the candidate is asked once, however many candidates a cycle shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learner import reference
from learner.competence import Competence
from learner.dataset import Answer, Dataset, EncodeAnswer
from learner.gate import Evidence
from learner.manner import Manner
from learner.policy import Policy, Sample
from learner.ppo import Trainer
from learner.report import Comparison
from learner.reward_model import RewardModel, fit
from learner.rollouts import Rollouts, Sampled
from learner.safety import Safety
from thumbwheel import config
from thumbwheel.records import split_response_id
from thumbwheel.registry import BASE
from thumbwheel_client.v1 import record_pb2 as pb


@dataclass(frozen=True, slots=True)
class _Known:
    """What the candidate is held against. P prompts, S samples of each."""

    judge: RewardModel | None
    live: list[Sampled]  # P x S, by prompt
    live_scores: NDArray[np.float64]  # (P, S)
    base: Manner
    base_right: frozenset[str]
    base_unsafe: float


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a trial is held with."""

    rollouts: Rollouts
    competence: Competence
    safety: Safety
    policy: Policy
    encode: EncodeAnswer


class Trial:
    """One cycle's trials: the same prompts, the same opponents, the same judge."""

    def __init__(
        self,
        batch: pb.BatchManifest,
        data: Dataset,
        features: NDArray[np.float64],
        held_out: Callable[[Answer], bool],
        settings: config.Learner,
        instruments: Instruments,
    ) -> None:
        """
        Args:
            batch: its parent is the version to beat.
            data: all answers; the prompts and votes of those held out are used.
            features: (N, D), row i for data.answers[i].
            held_out: which answers nothing was trained on.
            settings: of the learner.
            instruments: the policy is left with the adapter of the candidate that was tried last.
        """
        self._batch, self._features, self._settings, self._with = batch, features, settings, instruments
        self._held = data.part(held_out)
        newest: dict[tuple[int, ...], Answer] = {}  # prompt -> its newest answer
        for answer in data.answers:
            if answer.max_tokens and held_out(answer):
                newest.setdefault(answer.prompt_ids, answer)
        self._prompts = list(newest)[: settings.gate.prompts]
        self._turns = [split_response_id(newest[prompt].key)[0] for prompt in self._prompts]
        tokens = max((newest[prompt].max_tokens for prompt in self._prompts), default=1)
        self._tokens = min(settings.ppo.max_answer_tokens, tokens)
        self._known: _Known | None = None
        self.comparisons: tuple[Comparison, ...] = ()
        """Of each prompt the first sample of live and of the candidate that was tried last."""

    async def of(self, candidate: pb.VersionRecord, folder: Path, progress: Callable[[float], None]) -> Evidence:
        """Tries one candidate, whose adapter lies in `folder`."""
        policy, competence, safety = self._with.policy, self._with.competence, self._with.safety
        progress(0.0)
        known = self._known = self._known or await self._hold_against()
        progress(0.4)
        # At once: the last few answers of one call would leave most of the engine's places empty.
        ours, right, unsafe = await asyncio.gather(
            self._ask(candidate.name, self._settings.gate.samples),
            competence.right(candidate.name),
            safety.unsafe(candidate.name),
        )
        progress(0.8)
        await asyncio.to_thread(policy.load_adapter, folder)
        finite = all(np.isfinite(rollout.logp).all() for rollout in ours)
        kl = await asyncio.to_thread(self._kl, ours, candidate.name) if finite else float("nan")
        progress(0.9)
        scores = await asyncio.to_thread(self._scores, known.judge, ours)
        self.comparisons = self._compare(known, ours, scores)
        pieces = reference.windows(self._with.encode)
        return Evidence(
            candidate_scores=scores,
            live_scores=known.live_scores,
            judge_votes=self._held.votes,
            kl=kl,
            candidate=Manner.of(ours, self._settings.gate.samples),
            base=known.base,
            finite=finite and bool(np.isfinite(kl)),
            base_right=known.base_right,
            candidate_right=right,
            questions=competence.questions,
            base_unsafe=known.base_unsafe,
            candidate_unsafe=unsafe,
            perplexity_ratio=await asyncio.to_thread(reference.perplexity_ratio, policy, pieces),
        )

    async def _hold_against(self) -> _Known:
        parent, settings = self._batch.parent, self._settings
        asked = {BASE: 1} | {parent: settings.gate.samples}  # once, where they are the same
        answers, base_right, base_unsafe = await asyncio.gather(
            asyncio.gather(*(self._ask(version, samples) for version, samples in asked.items())),
            self._with.competence.right(BASE),
            self._with.safety.unsafe(BASE),
        )
        found = dict(zip(asked, answers, strict=True))
        judge = None
        if self._held.votes:
            judge, _ = await asyncio.to_thread(fit, self._held, self._features, settings.reward_model)
        scores = await asyncio.to_thread(self._scores, judge, found[parent])
        return _Known(judge, found[parent], scores, Manner.of(found[BASE], asked[BASE]), base_right, base_unsafe)

    async def _ask(self, version: str, samples: int) -> list[Sampled]:
        return await self._with.rollouts.sample(
            version, self._prompts, max_tokens=self._tokens, seed=self._batch.seed, n=samples
        )

    def _scores(self, judge: RewardModel | None, rollouts: Sequence[Sampled]) -> NDArray[np.float64]:
        """(P, S) probabilities; zeros without a judge."""
        shape = (len(self._prompts), self._settings.gate.samples)
        if judge is None or not rollouts:
            return np.zeros(shape)
        return judge.probability(self._with.policy.features([self._answer(rollout) for rollout in rollouts])).reshape(
            shape
        )

    def _compare(self, known: _Known, ours: Sequence[Sampled], scores: NDArray[np.float64]) -> tuple[Comparison, ...]:
        firsts = slice(None, None, self._settings.gate.samples)
        # Without a judge the scores are zeros and mean nothing.
        before, after = (
            (found if known.judge else np.full_like(found, np.nan))[:, 0] for found in (known.live_scores, scores)
        )
        return tuple(
            Comparison(
                turn=turn, before=live.text, after=mine.text, before_score=float(before[i]), after_score=float(after[i])
            )
            for i, (turn, live, mine) in enumerate(zip(self._turns, known.live[firsts], ours[firsts], strict=True))
        )

    def _kl(self, rollouts: Sequence[Sampled], version: str) -> float:
        # Every second: to measure the KL of an answer takes as long as to score five.
        samples = [Sample(*self._answer(rollout), rollout.logp, version) for rollout in rollouts[::2]]
        return Trainer(self._with.policy, self._settings.ppo, seed=0).look_back(samples).kl if samples else 0.0

    def _answer(self, rollout: Sampled) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._prompts[rollout.prompt], rollout.token_ids
