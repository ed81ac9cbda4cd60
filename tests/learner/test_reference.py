"""A candidate that forgets the language is found by its perplexity on a fixed text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from learner import reference
from learner.policy import Policy
from thumbwheel.config import Config


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return Policy(tiny_model, Config().learner.lora, 1)


def windows(tiny_model: Path) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return reference.windows(lambda text: tokenizer(text)["input_ids"])


def test_every_token_of_the_text_is_in_one_window(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    pieces = windows(tiny_model)
    assert [token for first, rest in pieces for token in first + rest] == tokenizer(reference.text())["input_ids"]
    assert all(len(first) == 1 and len(rest) < reference.WINDOW for first, rest in pieces)
    assert sum(len(rest) for _, rest in pieces) > 500


def test_the_base_is_the_base(policy: Policy, tiny_model: Path) -> None:
    policy.load_adapter(None)
    assert reference.perplexity_ratio(policy, windows(tiny_model)) == pytest.approx(1, abs=1e-6)


def test_perplexity_agrees_with_transformers(policy: Policy, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy.load_adapter(None)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    pieces = windows(tiny_model)[:2]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)

    def loss(model: torch.nn.Module) -> float:
        found = [model(torch.tensor([a + b]), labels=torch.tensor([a + b])).loss * len(b) for a, b in pieces]
        return float(sum(found)) / sum(len(b) for _, b in pieces)

    with torch.no_grad():
        expected = torch.tensor(loss(policy._model) - loss(base)).exp()
    assert reference.perplexity_ratio(policy, pieces) == pytest.approx(float(expected), rel=1e-4)
    assert float(expected) != pytest.approx(1, abs=1e-3)
    policy.load_adapter(None)


def test_what_is_no_number_is_no_language(policy: Policy, tiny_model: Path) -> None:
    policy.load_adapter(None)
    with torch.no_grad():
        policy.adapter_parameters()[0].fill_(float("nan"))
        policy.adapter_parameters()[1].fill_(1.0)
    ratio = reference.perplexity_ratio(policy, windows(tiny_model)[:1])
    assert not ratio <= 1.2
    policy.load_adapter(None)
