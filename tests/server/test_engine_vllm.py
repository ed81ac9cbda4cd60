"""What only the real engine can show: exact numbers, and processes that end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from prometheus_client import REGISTRY

from server.engine import Engine, SamplingSpec, Weights
from server.engine_vllm import engine_settings, require_devices, start_engine
from thumbwheel.config import Config
from thumbwheel.errors import AdapterRefused, SetupError

BASE = Weights("base", 0, None)
PROMPTS = ["Why?", "Tell me about wheels, and how they came to be.", "One two three four", "日本語"]
numbers = itertools.count()


@pytest.fixture
async def adapters(engine: Engine, write_adapter: Callable[..., Path], tmp_path: Path) -> AsyncIterator[list[Weights]]:
    """Three adapters of different ranks, and the engine's fourth place free."""
    loaded = []
    for seed, rank in ((1, 8), (2, 4), (3, 16)):
        folder = write_adapter(tmp_path / str(seed), seed=seed, rank=rank, size=0.3)
        weights = Weights(f"v{next(numbers)}", 700 + next(numbers), folder)
        await engine.load(weights)
        loaded.append(weights)
    yield loaded
    for weights in loaded:
        await engine.unload(weights.adapter_id)


@pytest.fixture
async def crowd(
    engine: Engine, adapters: list[Weights], write_adapter: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[list[Weights]]:
    """The base and an adapter in each of the engine's places: stock code puts the last one into the base's answers."""
    last = Weights(f"v{next(numbers)}", 700 + next(numbers), write_adapter(tmp_path / "last", seed=4, size=0.3))
    await engine.load(last)
    yield [BASE, *adapters, last]
    await engine.unload(last.adapter_id)


async def test_a_tenant_does_not_profit_from_what_another_asked(engine: Engine) -> None:
    """Else the time to an answer's beginning would tell what others have asked."""
    prompt = engine.render([("user", f"A long question that nobody has asked before, {next(numbers)}. " * 20)])

    def cached() -> float:
        return next(s.value for m in REGISTRY.collect() for s in m.samples if s.name == "vllm:prefix_cache_hits_total")

    async def ask(tenant: str) -> float:
        before = cached()
        request = f"tenant-{next(numbers)}"
        async for _ in engine.generate(request, prompt, SamplingSpec(2, 0.0, 1.0, (), 1), 1, BASE, tenant=tenant):
            pass
        return cached() - before

    assert [await ask(tenant) > 0 for tenant in ("acme", "other", "acme", "other")] == [False, False, True, True]


async def test_forgetting_prompts_cuts_no_answer_and_leaves_no_trace(engine: Engine, adapters: list[Weights]) -> None:
    """With streams of the base and of adapters under way, it is as if nothing had been; only the cache is empty."""
    crowd = [BASE, adapters[0], BASE, adapters[1]]
    undisturbed = [await sample(engine, prompt, who, max_tokens=64) for prompt, who in zip(PROMPTS, crowd, strict=True)]
    begun = asyncio.Event()

    async def stream(prompt: str, weights: Weights) -> tuple[list[int], list[float]]:
        ids, logprobs = [], []
        chunks = engine.generate(
            f"forget-{next(numbers)}", engine.render([("user", prompt)]), SamplingSpec(64, 0.0, 1.0, (), 11), 1, weights
        )
        async for chunk in chunks:
            ids += chunk.token_ids
            logprobs += chunk.logprobs
            if len(ids) >= 8:
                begun.set()
        return ids, logprobs

    running = [asyncio.create_task(stream(prompt, who)) for prompt, who in zip(PROMPTS, crowd, strict=True)]
    await begun.wait()
    for _ in range(3):
        await engine.forget_prompts()
    for (ids, logprobs), (whole_ids, whole_logprobs) in zip(await asyncio.gather(*running), undisturbed, strict=True):
        assert ids == whole_ids
        assert logprobs == pytest.approx(whole_logprobs, abs=1e-4)
    assert not any(task.cancelled() for task in running)


async def sample(
    engine: Engine, prompt: str, weights: Weights, temperature: float = 0.0, top_p: float = 1.0, max_tokens: int = 24
) -> tuple[list[int], list[float]]:
    ids, logprobs = [], []
    sampling = SamplingSpec(max_tokens, temperature, top_p, (), 11)
    prompt_ids = engine.render([("user", prompt)])
    async for chunk in engine.generate(f"x{next(numbers)}", prompt_ids, sampling, 1, weights):
        ids += chunk.token_ids
        logprobs += chunk.logprobs
    return ids, logprobs


async def test_a_mixed_batch_answers_as_each_would_alone(engine: Engine, crowd: list[Weights]) -> None:
    jobs = [(prompt, weights) for prompt in PROMPTS[:3] for weights in crowd]
    alone = [await sample(engine, *job) for job in jobs]
    together = await asyncio.gather(*(sample(engine, *job) for job in jobs))
    assert [ids for ids, _ in together] == [ids for ids, _ in alone]
    assert len({tuple(ids) for ids, _ in alone}) == len(jobs), "the adapters make no difference: nothing was tested"


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (0.8, 0.9)])
async def test_log_probabilities_are_those_of_the_reference_as_sampled(
    engine: Engine, crowd: list[Weights], tiny_model: Path, temperature: float, top_p: float
) -> None:
    jobs = [(prompt, weights) for prompt in PROMPTS[:2] for weights in crowd]
    sampled = await asyncio.gather(*(sample(engine, *job, temperature, top_p) for job in jobs))
    for (prompt, weights), (ids, logprobs) in zip(jobs, sampled, strict=True):
        expected = reference(tiny_model, weights, engine.render([("user", prompt)]), ids, temperature, top_p)
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-3, rtol=0)


def reference(
    model: Path, weights: Weights, prompt: list[int], answer: list[int], temperature: float, top_p: float
) -> torch.Tensor:
    """Log-probabilities (nats) of the answer's tokens by transformers and peft, after temperature and top-p."""
    return logps(network(model, weights), prompt, answer, temperature, top_p)


def network(model: Path, weights: Weights) -> Any:
    """Base and adapter, by transformers and peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return base if weights.path is None else PeftModel.from_pretrained(base, weights.path)


@torch.no_grad()
def logps(network: Any, prompt: list[int], answer: list[int], temperature: float = 1, top_p: float = 1) -> torch.Tensor:
    """See `reference`."""
    logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature  # (answer, vocab)
    probabilities, order = logits.softmax(-1).sort(descending=True)
    beyond = probabilities.cumsum(-1) - probabilities >= top_p  # the mass before a token reaches top_p already
    logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return logits.log_softmax(-1)[range(len(answer)), answer]


async def test_an_adapter_loaded_beside_a_running_answer_leaves_it_alone(
    engine: Engine, adapters: list[Weights], write_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    expected = [await sample(engine, PROMPTS[0], weights, max_tokens=100) for weights in (BASE, adapters[0])]
    begun = [asyncio.Event(), asyncio.Event()]

    async def stream(weights: Weights, begun: asyncio.Event) -> list[int]:
        ids: list[int] = []
        prompt = engine.render([("user", PROMPTS[0])])
        async for chunk in engine.generate(
            f"x{next(numbers)}", prompt, SamplingSpec(100, 0.0, 1.0, (), None), 1, weights
        ):
            ids += chunk.token_ids
            begun.set()
        return ids

    tasks = [asyncio.create_task(stream(w, b)) for w, b in zip((BASE, adapters[0]), begun, strict=True)]
    await asyncio.gather(*(event.wait() for event in begun))
    new = Weights("hot", 600, write_adapter(tmp_path / "hot", seed=9, size=0.3))
    await engine.load(new)
    assert not any(task.done() for task in tasks), "they ended before the load did: nothing was tested"
    hot, _ = await sample(engine, PROMPTS[0], new)
    assert [await task for task in tasks] == [ids for ids, _ in expected]
    assert hot not in [ids[: len(hot)] for ids, _ in expected]
    await engine.unload(600)


async def test_what_vllm_cannot_read_is_refused_and_the_engine_lives(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AdapterRefused) as refusal:
            await engine.load(Weights("broken", 601, folder))
        assert refusal.value.reason == "engine"
    await engine.check()
    assert (await sample(engine, PROMPTS[0], BASE))[0]


def test_its_metrics_stand_beside_ours(engine: Engine) -> None:
    names = {metric.name for metric in REGISTRY.collect()}
    assert {"vllm:num_requests_running", "vllm:time_to_first_token_seconds", "vllm:prefix_cache_hits"} <= names


def test_the_context_is_what_the_model_can_do_at_most(tiny_model: Path) -> None:
    for asked, given in ((512, 512), (100_000, 2048)):
        config = Config.model_validate({"model": {"path": str(tiny_model), "max_context": asked}})
        assert engine_settings(config, on_cpu=True)["max_model_len"] == given


def test_ranks_are_rounded_up_to_what_vllm_knows(tiny_model: Path) -> None:
    for asked, given in ((1, 8), (8, 8), (24, 32)):
        config = Config.model_validate({"model": {"path": str(tiny_model)}, "server": {"max_lora_rank": asked}})
        assert engine_settings(config, on_cpu=True)["max_lora_rank"] == given


async def test_a_model_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    for path in ("embedded", str(tmp_path / "nowhere")):
        with pytest.raises(SetupError, match=r"model\.path"):
            await start_engine(Config.model_validate({"model": {"path": path}}))


SCRIPT = """
import asyncio, sys
from server.engine import SamplingSpec, Weights
from server.engine_vllm import start_engine
from thumbwheel.config import load
from thumbwheel.errors import EngineDead

async def main():
    engine = await start_engine(load(overrides=sys.argv[1:]))
    print("ready", flush=True)
    try:
        prompt, sampling = engine.render([("user", "Hi")]), SamplingSpec(2000, 1.0, 1.0, (), 1)
        for turn in range(1000):
            async for _ in engine.generate(f"r{turn}", prompt, sampling, 1, Weights("base", 0, None)):
                print("token", flush=True)
    except EngineDead as error:
        print("dead", flush=True)
    try:
        await engine.check()
    except EngineDead:
        print("checked", flush=True)
    await engine.close()
    print("closed", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where that process keeps what is temporary; short, as vLLM has sockets there."""
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        yield Path(folder)


@pytest.fixture
def serving(tiny_model: Path, tmp_path: Path, temporary: Path):
    """A process with an engine of its own, for tests that kill."""
    settings = [f"model.path={tiny_model}", "server.threads=1", f"server.kv_cache_bytes={64 << 20}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *settings],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
    yield process
    for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
        child.kill()
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@contextlib.contextmanager
def engine_process(server: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    """The process that holds the weights: the child in a process group of its own. Killed in the end if it lives."""
    deadline = time.monotonic() + 120
    found: psutil.Process | None = None
    while found is None:
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "no engine process came"
        for child in psutil.Process(server.pid).children():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(child.pid) == child.pid:
                    found = child
    try:
        yield found
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()


def wait_for(server: subprocess.Popen[str], line: str) -> None:
    assert server.stdout is not None
    for found in server.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"the server ended without saying {line}")


def test_no_engine_outlives_a_killed_server(serving: subprocess.Popen[str]) -> None:
    wait_for(serving, "token")
    with engine_process(serving) as engine:
        serving.kill()
        engine.wait(10)


def test_no_engine_outlives_a_server_that_is_killed_while_it_starts(serving: subprocess.Popen[str]) -> None:
    with engine_process(serving) as engine:
        serving.kill()
        engine.wait(10)


def test_a_server_learns_that_its_engine_died_and_can_still_close(
    serving: subprocess.Popen[str], temporary: Path
) -> None:
    wait_for(serving, "token")
    with engine_process(serving) as engine:
        # A terminal's Ctrl-C goes to the server's group: it drains, and needs its engine for that.
        assert os.getpgid(engine.pid) != os.getpgid(serving.pid)
        engine.kill()
    for line in ("dead", "checked", "closed"):
        wait_for(serving, line)
    assert serving.wait(10) == 0
    left = [each.name for each in temporary.iterdir() if not each.name.startswith("torchinductor_")]  # a cache
    assert not left, "vLLM's sockets and the like are gone"


@pytest.mark.parametrize(("wanted", "there"), [(1, 0), (1, 4), (4, 4)])
def test_as_many_gpus_as_there_are_are_spanned(wanted: int, there: int) -> None:
    require_devices(wanted, there)


@pytest.mark.parametrize(("wanted", "there"), [(2, 0), (2, 1), (5, 4)])
def test_more_gpus_than_there_are_are_refused(wanted: int, there: int) -> None:
    with pytest.raises(SetupError, match=f"tensor_parallel = {wanted}: there are {there} GPUs"):
        require_devices(wanted, there)
