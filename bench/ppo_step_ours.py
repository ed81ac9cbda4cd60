"""One PPO step of ours, for `bench.ppo_step`: `python -m bench.ppo_step_ours MODEL ANSWERS`."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from learner.policy import Policy, Sample
from learner.ppo import Trainer
from thumbwheel import config

T = TypeVar("T")


def main(model: str, answers: str) -> None:
    settings = config.Ppo(minibatches=4, epochs=1, anchor_coef=0, target_kl=1000)
    policy = Policy(Path(model), config.Lora(), seed=0)
    page = json.loads(Path(answers).read_text(encoding="utf-8"))
    samples = [
        Sample(tuple(prompt), tuple(answer), (-10.0,) * len(answer), "base", reward)
        for prompt, answer, reward in zip(page["prompts"], page["answers"], page["rewards"], strict=True)
    ]
    trainer = Trainer(policy, settings, seed=0)
    parts: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        before = time.process_time()
        result = work()
        parts[f"{name}_cpu_seconds"] = time.process_time() - before
        return result

    began = time.perf_counter()
    pairs = [sample.answer for sample in samples]
    timed("score", lambda: (policy.features(pairs), policy.token_features(pairs)))
    rollout = timed("look_back", lambda: trainer.look_back(samples))
    timed("update", lambda: trainer.update(rollout))
    figures = {
        "cpu_seconds": sum(parts.values()),
        "seconds": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures | parts))


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
