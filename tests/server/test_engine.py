"""The contract of `server.engine.Engine`, on both engines."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from server.engine import Chunk, Engine, SamplingSpec, Weights
from server.engine_scripted import ScriptedEngine
from thumbwheel.errors import Conflict, NotFound

BASE = Weights("base", 0, None)
QUESTION = [("system", "You answer."), ("user", "Why does a wheel turn? 日本語")]
numbers = itertools.count()


@pytest.fixture(params=["scripted", "vllm"])
def either(request: pytest.FixtureRequest) -> Engine:
    if request.param == "scripted":
        return ScriptedEngine()
    return request.getfixturevalue("engine")


@pytest.fixture
async def adapter(either: Engine, write_adapter: Callable[..., Path], tmp_path: Path) -> AsyncIterator[Weights]:
    weights = Weights(f"v{next(numbers)}", 900 + next(numbers), write_adapter(tmp_path / "adapter"))
    await either.load(weights)
    yield weights
    await either.unload(weights.adapter_id)


@dataclass
class Answer:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)


def spec(
    max_tokens: int = 20, temperature: float = 1.0, stop: Sequence[str] = (), seed: int | None = 1
) -> SamplingSpec:
    return SamplingSpec(max_tokens, temperature, 1.0, tuple(stop), seed)


def ask(engine: Engine, sampling: SamplingSpec, n: int = 1, weights: Weights = BASE):
    return engine.generate(f"r{next(numbers)}", engine.render(QUESTION), sampling, n, weights)


async def answers(engine: Engine, sampling: SamplingSpec, n: int = 1, weights: Weights = BASE) -> list[Answer]:
    found = [Answer() for _ in range(n)]
    async for chunk in ask(engine, sampling, n, weights):
        answer = found[chunk.index]
        assert not answer.finish, "a chunk after the last one"
        answer.text += chunk.text
        answer.token_ids += chunk.token_ids
        answer.logprobs += chunk.logprobs
        answer.finish += [chunk.finish] if chunk.finish else []
    return found


async def running(engine: Engine) -> float:
    """Requests that the engine itself still works on."""
    if isinstance(engine, ScriptedEngine):
        return len(engine.running)
    # vLLM counts in steps, and makes none when nothing is left to do: a short request brings the gauges up to date.
    await answers(engine, spec(max_tokens=1))
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return sum(s.value for metric in REGISTRY.collect() if metric.name in names for s in metric.samples)


async def test_an_answer_that_ends_by_itself_reads_as_it_was_written(either: Engine) -> None:
    *said, end = either.encode_answer("A wheel turns. 日本語\n")
    assert either.decode(said) == "A wheel turns. 日本語\n"
    assert end in either.eos_token_ids
    assert not either.eos_token_ids & set(said)
    assert max(said) < either.vocabulary


async def test_every_answer_ends_once_and_adds_up(either: Engine) -> None:
    for answer in await answers(either, spec(max_tokens=30), n=3):
        assert len(answer.finish) == 1
        assert len(answer.token_ids) == len(answer.logprobs) > 0
        assert all(logprob <= 0 for logprob in answer.logprobs)
        whole = either.decode(answer.token_ids)
        # What is left over at the end is a character that was cut off, and is not sent.
        assert whole.startswith(answer.text)
        assert not whole[len(answer.text) :].strip("\ufffd")


async def test_answers_differ_from_each_other(either: Engine) -> None:
    assert len({answer.text for answer in await answers(either, spec(), n=4)}) == 4


async def test_max_tokens(either: Engine) -> None:
    (answer,) = await answers(either, spec(max_tokens=7))
    assert answer.finish == ["length"]
    assert len(answer.token_ids) == 7


async def test_the_context_ends_an_answer(either: Engine) -> None:
    prompt = (either.render(QUESTION) * either.max_context)[: either.max_context - 3]
    chunks = [chunk async for chunk in either.generate(f"r{next(numbers)}", prompt, spec(max_tokens=50), 1, BASE)]
    assert chunks[-1].finish == "length"
    assert sum(len(chunk.token_ids) for chunk in chunks) == 3


async def test_a_seed_repeats_an_answer(either: Engine) -> None:
    first, second = await answers(either, spec(seed=5), n=2), await answers(either, spec(seed=5), n=2)
    assert [answer.token_ids for answer in first] == [answer.token_ids for answer in second]
    (other,) = await answers(either, spec(seed=6))
    assert other.token_ids != first[0].token_ids


async def test_the_largest_seed_is_taken(either: Engine) -> None:
    await answers(either, spec(seed=2**64 - 1), n=2)


async def test_without_sampling_all_answers_are_one(either: Engine) -> None:
    first, second = await answers(either, spec(temperature=0, seed=None), n=2)
    (again,) = await answers(either, spec(temperature=0, seed=3))
    assert first == second == again


async def test_a_stop_string_ends_an_answer_and_is_not_sent(either: Engine) -> None:
    (whole,) = await answers(either, spec(max_tokens=40))
    stop = whole.text[len(whole.text) // 2 :][:3]
    (cut,) = await answers(either, spec(max_tokens=40, stop=["never comes \0", stop]))
    assert cut.finish == ["stop"]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in either.decode(cut.token_ids)


async def test_closing_the_stream_ends_the_work(either: Engine) -> None:
    if isinstance(either, ScriptedEngine):
        either = ScriptedEngine(script=lambda *_: "word " * 500)
    async with aclosing(ask(either, spec(max_tokens=1500), n=2)) as chunks:
        await anext(chunks)
    assert await running(either) == 0


async def test_cancelling_the_consumer_ends_the_work(either: Engine) -> None:
    if isinstance(either, ScriptedEngine):
        either = ScriptedEngine(script=lambda *_: "word " * 500)
    begun = asyncio.Event()

    async def consume() -> None:
        async with aclosing(ask(either, spec(max_tokens=1500))) as chunks:
            async for _ in chunks:
                begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    assert await running(either) == 0


async def test_an_adapter_answers_in_its_own_way(either: Engine, adapter: Weights) -> None:
    (base,) = await answers(either, spec(temperature=0))
    (adapted,) = await answers(either, spec(temperature=0), weights=adapter)
    assert adapted.token_ids != base.token_ids


async def test_what_is_not_loaded_does_not_answer(either: Engine, adapter: Weights) -> None:
    for stranger in (
        Weights("stranger", 12345, Path("/nowhere")),
        Weights("other-name", adapter.adapter_id, adapter.path),
    ):
        with pytest.raises(NotFound, match="not loaded"):
            await answers(either, spec(), weights=stranger)
    await either.check()


async def test_loading_twice_is_loading_once(either: Engine, adapter: Weights) -> None:
    await either.load(adapter)
    await answers(either, spec(max_tokens=2), weights=adapter)


async def test_an_adapter_id_is_never_reused(either: Engine, adapter: Weights) -> None:
    with pytest.raises(Conflict, match=adapter.name):
        await either.load(Weights("other", adapter.adapter_id, adapter.path))


async def test_unloaded_weights_do_not_answer(either: Engine, adapter: Weights) -> None:
    await either.unload(adapter.adapter_id)
    await either.unload(adapter.adapter_id)
    with pytest.raises(NotFound):
        await answers(either, spec(), weights=adapter)


async def test_the_prompt_carries_roles_and_text(either: Engine) -> None:
    prompt = either.decode(either.render(QUESTION))
    for part in ("system", "You answer.", "user", "Why does a wheel turn? 日本語", "assistant"):
        assert part in prompt
    assert len(either.render([*QUESTION, ("assistant", "It must."), ("user", "Oh.")])) > len(either.render(QUESTION))


async def test_an_end_token_belongs_to_the_answer_and_not_to_its_text(
    either: Engine, write_adapter: Callable[..., Path], tmp_path: Path, tiny_model: Path
) -> None:
    if isinstance(either, ScriptedEngine):
        (answer,) = await answers(either, spec(max_tokens=500))
    else:
        weights = Weights("eager-to-end", 800, _end_lover(write_adapter, tmp_path, tiny_model, either))
        await either.load(weights)
        (answer,) = await answers(either, spec(max_tokens=500), weights=weights)
        await either.unload(800)
    assert answer.finish == ["stop"]
    assert answer.token_ids[-1] in either.eos_token_ids
    assert not either.eos_token_ids & set(answer.token_ids[:-1])
    assert answer.text == either.decode(answer.token_ids[:-1])


def _end_lover(write_adapter: Callable[..., Path], folder: Path, model: Path, engine: Engine) -> Path:
    """An adapter that pushes the last layer's output along the end token's embedding, so that it comes soon."""
    from safetensors.numpy import load_file

    (eos,) = engine.eos_token_ids
    direction = load_file(model / "model.safetensors")["model.embed_tokens.weight"][eos]

    def push(weights: dict) -> None:
        for key in weights:
            if "down_proj.lora_B" in key:
                weights[key][:] = 0
                weights[key][:, 0] = 100 * direction
            elif "down_proj" not in key:
                weights[key][:] = 0

    return write_adapter(folder / "end", tensors=push)


class TestScripted:
    """What only the scripted engine does, for the sake of tests."""

    async def test_a_script_replaces_the_answers(self) -> None:
        engine = ScriptedEngine(script=lambda weights, prompt, index: f"{weights.name} {index} {'wheel' in prompt}")
        found = await answers(engine, spec(max_tokens=100), n=2)
        assert [answer.text for answer in found] == ["base 0 True", "base 1 True"]

    async def test_text_comes_in_whole_characters(self) -> None:
        engine = ScriptedEngine(script=lambda *_: "é日🙂")
        chunks: list[Chunk] = [chunk async for chunk in ask(engine, spec(max_tokens=100))]
        assert [chunk.text for chunk in chunks if chunk.text] == ["é", "日", "🙂"]

    async def test_it_can_be_held(self, until: Callable[..., Awaitable[None]]) -> None:
        engine = ScriptedEngine()
        engine.resume.clear()
        task = asyncio.create_task(answers(engine, spec()))
        await until(lambda: len(engine.running) == 1)
        assert not task.done()
        engine.resume.set()
        assert (await task)[0].finish
