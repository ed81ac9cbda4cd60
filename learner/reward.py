"""What an answer is worth to the policy, -1 to 1: what people said of it, and what the reward model expects of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner.policy import Answer, Policy
from learner.reward_lora import RewardLora
from learner.reward_model import Features, RewardModel
from thumbwheel import config


@dataclass(frozen=True, slots=True)
class Reward:
    """Of one cycle."""

    model: RewardModel
    lora: RewardLora
    policy: Policy
    settings: config.Learner

    def of_rated(
        self, answers: Sequence[Answer], features: Features, votes: Sequence[tuple[float, float]]
    ) -> list[float]:
        """Of answers that people have judged.

        Args:
            features: (N, D), row i for answers[i].
            votes: of each the mean vote in [-1, 1] and its weight in [0, 1].
        """
        likely = (2 * self.model.probability(features, self.lora.lift(answers)) - 1).tolist()
        shares = [self.settings.ppo.vote_weight * weight for _, weight in votes]
        return [
            share * vote + (1 - share) * expected
            for share, (vote, _), expected in zip(shares, votes, likely, strict=True)
        ]

    def of_fresh(self, answers: Sequence[Answer]) -> list[float]:
        """Of answers that nobody has judged: less where the reward model is in doubt."""
        caution = self.settings.reward_model.caution
        chances = self.model.cautious(self.policy.features(answers), caution, self.lora.lift(answers))
        rewards: list[float] = (2 * chances - 1).tolist()
        return rewards

    def outlooks(self, answers: Sequence[Answer]) -> list[tuple[float, ...]]:
        """Of each what was to be expected before each of its tokens."""
        tokens = self.policy.token_features(answers)
        return [tuple((2 * self.model.outlook(rows) - 1).tolist()) for rows in tokens]
