"""Models of other families: engine and learner mean the same by an adapter, or the model is refused at the start."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import torch

from bench.tiny_model import write
from cli.checkpoint import Checkpoint, require_usable
from learner.policy import Batch, Policy
from server.adapters import BaseShape, verify
from server.engine import SamplingSpec, Weights
from server.engine_vllm import start_engine
from tests.processes import apart
from thumbwheel.artifacts import model_digest
from thumbwheel.config import Config, Lora
from thumbwheel.errors import SetupError

LORA = Lora(rank=4, alpha=8, layers=0.5)
SERVER = {"threads": 2, "kv_cache_bytes": 64 << 20, "max_sequences": 8, "max_adapters": 3, "max_update_norm": 1000}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "gemma", "granite", "smollm3", "olmo2"])
def test_engine_and_learner_agree_on_base_and_adapter(family: str, tmp_path: Path) -> None:
    """PPO's ratios are their difference."""
    apart(agree, family, tmp_path)


async def agree(family: str, tmp_path: Path) -> None:
    model = write(tmp_path / "model", family)
    require_usable(Checkpoint(model, "model.path = mine"), None, 1)
    policy = Policy(model, LORA, seed=1)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    (tmp_path / "adapter").mkdir()
    policy.save_adapter(tmp_path / "adapter")

    config = Config.model_validate({"model": {"path": str(model)}, "server": SERVER})
    verify(tmp_path / "adapter", {"base_digest": model_digest(model)}, BaseShape.read(model), config.server)
    async with AsyncExitStack() as stack:
        engine = await start_engine(config)
        stack.push_async_callback(engine.close)
        adapted = Weights("v1", 1, tmp_path / "adapter")
        await engine.load(adapted)
        prompt = engine.render([("user", "Why?")])
        for weights, other in ((Weights("base", 0, None), adapted), (adapted, Weights("base", 0, None))):
            ids, logprobs = [], []
            spec = SamplingSpec(24, 1.0, 1.0, (), 7)
            async for chunk in engine.generate(weights.name, prompt, spec, 1, weights):
                ids += chunk.token_ids
                logprobs += chunk.logprobs
            batch = Batch.of([(tuple(prompt), tuple(ids))], policy.device)
            lower = policy.lower(batch)
            mine, theirs = (
                policy.answer_logps(policy.upper(lower, batch, reference=each.path is None), batch)[0][0].detach()
                for each in (weights, other)
            )
            torch.testing.assert_close(torch.tensor(logprobs), mine, atol=1e-3, rtol=0)
            assert (torch.tensor(logprobs) - theirs).abs().max() > 0.05, "the adapter makes no difference"


@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_layers_with_other_names_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="its layers have no"):
        require_usable(Checkpoint(write(tmp_path / "model", family), "model.path = mine"), None, 1)


def test_what_does_more_between_its_layers_is_refused_by_the_learner(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="does not work layer by layer"):
        Policy(write(tmp_path / "model", "gemma2"), LORA, seed=1)
