"""What a PPO step costs here and in TRL 1.12's PPOTrainer, the last that TRL has.

The same answers (32 of 64 tokens after prompts of 64), rewards, LoRA shape, precision, threads, one epoch of four
minibatches; each step in a process of its own, in turn. TRL gets an environment of its own, in which torch and
transformers are ours. What differs is what each library is about:

    thumbwheel  one backbone for policy, reference, value head and reward features; what lies below the adapter is
                computed once; scoring an answer is in the figures
    trl         policy with PEFT (its reference is the adapter switched off), a reward model and a value model beside
                it, as its examples set it up; with gradient checkpointing, its default, and without

TRL samples its own answers. Here it is handed them with one pass for their logits, because ours come from the server
that is running anyway: what sampling costs is in neither figure.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench import figures
from bench.figures import Spread
from bench.processes import rest
from cli import base_model
from thumbwheel.config import Config

ANSWERS, PROMPT, ANSWER = 32, 64, 64
RUNS = 3
TRL = (
    "trl==1.12.0", "datasets==5.2.0", "pyarrow==26.0.1", "pandas==3.1.1", "multiprocess==0.70.19", "xxhash==4.1.0",
    "python-dateutil==2.9.0.post0", "six==1.17.0",
)  # fmt: skip
"""What our own environment lacks."""


def write_answers(file: Path, count: int) -> None:
    """Random tokens: the cost does not depend on what they say. None of them ends an answer."""
    dice = np.random.default_rng(0)
    tokens = dice.integers(100, 40_000, (count, PROMPT + ANSWER))
    rewards = dice.uniform(-1, 1, count)
    page = {"prompts": tokens[:, :PROMPT].tolist(), "answers": tokens[:, PROMPT:].tolist(), "rewards": rewards.tolist()}
    file.write_text(json.dumps(page), encoding="utf-8")


def make_environment(folder: Path) -> Path:
    """A Python that finds TRL in its own packages and everything else in ours."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([str(uv), "pip", "install", "-q", "--no-deps", "--python", str(python), *TRL], check=True)
    [theirs] = folder.glob("lib/python*/site-packages")
    [ours] = Path(sys.prefix).glob("lib/python*/site-packages")
    (theirs / "ours.pth").write_text(f"{ours}\n", encoding="utf-8")
    return python


def step(command: list[str]) -> dict[str, float]:
    """Runs one step in a process of its own, on an idle machine; its figures are its last line."""
    asyncio.run(rest())
    cores = str(len(os.sched_getaffinity(0)))
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": cores, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(quick: bool, console: Console) -> dict[str, Any]:
    model = base_model.ensure(Config(), console).model.path
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        folder = Path(scratch)
        write_answers(folder / "answers.json", 8 if quick else ANSWERS)
        common = [model, str(folder / "answers.json")]
        trl = [str(make_environment(folder / "trl")), str(Path(__file__).with_name("ppo_step_trl.py")), *common]
        ways = {
            "thumbwheel": [sys.executable, "-m", "bench.ppo_step_ours", *common],
            "trl": [*trl, "--checkpointing"],
            "trl without checkpointing": trl,
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for number in range(1 if quick else RUNS):
            for name, command in ways.items() if number % 2 == 0 else reversed(ways.items()):
                found[name].append(step(command))
                console.print(name, {key: round(value, 2) for key, value in found[name][-1].items()})
    ours = found["thumbwheel"]
    return {
        "ratios": {
            f"{key}/{name}": Spread.of([mine[key] / theirs[key] for mine, theirs in zip(ours, runs, strict=True)])
            for name, runs in found.items()
            if name != "thumbwheel"
            for key in ("cpu_seconds", "peak_mib")
        },
        "figures": {
            name: {key: Spread.of([each[key] for each in runs]) for key in runs[0]} for name, runs in found.items()
        },
    }


def main() -> None:
    asked = figures.options("ppo_step", __doc__.splitlines()[0])
    console = Console(highlight=False)
    results = run(asked.quick, console)
    console.print({key: str(value) for key, value in results["ratios"].items()})
    figures.write(asked.json, "ppo_step", asked.quick, results)


if __name__ == "__main__":
    main()
