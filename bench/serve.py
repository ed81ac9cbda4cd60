"""How much of the bare engine's speed reaches a client.

Three ways to the same answers, one after the other and again, in one run:

    engine      vLLM's AsyncLLM in this process, with our engine settings
    thumbwheel  our server, over gRPC
    openai      vLLM's own OpenAI server, over HTTP

each with the base and with an adapter, at several numbers of streams. A stream asks for its next answer when the last
one has ended. What comes before the first token is also measured alone, by many short answers of one stream, for which
engine and thumbwheel take turns question by question.

What makes the three comparable:

    answers     the same prompts, seeds and settings in the same order, so the same tokens where sums round alike;
                `tokens` of every target is in the report, and unequal work shows
    rest        all three keep their engines for the whole run, and vLLM's default executor spins for a second after
                its last step: a round begins when the machine is idle. `other_cpu_seconds` is what anybody else took
    others      a round in which somebody else was at work is asked again; every prompt is shorter than two blocks of
                the prefix cache, so having been asked before makes it no cheaper
    order       is turned round in every run
    collector   what is loaded before the first round stays out of garbage collections here, as in our server

`server_cpu_seconds` are those of the process that clients talk to. Of `engine` this is the benchmark itself, which is
client and server in one; thumbwheel's and openai's clients are not in it. vLLM's processes below it are in
`engine_cpu_seconds`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.console import Console

from bench import figures
from bench.figures import Spread
from bench.processes import machine_cpu, process_cpu, rest
from bench.targets import MAX_TOKENS, Question, Target, targets
from cli import base_model, prompts
from thumbwheel.config import Config


@dataclass(frozen=True, slots=True)
class Load:
    """Streams at once, answers in all, and how often it is asked of engine and thumbwheel."""

    streams: int
    answers: int
    runs: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Short rounds and many: the machine's own speed drifts by more than what is looked for.

    `openai` rounds only, with base and adapter: it is further away, and slow. `pairs` of first tokens in each of
    `first_token_runs`.
    """

    loads: Sequence[Load]
    openai: tuple[int, int]
    pairs: int
    first_token_runs: int


FULL = Plan(
    (Load(1, 2, 4), Load(4, 4, 4), Load(16, 16, 16), Load(32, 32, 4)), openai=(2, 1), pairs=300, first_token_runs=3
)
QUICK = Plan((Load(1, 2), Load(16, 16)), openai=(1, 1), pairs=20, first_token_runs=1)

DISTURBED = 0.15
"""Of a core: what others take in a round that does not count and is asked again, a few times at most. Idle engines, the
store, the learner and the system take a third of it."""
TRIES = 3


@dataclass(slots=True)
class Timing:
    """One answer as its client saw it; seconds."""

    first: float
    per_token: float
    tokens: int
    messages: int


@dataclass(slots=True)
class Round:
    """One target under one load."""

    seconds: float
    server_cpu: float
    engine_cpu: float
    other_cpu: float
    answers: list[Timing] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def messages(self) -> int:
        return sum(answer.messages for answer in self.answers)

    def figures(self) -> dict[str, float]:
        first = [1e3 * answer.first for answer in self.answers]
        each = [1e3 * answer.per_token for answer in self.answers if answer.tokens > 1]
        return {
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds,
            "first_token_ms_p50": float(np.percentile(first, 50)),
            "first_token_ms_p99": float(np.percentile(first, 99)),
            "per_token_ms_p50": float(np.percentile(each, 50)),
            "per_token_ms_p99": float(np.percentile(each, 99)),
            "server_cpu_seconds": self.server_cpu,
            "engine_cpu_seconds": self.engine_cpu,
            "other_cpu_seconds": self.other_cpu,
        }


async def measure(target: Target, load: Load, adapter: bool, first_seed: int) -> Round:
    """Asks the same questions of every target."""
    for _ in range(TRIES):
        done = await _round(target, load, adapter, first_seed)
        if done.other_cpu < DISTURBED * done.seconds:
            break
    return done


async def _round(target: Target, load: Load, adapter: bool, first_seed: int) -> Round:
    questions = iter(ask_for(load.answers, first_seed))
    timings: list[Timing] = []

    async def stream() -> None:
        for question in questions:
            timings.append(await _timed(target, question, adapter))

    await rest()
    before = _cpu(target)
    began = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(load.streams)))
    seconds = time.perf_counter() - began
    server, engine, own, machine = (now - then for now, then in zip(_cpu(target), before, strict=True))
    return Round(seconds, server, engine, max(0.0, machine - server - engine - own), timings)


def ask_for(answers: int, first_seed: int, max_tokens: int = MAX_TOKENS) -> list[Question]:
    asked = prompts.rated()
    return [Question(asked[i % len(asked)], first_seed + i, max_tokens) for i in range(answers)]


async def _timed(target: Target, question: Question, adapter: bool) -> Timing:
    began, first, tokens, messages = time.perf_counter(), 0.0, 0, 0
    last = began
    async for tokens in target.ask(question, adapter):  # noqa: B007 - the last one counts
        last = time.perf_counter()
        first = first or last - began
        messages += 1
    return Timing(first, (last - began - first) / max(1, tokens - 1), tokens, messages)


async def first_tokens(ours: Target, bare: Target, adapter: bool, first_seed: int, answers: int) -> dict[str, float]:
    """Milliseconds to the first token of one stream, in pairs: the same question, one after the other."""
    await rest()
    pairs: list[tuple[float, float]] = []
    for number, question in enumerate(ask_for(answers, first_seed, max_tokens=2)):
        order = (ours, bare) if number % 2 else (bare, ours)
        took = {target.name: 1e3 * (await _timed(target, question, adapter)).first for target in order}
        pairs.append((took[ours.name], took[bare.name]))
    mine, theirs = np.array(pairs).T  # (answers,)
    found = {}
    for percent in (50, 99):
        found[f"thumbwheel_p{percent}"] = float(np.percentile(mine, percent))
        found[f"engine_p{percent}"] = float(np.percentile(theirs, percent))
        found[f"added_p{percent}"] = found[f"thumbwheel_p{percent}"] - found[f"engine_p{percent}"]
        found[f"pairs_p{percent}"] = float(np.percentile(mine - theirs, percent))
    return found


def _cpu(target: Target) -> tuple[float, float, float, float]:
    """CPU seconds until now of the server, of its engine, of this process if it is not the server, of the machine."""
    own = 0.0 if target.pid == os.getpid() else process_cpu(os.getpid())
    return process_cpu(target.pid), sum(map(process_cpu, target.engine_pids)), own, machine_cpu()


async def run(quick: bool, console: Console) -> dict[str, Any]:
    """All rounds, and what they come to."""
    model = Path(base_model.ensure(Config(), console).model.path)
    plan = QUICK if quick else FULL
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        async with targets(model, Path(scratch)) as ways:
            for target in ways:  # each one's first answers are slow
                for adapter in (False, True):
                    await measure(target, Load(2, 2), adapter, first_seed=1)
            gc.collect()
            gc.freeze()
            for adapter in (False, True):
                name = "adapter" if adapter else "base"
                title = f"{name}, first token"
                report[title] = await _first_tokens(ways, plan, adapter)
                console.print(title, {key: str(spread) for key, spread in report[title].items()})
                for load in plan.loads:
                    title = f"{name}, {load.streams} streams"
                    report[title] = _compare(await _rounds(ways, plan, load, adapter))
                    console.print(title, {key: str(spread) for key, spread in report[title]["ratios"].items()})
    return report


async def _rounds(ways: Sequence[Target], plan: Plan, load: Load, adapter: bool) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {target.name: [] for target in ways}
    for number in range(load.runs):
        for target in ways if number % 2 else ways[::-1]:
            if target.name == "openai" and number >= plan.openai[adapter]:
                continue
            rounds[target.name].append(await measure(target, load, adapter, first_seed=1000 * number))
    return rounds


async def _first_tokens(ways: Sequence[Target], plan: Plan, adapter: bool) -> dict[str, Spread]:
    bare, ours, _ = ways
    runs = [await first_tokens(ours, bare, adapter, 1000 * i, plan.pairs) for i in range(plan.first_token_runs)]
    return {key: Spread.of([each[key] for each in runs]) for key in runs[0]}


def _compare(rounds: dict[str, list[Round]]) -> dict[str, Any]:
    """Figures of every target, and thumbwheel's beside the others', run by run."""
    found = {name: [each.figures() for each in done] for name, done in rounds.items()}
    ours = found["thumbwheel"]
    return {
        "ratios": {
            f"tokens_per_second/{other}": _ratio(ours, found[other], "tokens_per_second")
            for other in found
            if other != "thumbwheel"
        },
        "figures": {
            name: {key: Spread.of([each[key] for each in done]) for key in done[0]} for name, done in found.items()
        },
    }


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> Spread:
    return Spread.of([a[key] / b[key] for a, b in zip(ours, theirs, strict=False)])


def main() -> None:
    asked = figures.options("serve", __doc__.splitlines()[0])
    console = Console(highlight=False)
    results = uvloop.run(run(asked.quick, console))
    figures.write(asked.json, "serve", asked.quick, results)


if __name__ == "__main__":
    main()
