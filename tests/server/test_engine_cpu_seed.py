"""Seeded answers to prompts that do not fit into one step."""

from __future__ import annotations

import itertools

import pytest
import torch
from prometheus_client import REGISTRY

from server.engine import Engine, SamplingSpec, Weights
from server.engine_vllm import CPU_STEP_TOKENS

numbers = itertools.count()


def test_stock_generators_cannot_go_back() -> None:
    with pytest.raises(RuntimeError, match="offset"):
        torch.Generator().get_offset()


def test_a_rewinding_generator_goes_back_to_where_it_was_kept() -> None:
    from server.engine_cpu_seed import RewindingGenerator

    generator, stock = RewindingGenerator(), torch.Generator()
    generator.manual_seed(5)
    stock.manual_seed(5)
    drawn = [torch.empty(3).exponential_(generator=stock) for _ in range(2)]
    generator.keep()
    for _ in range(2):
        torch.testing.assert_close(torch.empty(3).exponential_(generator=generator), drawn[0])
        generator.set_offset(generator.get_offset() - 4)
    torch.empty(3).exponential_(generator=generator)
    generator.keep()
    for _ in range(2):
        torch.testing.assert_close(torch.empty(3).exponential_(generator=generator), drawn[1])
        generator.set_offset(generator.get_offset() - 4)


async def test_a_seeded_answer_does_not_depend_on_how_its_prompt_was_cut(engine: Engine) -> None:
    prompt = (engine.render([("user", "A long story of one wheel and another.")]) * 100)[: 3 * CPU_STEP_TOKENS]

    async def ask() -> tuple[list[int], float]:
        found, hits = [], cached_tokens()
        request = f"seeded-{next(numbers)}"
        async for chunk in engine.generate(
            request, prompt, SamplingSpec(16, 1.0, 1.0, (), 3), 1, Weights("base", 0, None)
        ):
            found += chunk.token_ids
        return found, cached_tokens() - hits

    (pieces, nothing), (whole, hits) = await ask(), await ask()
    assert nothing < CPU_STEP_TOKENS < hits, "the second prompt was not taken from the cache: nothing was compared"
    assert pieces == whole


def cached_tokens() -> float:
    return next(s.value for m in REGISTRY.collect() for s in m.samples if s.name == "vllm:prefix_cache_hits_total")
