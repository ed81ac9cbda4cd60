"""A first look at PPO: the losses that train the language model balance a pole.

    python examples/cartpole.py

Reads top to bottom: act, look back, update, repeat. Everything that is PPO comes from `learner.ppo_math`; settings
follow cleanrl's ppo.py. CartPole-v1 counts as solved at a mean return of 475 (500 is the longest episode).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from learner import ppo_math  # found beside this folder, installed or not

ENVS, STEPS, ITERATIONS = 8, 128, 200
EPOCHS, MINIBATCHES = 6, 4
LEARNING_RATE, GAMMA, LAM, CLIP_EPS = 1e-3, 0.99, 0.95, 0.2
VALUE_COEF, ENTROPY_COEF, MAX_GRAD_NORM = 0.5, 0.01, 0.5
SOLVED = 475.0


def train(seed: int, report: Callable[[str], None] = print) -> list[float]:
    """Trains until the last 20 episodes return 475 on average, at most 200 iterations; the returns of all episodes."""
    torch.manual_seed(seed)
    envs = gymnasium.make_vec(
        "CartPole-v1",
        num_envs=ENVS,
        vectorization_mode="sync",
        # The observation after an episode's end is the next one's first: no step is wasted on resetting.
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
    )
    actor, critic = _network(2, gain=0.01), _network(1, gain=1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=1e-5)

    observation = torch.tensor(envs.reset(seed=seed)[0])  # (ENVS, 4)
    running, returns = np.zeros(ENVS), list[float]()
    for iteration in range(ITERATIONS):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - iteration / ITERATIONS)

        # act
        observations = torch.zeros(ENVS, STEPS, 4)
        actions, rewards, ends, logps, values = (torch.zeros(ENVS, STEPS) for _ in range(5))
        for step in range(STEPS):
            with torch.no_grad():
                logits, value = actor(observation), critic(observation).squeeze(-1)
            action = torch.distributions.Categorical(logits=logits).sample()
            observations[:, step], actions[:, step], values[:, step] = observation, action, value
            logps[:, step] = ppo_math.log_prob(logits, action)
            following, reward, terminated, truncated, _ = envs.step(action.numpy())
            rewards[:, step] = torch.tensor(reward)
            ends[:, step] = torch.tensor(terminated | truncated)
            observation = torch.tensor(following)
            running += reward
            returns += running[terminated | truncated].tolist()
            running[terminated | truncated] = 0

        # look back
        with torch.no_grad():
            last_value = critic(observation).squeeze(-1)  # bootstraps the episodes that go on
        adv, ret = ppo_math.gae(rewards, values, ends, GAMMA, LAM, last_value)

        # update
        flat = [x.flatten(0, 1) for x in (observations, actions, logps, adv, ret, values)]
        stats = {"approx_kl": 0.0, "entropy": 0.0}
        for _ in range(EPOCHS):
            for index in torch.randperm(ENVS * STEPS).tensor_split(MINIBATCHES):
                stats = _update(actor, critic, optimiser, [x[index] for x in flat])

        mean = float(np.mean(returns[-20:])) if returns else 0.0
        if iteration % 5 == 4:
            figures = "  ".join(f"{name} {value:.3f}" for name, value in stats.items())
            report(f"iteration {iteration + 1:3d}  episodes {len(returns):4d}  mean of last 20 {mean:6.1f}  {figures}")
        if len(returns) >= 20 and mean >= SOLVED:
            break
    envs.close()
    return returns


def _update(
    actor: nn.Module, critic: nn.Module, optimiser: torch.optim.Optimizer, rows: list[Tensor]
) -> dict[str, float]:
    observations, actions, old_logp, adv, ret, old_v = rows
    every = torch.ones_like(adv)
    logits, v = actor(observations), critic(observations).squeeze(-1)
    logp, entropy = ppo_math.log_prob(logits, actions.long()), ppo_math.entropy(logits).mean()
    loss = (
        ppo_math.policy_loss(logp, old_logp, ppo_math.whiten(adv, every), every, CLIP_EPS)
        + VALUE_COEF * ppo_math.value_loss(v, old_v, ret, every, CLIP_EPS)
        - ENTROPY_COEF * entropy
    )
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], MAX_GRAD_NORM)
    optimiser.step()
    return {"approx_kl": ppo_math.kl_k3(old_logp, logp).mean().item(), "entropy": entropy.item()}


def _network(outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64, orthogonal weights ("The 37 Implementation Details of PPO", detail 2)."""
    layers = [nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)  # the networks are too small to share
    began = time.monotonic()
    solved = float(np.mean(train(seed)[-20:]))
    print(f"mean return of the last 20 episodes {solved:.1f} after {time.monotonic() - began:.0f} s")
    sys.exit(0 if solved >= SOLVED else 1)
