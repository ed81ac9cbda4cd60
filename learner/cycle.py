"""One turn of the wheel: from a frozen batch of votes to a version that serves, or a reason why not.

    vote stream ──freeze──► batch ──► dataset ──► reward model ──► PPO ◄──rollouts── server
                                         └───► DPO, KTO ──────┐    │
                         registry, lineage, XACK ◄──commit── gate ◄┘

Read `Wheel.turn` first; everything else is in the order in which it is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learner import metrics, tripwires
from learner.anchor import Anchor
from learner.competence import Competence
from learner.dataset import Answer, Dataset, EncodeAnswer, held_out
from learner.features import FeatureCache
from learner.gate import judge
from learner.journal import Journal
from learner.policy import Policy, Sample
from learner.ppo import Rollout, Trainer, contrast, contrast_groups, groups
from learner.preferences import preferences, verdicts
from learner.publish import Publisher
from learner.raters import weigh
from learner.reporter import Reporter, Story
from learner.reward import Reward
from learner.reward_lora import RewardLora
from learner.reward_model import RewardModel, fit, folds_of
from learner.rollouts import Rollouts
from learner.safety import Safety
from learner.stages import Stages
from learner.trial import Instruments, Trial
from thumbwheel import config, tracing
from thumbwheel.artifacts import verify_version
from thumbwheel.erasure import Erasure
from thumbwheel.errors import (
    AdapterRefused,
    Conflict,
    CorruptRecord,
    LearnerFrozen,
    NotReady,
    PersonErased,
    TrainingDiverged,
)
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.freeze import Brake
from thumbwheel.lease import Lease
from thumbwheel.registry import Registry
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import StreamId, VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

log = logging.getLogger("thumbwheel.learner.cycle")

TURNS_PER_READ = 200
GATE_TRIES = 3
"""Steps of the training that are shown to the gate before the cycle gives up."""
LEAST_SAMPLES = 16
"""Fewer rated answers than this make no iteration of their own: their whitened advantages would be noise."""


@dataclass(slots=True)
class Outcome:
    """How a cycle ended."""

    name: str
    reasons: tuple[str, ...]
    version: pb.VersionRecord | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def release(self) -> str | None:
        return self.version.name if self.version and self.name in ("released", "on_trial") else None


@dataclass(slots=True)
class Wheel:
    """What a cycle works with. One per learner process."""

    settings: config.Learner
    stream: VoteStream
    turns: TurnLog
    feedback: FeedbackLog
    registry: Registry
    erasure: Erasure
    brake: Brake
    lease: Lease
    policy: Policy
    features: FeatureCache
    rollouts: Rollouts
    publisher: Publisher
    competence: Competence
    safety: Safety
    anchor: Anchor
    encode: EncodeAnswer
    release: config.Release = field(default_factory=config.Release)
    tick: Callable[[float], None] = lambda ratio: metrics.progress.set(ratio)
    reporter: Reporter | None = None
    """Writes a page about each cycle."""
    story: Story = field(default_factory=Story)
    """What the cycle under way has to tell."""
    stages: Stages = field(default_factory=Stages)
    """Where it is."""

    async def turn(self) -> pb.CycleRecord:
        """Runs one cycle and commits it. Killed anywhere, the next call takes the same batch again.

        Raises:
            LearnerFrozen: these votes trip a wire; they wait for a person, and so does the learner.
        """
        with tracing.span("cycle") as cycle, contextlib.closing(Stages(cycle)) as self.stages:
            return await self._turn()

    async def _turn(self) -> pb.CycleRecord:
        started = time.monotonic()
        self.story = Story()
        self.stages.enter("collecting")
        batch = await self._freeze()
        log.info(
            "cycle_started", extra={"cycle": batch.cycle_id, "votes": len(batch.event_ids), "parent": batch.parent}
        )
        await self._check_parent(batch.parent)
        seen = await self._watch_wires(batch)
        outcome = await self._learn(batch)
        if outcome.name == "released" and self.release.mode == "canary":
            outcome.name = "on_trial"
        self.stages.enter("committing")
        record = pb.CycleRecord(
            batch=batch,
            outcome=outcome.name,
            version=outcome.version.name if outcome.version else "",
            reasons=outcome.reasons,
            metrics=outcome.metrics | seen | {"votes": len(batch.event_ids), "seconds": time.monotonic() - started},
        )
        record.finished_at.GetCurrentTime()
        await self._commit(record, outcome)
        self.stages.cycle.tell(
            thumbwheel__cycle=batch.cycle_id,
            thumbwheel__outcome=record.outcome,
            thumbwheel__version=record.version,
            thumbwheel__votes=len(batch.event_ids),
        )
        await self.publisher.sweep(batch.cycle_id)
        self._journal.forget()
        await self.stream.trim()
        metrics.cycles.labels(record.outcome).inc()
        metrics.last_success.set_to_current_time()
        metrics.cycle_seconds.set(time.monotonic() - started)
        log.info(
            "cycle_committed",
            extra={"cycle": batch.cycle_id, "outcome": record.outcome, "version": record.version}
            | {key: round(value, 4) for key, value in record.metrics.items()},
        )
        if self.reporter:
            await self.reporter.tell(record, self.story)
        # What people have said stays in memory no longer than it is needed.
        self.story = Story()
        self.policy.forget()
        return record

    async def _commit(self, record: pb.CycleRecord, outcome: Outcome) -> None:
        try:
            trial = outcome.name == "on_trial"
            await self.registry.commit_cycle(self.lease, record, outcome.release, trial=trial)
        except Conflict as error:
            # Somebody promoted or rolled back while this cycle ran; what they chose stands.
            record.outcome = "superseded"
            record.reasons[:] = [str(error)]
            await self.registry.commit_cycle(self.lease, record, None)

    async def _freeze(self) -> pb.BatchManifest:
        live = await self.registry.live()
        number = await self.registry.committed() + 1
        return await self.stream.freeze(
            self.lease, f"cycle-{number}", live.name, self.settings.seed + number, self.settings.max_votes
        )

    async def _check_parent(self, name: str) -> None:
        """A parent that is torn, or gone, is taken back, and the votes wait for a cycle from the version before it.

        Raises:
            AdapterRefused, CorruptRecord: it was.
        """
        try:
            parent = await self.registry.get(name)
            if parent.path:
                await asyncio.to_thread(verify_version, self.publisher.root, parent)
        except (AdapterRefused, CorruptRecord) as error:
            # Servers that load it refuse it too, but those that hold it would go on with what nobody can train from.
            with contextlib.suppress(Conflict, NotReady):
                await self.registry.roll_back(f"the learner refused it: {error}", expected_live=name)
            await self.stream.thaw(self.lease)
            raise

    async def _watch_wires(self, batch: pb.BatchManifest) -> dict[str, float]:
        """Figures of the batch, for those after it.

        Raises:
            LearnerFrozen: it trips a wire.
        """
        events = await self.stream.read(batch)
        past = await self.registry.lineage(tripwires.LOOK_BACK)
        found = tripwires.look(events, past, batch.parent, self.settings.tripwires, self.settings.raters.crowd)
        if found and not await self.brake.pardoned(batch.digest):
            await self.brake.freeze(self.lease, batch.cycle_id, batch.digest, found)
            for each in found:
                log.error(
                    "frozen",
                    extra={
                        "cycle": batch.cycle_id,
                        "wire": each.wire,
                        "found": each.words,
                        "answers": list(each.samples),
                    },
                )
            raise LearnerFrozen(f"frozen by {', '.join(each.wire for each in found)}: see `thumbwheel unfreeze`")
        return tripwires.figures(events)

    async def _learn(self, batch: pb.BatchManifest) -> Outcome:
        began = int(time.time() * 1000)
        data, fresh = await self._collect(batch)
        self.story.data = data
        train = data.part(lambda answer: not self._held_out(answer))
        least = self.settings.reward_model.min_votes
        if train.votes < least:
            return Outcome("too_few_votes", (f"{train.votes:.0f} usable votes to learn from, {least} are needed",))

        self.stages.enter("reward_model")
        features = await self.features.of(data.answers, self.policy, self.tick)
        weighed = await asyncio.to_thread(weigh, data, features, self.settings.raters)
        metrics.quarantined_edits.set(weighed.quarantined)
        metrics.distrusted_raters.set(len(weighed.distrusted))
        data = weighed.data
        train = data.part(lambda answer: not self._held_out(answer))
        if train.votes < least:
            reason = f"usable votes weigh {train.votes:.0f}, {least} are needed: there are raters who are not trusted"
            return Outcome("too_few_votes", (reason,))
        reward_model, quality = await asyncio.to_thread(fit, train, features, self.settings.reward_model)
        self.story.reward_model, self.story.quality = reward_model, quality
        metrics.reward_model(quality)
        measured = {
            "reward_model_auc": quality.auc,
            "reward_model_auc_later": quality.auc_later,
            "reward_model_ece": quality.ece,
            "reward_model_agreement": quality.agreement,
            "up_rate": quality.up_rate,
        }
        log.info("reward_model", extra={"cycle": batch.cycle_id} | {k: round(v, 4) for k, v in measured.items()})
        floor = self.settings.reward_model.min_auc
        if not quality.floor_value >= floor:
            reason = f"the reward model's held-out AUC is {quality.floor_value:.2f}, the floor {floor:.2f}"
            return Outcome("reward_model_below_floor", (reason,), None, measured)

        direct = self.settings.algorithm in ("dpo", "kto")
        lora = RewardLora(self.policy, self.settings.ppo.tokens_per_microbatch)
        if not direct and 0 < self.settings.reward_model.lora_votes <= train.votes:
            measured |= await self._tune(lora, batch, train, reward_model, features)

        self.stages.enter("training")
        try:
            if direct:
                stages, trained = await self._learn_directly(batch, train, fresh)
            else:
                reward = Reward(reward_model, lora, self.policy, self.settings)
                stages, trained = await self._optimise(batch, train, fresh, reward, features)
        except TrainingDiverged as error:
            return Outcome("diverged", (str(error),), None, measured)
        measured |= trained
        if not stages:
            wanted = (
                "answers with a vote" if self.settings.algorithm == "kto" else "pairs of a better and a worse answer"
            )
            reason = f"{trained['direct_examples']:.0f} {wanted} to learn from, {LEAST_SAMPLES} are needed"
            return Outcome("too_few_votes", (reason,), None, measured)

        self.stages.enter("gate")
        instruments = Instruments(self.rollouts, self.competence, self.safety, self.policy, self.encode)
        trial = Trial(batch, data, features, self._held_out, self.settings, instruments)
        # From the last step back: steps that went too far must not cost the votes that those before them used well.
        for candidate in reversed(stages[-GATE_TRIES:]):
            folder = self.publisher.root / candidate.path
            evidence = await trial.of(candidate, folder, self.tick)
            self.story.comparisons = trial.comparisons
            verdict = judge(evidence, self.settings.gate)
            metrics.verdicts.labels("passed" if verdict.passed else "refused").inc()
            log.info(
                "gate", extra={"version": candidate.name, "passed": verdict.passed, "reasons": list(verdict.reasons)}
            )
            if verdict.passed:
                break
        # In this order: an erasure that comes after the look is told of this version, and one before it ends the cycle.
        await self.erasure.note_learned(candidate.name, data.raters)
        if await self.erasure.erased_since(data.raters, began):
            self._journal.forget()
            raise PersonErased(f"somebody was erased whose votes {candidate.name} has learned from")
        version = await self.registry.set_state(candidate.name, pb.VERSION_STATE_CANDIDATE, verdict.reasons)
        name = "released" if verdict.passed else "rejected"
        return Outcome(name, verdict.reasons, version, measured | verdict.metrics)

    @property
    def _journal(self) -> Journal:
        return Journal(self.rollouts, self.publisher.root)

    def _held_out(self, answer: Answer) -> bool:
        return held_out(answer.conversation, self.settings.gate.holdout)

    async def _collect(self, batch: pb.BatchManifest) -> tuple[Dataset, frozenset[str]]:
        """The votes of the batch and of the window before it, and the keys of the answers that the batch rated."""
        events = await self.stream.read(batch)
        metrics.dead_letters.set(await self.stream.dead_letters())
        rated = dict.fromkeys(event.turn_id for _, event in events)
        votes_traces = {event.turn_id: event.traceparent for _, event in events}
        ids = list(rated)
        async for turn_id in self.feedback.rated_turns(self.settings.reward_model.window):
            if turn_id not in rated:
                ids.append(turn_id)
        # Votes that came after the batch was frozen wait for theirs: a cycle that is repeated must see what it saw.
        last = StreamId.parse(batch.event_ids[-1]) if batch.event_ids else StreamId(0, 0)
        data, fresh = Dataset(), set[str]()
        for start in range(0, len(ids), TURNS_PER_READ):
            part = ids[start : start + TURNS_PER_READ]
            turns, votes = await self.turns.get_many(part), await self.feedback.current(part)
            for turn in turns:
                if turn is None:
                    continue
                before = len(data.answers)
                known = [vote for vote in votes.get(turn.record.turn_id, ()) if StreamId.parse(vote[0]) <= last]
                data.add_turn(turn, known, self.encode)
                if turn.record.turn_id in rated:
                    self.stages.cycle.link((turn.record.traceparent, votes_traces[turn.record.turn_id]))
                    fresh |= {answer.key for answer in data.answers[before:]}
        return data, frozenset(fresh)

    async def _tune(
        self,
        lora: RewardLora,
        batch: pb.BatchManifest,
        train: Dataset,
        reward_model: RewardModel,
        features: NDArray[np.float64],
    ) -> dict[str, float]:
        """Lets LoRA learn what the head does not know; figures of what that brought."""
        logits = reward_model.logit_unseen(features, folds_of(train, self.settings.reward_model.folds))
        folder = self._folder(await self.registry.get(batch.parent))
        gain = await asyncio.to_thread(lora.learn, train, logits, folder, batch.seed, self.tick)
        metrics.reward_lora_gain.set(gain.mean)
        figures = {"reward_lora_gain": gain.mean, "reward_lora_gain_error": gain.error}
        log.info("reward_lora", extra={"cycle": batch.cycle_id, "pays": gain.pays} | figures)
        return figures | {"reward_lora_pays": float(gain.pays)}

    async def _optimise(
        self,
        batch: pb.BatchManifest,
        train: Dataset,
        fresh: frozenset[str],
        reward: Reward,
        features: NDArray[np.float64],
    ) -> tuple[list[pb.VersionRecord], dict[str, float]]:
        """PPO or GRPO: one iteration on rated traffic, then iterations on fresh rollouts that spend no votes.

        Returns the staged versions in order, the last being the most trained, and figures of the training.
        """
        settings = self.settings.ppo

        def save(folder: Path) -> None:
            self.policy.save_adapter(folder)
            reward.lora.save(folder)

        parent = await self._start_from(batch.parent)
        anchor = await self.anchor.answers() if settings.anchor_coef else ()
        price = parent.metrics.get("ppo_kl_price", 0.0)
        trainer = Trainer(self.policy, settings, batch.seed, anchor, kl_price=price, critic=not self._grouped)
        recent = await self._recent_versions(parent)
        samples = await asyncio.to_thread(self._rated_samples, train, fresh, recent, reward, features)
        if self._grouped:
            samples = [sample for group in groups(samples) for sample in group]
        stats: dict[str, float] = {}
        stages: list[pb.VersionRecord] = []
        if len(samples) >= LEAST_SAMPLES:
            rollout = await self._look_back(trainer, samples, reward)
            stats = await self._update(trainer, rollout, samples, batch, 0)
        # Answers to learn from or not, their prompts are what people ask; only edits, which repeat one, have no length.
        prompts = [answer for answer in train.answers if answer.max_tokens and not self._held_out(answer)]
        for number in range(1, settings.fresh_iterations + 1):
            stages.append(await self.publisher.stage(save, batch, len(stages), {"iteration": number - 1}))
            samples = await self._sample(stages[-1].name, prompts, reward, batch.seed + 1000 * number)
            rollout = await self._look_back(trainer, samples, reward)
            if rollout.kl >= settings.kl_budget:
                log.info("kl_budget_reached", extra={"cycle": batch.cycle_id, "kl": round(rollout.kl, 3)})
                if len(stages) > 1:
                    stages.pop()  # it is the one that went too far
                break
            stats = await self._update(trainer, rollout, samples, batch, number)
        else:
            stages.append(
                await self.publisher.stage(save, batch, len(stages), {"iteration": settings.fresh_iterations})
            )
        return stages, {f"ppo_{name}": value for name, value in stats.items()}

    def _rated_samples(
        self,
        train: Dataset,
        fresh: frozenset[str],
        recent: frozenset[str],
        reward: Reward,
        features: NDArray[np.float64],
    ) -> list[Sample]:
        """The batch's answers that the policy can learn from, rewarded."""
        settings = self.settings.ppo
        usable = {
            index: vote
            for index, vote in train.own_votes().items()
            if (answer := train.answers[index]).trainable
            and len(answer.answer_ids) <= settings.max_answer_tokens
            and answer.key in fresh
            and answer.version in recent
        }
        answers = [train.answers[index] for index in usable]
        pairs = [(answer.prompt_ids, answer.answer_ids) for answer in answers]
        rewards = reward.of_rated(pairs, features[list(usable)], list(usable.values()))
        return [
            Sample(answer.prompt_ids, answer.answer_ids, answer.behaviour_logp, answer.version, worth)
            for answer, worth in zip(answers, rewards, strict=True)
        ]

    async def _start_from(self, name: str) -> pb.VersionRecord:
        """Puts the policy where a version stands."""
        parent = await self.registry.get(name)
        await asyncio.to_thread(self.policy.load_adapter, self._folder(parent))
        return parent

    def _folder(self, version: pb.VersionRecord) -> Path | None:
        """None for the base."""
        return self.publisher.root / version.path if version.path else None

    async def _learn_directly(
        self, batch: pb.BatchManifest, train: Dataset, fresh: frozenset[str]
    ) -> tuple[list[pb.VersionRecord], dict[str, float]]:
        """DPO or KTO on what the batch says. Returns as `_optimise`, a version per epoch; none of too few votes."""
        # Here, as it takes seconds and brings a lot that the other algorithms have no use for.
        from learner import direct

        settings = self.settings
        choose = preferences if settings.algorithm == "dpo" else verdicts
        examples = choose(train, fresh, settings.ppo.max_answer_tokens, batch.seed)
        stats = {"examples": float(len(examples))}
        stages: list[pb.VersionRecord] = []
        if len(examples) < LEAST_SAMPLES:
            return stages, {f"direct_{name}": value for name, value in stats.items()}
        await self._start_from(batch.parent)
        with tempfile.TemporaryDirectory(prefix="thumbwheel-") as scratch:
            epochs: list[Path] = []

            def keep(figures: dict[str, float]) -> None:
                self.story.iterations.append({"iteration": float(len(epochs))} | figures)
                epochs.append(Path(scratch) / str(len(epochs)))
                self.policy.save_adapter(epochs[-1])
                stats.update(figures)

            await asyncio.to_thread(
                direct.train, self.policy, examples, settings.direct, settings.ppo.tokens_per_microbatch,
                batch.seed, keep, self.tick,
            )  # fmt: skip
            for number, folder in enumerate(epochs):
                await asyncio.to_thread(self.policy.load_adapter, folder)
                stages.append(await self.publisher.stage(self.policy.save_adapter, batch, number, {"epoch": number}))
        return stages, {f"direct_{name}": value for name, value in stats.items()}

    async def _recent_versions(self, parent: pb.VersionRecord) -> frozenset[str]:
        """The parent and the `max_staleness` versions before it."""
        names, version = [parent.name], parent
        while len(names) <= self.settings.ppo.max_staleness and version.parent:
            version = await self.registry.get(version.parent)
            names.append(version.name)
        return frozenset(names)

    @property
    def _grouped(self) -> bool:
        """Whether an answer is held against others to its prompt, not against a critic's expectation."""
        return self.settings.algorithm == "grpo"

    async def _look_back(self, trainer: Trainer, samples: Sequence[Sample], reward: Reward) -> Rollout:
        """At those to learn from; for the critic, with what the reward model expects before each of their tokens."""
        if self._grouped:
            kept = contrast_groups(samples, self.settings.ppo.learned_rollouts)
            return await asyncio.to_thread(trainer.look_back, kept, self.tick)
        kept = contrast(samples, self.settings.ppo.learned_rollouts)
        outlooks = await asyncio.to_thread(reward.outlooks, [sample.answer for sample in kept])
        telling = [replace(sample, outlook=outlook) for sample, outlook in zip(kept, outlooks, strict=True)]
        return await asyncio.to_thread(trainer.look_back, telling, self.tick)

    async def _update(
        self, trainer: Trainer, rollout: Rollout, samples: Sequence[Sample], batch: pb.BatchManifest, number: int
    ) -> dict[str, float]:
        stats = await asyncio.to_thread(trainer.update, rollout, self.tick)
        # Of the best and the worst of them it says nothing of how well the policy answers.
        stats["reward_mean"] = float(np.mean([sample.reward for sample in samples]))
        self.story.iterations.append({"iteration": float(number)} | stats)
        metrics.ppo(stats)
        log.info(
            "ppo_iteration",
            extra={"cycle": batch.cycle_id, "iteration": number}
            | {name: round(value, 4) for name, value in stats.items()},
        )
        return stats

    async def _sample(self, version: str, prompts: Sequence[Answer], reward: Reward, seed: int) -> list[Sample]:
        """Fresh answers of a training version to prompts of real traffic, rewarded."""
        settings = self.settings.ppo
        n = settings.group if self._grouped else 1
        order = np.random.default_rng(seed).permutation(len(prompts))
        chosen = [prompts[order[i % len(order)]] for i in range(max(1, settings.rollouts // n))]
        # One length for all: the rollouts of a call share their sampling parameters.
        tokens = min(settings.max_answer_tokens, max(answer.max_tokens for answer in chosen))
        rollouts = await self._journal.sample(
            version, [answer.prompt_ids for answer in chosen], max_tokens=tokens, seed=seed, n=n
        )
        pairs = [(chosen[rollout.prompt].prompt_ids, rollout.token_ids) for rollout in rollouts]
        rewards = await asyncio.to_thread(reward.of_fresh, pairs)
        return [
            Sample(prompt, rollout.token_ids, rollout.logp, version, worth)
            for (prompt, _), rollout, worth in zip(pairs, rollouts, rewards, strict=True)
        ]
