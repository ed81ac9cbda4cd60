"""The split backbone against the whole model, on a tiny random Llama."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

from learner import ppo_math
from learner.policy import Answer, Batch, Policy, microbatches
from thumbwheel import config
from thumbwheel.errors import AdapterRefused, SetupError

LORA = config.Lora(rank=4, alpha=8, layers=0.5)
PAIRS: list[Answer] = [((5, 6, 7, 8), (9, 10, 11)), ((3,), (4, 5, 6, 7, 8)), ((1, 2, 3, 4, 5, 6), (2,))]


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return Policy(tiny_model, LORA, seed=1)


def disturb(policy: Policy, seed: int = 0) -> None:
    """An adapter and a value head that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*policy.adapter_parameters(), *policy.value_head.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logps(policy: Policy, pairs: list[Answer], *, reference: bool = False) -> torch.Tensor:
    batch = Batch.of(pairs, policy.device)
    return policy.answer_logps(policy.upper(policy.lower(batch), batch, reference=reference), batch)[0]


def whole_logps(model: torch.nn.Module, pair: Answer) -> torch.Tensor:
    """The slow way: one answer through the unsplit model."""
    prompt, answer = pair
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return ppo_math.log_prob(logits.float(), torch.tensor(answer))


def test_the_split_model_is_the_whole_model(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    """Also: what is saved loads with PEFT and says the same."""
    disturb(policy)
    policy.save_adapter(tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    reference = [whole_logps(base, pair).detach() for pair in PAIRS]
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path))
    with torch.no_grad():
        for row, pair in enumerate(PAIRS):
            size = len(pair[1])
            torch.testing.assert_close(logps(policy, PAIRS)[row, :size], whole_logps(adapted, pair), atol=1e-4, rtol=0)
            mine = logps(policy, PAIRS, reference=True)[row, :size]
            torch.testing.assert_close(mine, reference[row], atol=1e-4, rtol=0)
            assert (mine - whole_logps(adapted, pair)).abs().max() > 0.01  # the adapter does something


def test_a_fresh_adapter_changes_nothing(policy: Policy) -> None:
    assert torch.equal(logps(policy, PAIRS).detach(), logps(policy, PAIRS, reference=True))


def test_entropy_is_that_of_the_distribution(policy: Policy, tiny_model: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    batch = Batch.of(PAIRS, policy.device)
    _, entropy, _ = policy.answer_logps(policy.upper(policy.lower(batch), batch, reference=True), batch)
    prompt, answer = PAIRS[1]
    slow = ppo_math.entropy(base(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1])
    torch.testing.assert_close(entropy[1, : len(answer)], slow.detach(), atol=1e-4, rtol=0)


def test_gradients_reach_the_adapter_and_nothing_else(policy: Policy) -> None:
    disturb(policy)
    logps(policy, PAIRS).sum().backward()
    with_gradient = {name for name, parameter in policy._model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in policy._model.named_parameters() if "lora_" in name}
    assert all(".layers.1." in name for name in with_gradient)  # the top half of two layers
    assert all(
        parameter.grad.abs().sum() > 0 for parameter in policy.adapter_parameters() if parameter.grad is not None
    )


def test_values_do_not_bend_the_policy(policy: Policy) -> None:
    batch = Batch.of(PAIRS, policy.device)
    values = policy.values(policy.states(policy.upper(policy.lower(batch), batch, reference=False)))
    assert values.shape == (3, 5)
    assert torch.count_nonzero(values) == 0  # starts at 0
    values.sum().backward()
    assert all(parameter.grad is None for parameter in policy.adapter_parameters())
    assert policy.value_head.weight.grad is not None


def test_padding_and_company_change_nothing(policy: Policy) -> None:
    disturb(policy)
    together = logps(policy, PAIRS)
    for row, pair in enumerate(PAIRS):
        size = len(pair[1])
        torch.testing.assert_close(together[row, :size], logps(policy, [pair])[0], atol=1e-5, rtol=0)
        assert torch.count_nonzero(together[row, size:]) == 0


def test_what_prompts_share_is_computed_once_and_changes_nothing(policy: Policy) -> None:
    """Values and gradients are those of each answer alone."""
    disturb(policy)
    system = (21, 22, 23, 24)
    pairs: list[Answer] = [((*system, *prompt), answer) for prompt, answer in PAIRS]
    batch = Batch.of(pairs, policy.device)
    assert batch.shared == 4
    together = logps(policy, pairs)
    (together * batch.mask).sum().backward()
    gradients = [parameter.grad for parameter in policy.adapter_parameters()]
    for parameter in policy.adapter_parameters():
        parameter.grad = None
    for row, pair in enumerate(pairs):
        alone = logps(policy, [pair])
        torch.testing.assert_close(together[row, : len(pair[1])], alone[0], atol=1e-5, rtol=0)
        alone.sum().backward()
    for parameter, gradient in zip(policy.adapter_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-3)


def test_the_token_that_predicts_the_answer_is_never_shared() -> None:
    assert Batch.of([((1, 2, 3), (4,)), ((1, 2, 3), (5, 6))], torch.device("cpu")).shared == 2
    assert Batch.of([((1, 2, 3), (4,)), ((1, 2), (3, 4))], torch.device("cpu")).shared == 1
    assert Batch.of([((1, 2), (4,)), ((2, 2), (3, 4))], torch.device("cpu")).shared == 0


def test_features_are_the_answers_mean_words_meaning_and_form(policy: Policy, tiny_model: Path) -> None:
    disturb(policy)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    features = policy.features(PAIRS)
    assert features.shape == (3, 64 + 64 + 2)
    for row, (prompt, answer) in enumerate(PAIRS):
        hidden = base(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
        for layer, start in ((0, 0), (policy.boundary, 64)):
            mean = hidden[layer][0, len(prompt) :].mean(0).detach().numpy()
            np.testing.assert_allclose(features[row, start : start + 64], mean, atol=1e-4)
    # Three tokens that end in no end-of-turn token, and one that is nothing else.
    np.testing.assert_allclose(features[[0, 2], 128:], [[np.log(4), 0], [np.log(2), 1]], atol=1e-6)
    for row, tokens in enumerate(policy.token_features(PAIRS)):
        assert len(tokens) == len(PAIRS[row][1])
        np.testing.assert_allclose(tokens.mean(0), features[row, :-2], atol=1e-6)


def test_activations_are_computed_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    first = policy.activations(PAIRS)
    monkeypatch.setattr(policy, "lower", None)  # a second computation would fail
    again = policy.activations([PAIRS[2], PAIRS[0]])
    assert torch.equal(again[0], first[2])
    assert torch.equal(again[1], first[0])


def test_company_and_memory_change_no_bit_of_what_lies_below_the_adapter(policy: Policy, tiny_model: Path) -> None:
    """Otherwise a learner that was killed, and remembers nothing, would make other weights of the same votes."""
    generator = torch.Generator().manual_seed(0)
    system = (21, 22, 23, 24)
    pairs: list[Answer] = [
        ((*system, 5, 6 + index % 3), tuple(torch.randint(3, 999, (1 + 7 * index,), generator=generator).tolist()))
        for index in range(12)
    ]
    cold = [policy.activations([pair])[0] for pair in pairs]
    features = policy.features(pairs)
    together = Policy(tiny_model, LORA, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(together.activations(pairs), cold, strict=True))
    warm = Policy(tiny_model, LORA, seed=1)
    warm.activations(pairs[::2])
    assert all(torch.equal(a, b) for a, b in zip(warm.activations(pairs[::-1]), cold[::-1], strict=True))
    for other in (together, warm):
        np.testing.assert_array_equal(other.features(pairs), features)


def test_saving_is_deterministic_and_round_trips(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    disturb(policy)
    policy.save_adapter(tmp_path / "a")
    other = Policy(tiny_model, LORA, seed=2)
    other.load_adapter(tmp_path / "a")
    other.save_adapter(tmp_path / "b")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(name) for name in names] == [
        "adapter_config.json", "adapter_model.safetensors", "training/value_head.safetensors",
    ]  # fmt: skip
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert torch.equal(logps(policy, PAIRS), logps(other, PAIRS))
    assert str(tiny_model) not in (tmp_path / "a" / "adapter_config.json").read_text()


def test_none_starts_afresh(policy: Policy, tiny_model: Path) -> None:
    disturb(policy)
    policy.load_adapter(None)
    assert torch.equal(logps(policy, PAIRS).detach(), logps(policy, PAIRS, reference=True))
    assert torch.count_nonzero(policy.value_head.weight) == 0
    same, other = Policy(tiny_model, LORA, seed=1), Policy(tiny_model, LORA, seed=2)
    same.load_adapter(None)
    other.load_adapter(None)
    pairs = list(zip(policy.adapter_parameters(), same.adapter_parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(policy.adapter_parameters()[0], other.adapter_parameters()[0])


def test_refuses_an_adapter_of_another_shape(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    Policy(tiny_model, config.Lora(rank=8, alpha=8), seed=1).save_adapter(tmp_path)
    with pytest.raises(AdapterRefused, match="r is 8"):
        policy.load_adapter(tmp_path)


def test_refuses_an_adapter_with_other_keys_or_not_finite(policy: Policy, tmp_path: Path) -> None:
    policy.save_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = next(iter(tensors))
    safetensors.torch.save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(AdapterRefused, match="not finite"):
        policy.load_adapter(tmp_path)
    safetensors.torch.save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(AdapterRefused, match="missing"):
        policy.load_adapter(tmp_path)
    safetensors.torch.save_file({**tensors, name: tensors[name][:1]}, file)
    with pytest.raises(AdapterRefused, match="not"):
        policy.load_adapter(tmp_path)


def test_adapter_config_says_what_peft_and_the_engine_need(policy: Policy, tmp_path: Path) -> None:
    policy.save_adapter(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 8)
    assert settings["layers_to_transform"] == [1]
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert settings["base_model_name_or_path"] is None


def test_a_model_that_is_not_like_llama_is_refused(tmp_path: Path) -> None:
    tiny = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(SetupError, match="GPT2"):
        Policy(tmp_path, LORA, seed=1)


def test_batch_refuses_nothing_to_learn_from() -> None:
    with pytest.raises(ValueError, match="empty"):
        Batch.of([((1, 2), ())], torch.device("cpu"))


def test_microbatches_hold_everything_once_within_the_limit() -> None:
    lengths = [3, 9, 4, 4, 20, 1, 7]
    pairs: list[Answer] = [((0,), (0,) * (length - 1)) for length in lengths]
    groups = list(microbatches(pairs, [0, 1, 2, 3, 4, 6], tokens=12))
    assert sorted(index for group in groups for index in group) == [0, 1, 2, 3, 4, 6]
    assert [4] in groups  # longer than the limit: alone
    assert all(len(group) * max(lengths[i] for i in group) <= 12 for group in groups if group != [4])
    assert [len(group) for group in groups] == [1, 1, 1, 3]  # 20 | 9 | 7 | 4 4 3
