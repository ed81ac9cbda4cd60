"""A published version is a plain PEFT folder: others load it as it is."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from bench.targets import ADAPTER, openai_server
from learner import ppo_math
from learner.policy import Answer, Batch, Policy
from learner.publish import Publisher
from thumbwheel import config
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import record_pb2 as pb

PAIRS: list[Answer] = [((5, 6, 7, 8), (9, 10, 11)), ((3,), (4, 5, 6, 7, 8))]


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    """Its adapter does something."""
    policy = Policy(tiny_model, config.Lora(rank=4, alpha=8, layers=0.5), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


@pytest.fixture
async def folder(policy: Policy, redis_url: str, tmp_path: Path) -> Path:
    """Of a version, as the learner publishes it: with its manifest and what the learner goes on from."""
    store = await Store.open(redis_url, "test")
    publisher = Publisher(Registry(store), tmp_path / "versions", "digest")
    batch = pb.BatchManifest(cycle_id="cycle-1", parent="base")
    record = await publisher.stage(policy.save_adapter, batch, 0, {})
    await store.close()
    return publisher.root / record.path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def by_policy(policy: Policy, *, reference: bool = False) -> list[torch.Tensor]:
    batch = Batch.of(PAIRS, policy.device)
    found = policy.answer_logps(policy.upper(policy.lower(batch), batch, reference=reference), batch)[0].detach()
    return [row[: len(answer)] for row, (_, answer) in zip(found, PAIRS, strict=True)]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


async def test_peft_loads_it_as_it_is(policy: Policy, folder: Path, tiny_model: Path) -> None:
    assert names(folder) >= {"adapter_config.json", "manifest.json", "training"}
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(folder))
    found = []
    for prompt, answer in PAIRS:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found.append(ppo_math.log_prob(logits, torch.tensor(answer)))
    assert_equal(found, by_policy(policy))
    assert (found[1] - by_policy(policy, reference=True)[1]).abs().max() > 0.01


@pytest.mark.slow
async def test_vllm_serves_it_as_one_of_its_lora_modules(
    policy: Policy, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """vLLM's own OpenAI server, with --lora-modules NAME=FOLDER and nothing of ours."""

    def ask(address: str, model: str, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        body = {"model": model, "prompt": [*prompt, *answer], "max_tokens": 1, "prompt_logprobs": 0}
        request = urllib.request.Request(
            f"http://{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            told: list[dict[str, Any]] = json.load(reply)["choices"][0]["prompt_logprobs"]
        places = zip(told[len(prompt) :], answer, strict=True)
        return torch.tensor([place[str(token)]["logprob"] for place, token in places])

    async with openai_server(tiny_model, folder, tmp_path) as (address, _):
        for model, reference in ((ADAPTER, False), (str(tiny_model), True)):
            found = [await asyncio.to_thread(ask, address, model, *pair) for pair in PAIRS]
            assert_equal(found, by_policy(policy, reference=reference))
