"""LoRA on the reward model: learns what the head does not know, and is used only where that pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.dataset import Answer, Dataset, Label, Pair, fold
from learner.policy import Policy
from learner.reward_lora import ANSWERS, FILE, FOLDS, UNSEEN, RewardLora
from learner.reward_model import auc
from thumbwheel import config
from thumbwheel.errors import AdapterRefused

LORA = config.Lora(rank=16, alpha=32, layers=0.5)
TOKENS = 96
COUNT = 400


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return Policy(tiny_model, LORA, seed=1)


def answers(count: int = COUNT) -> list[Answer]:
    """Of the same few words in any order."""
    dice = np.random.default_rng(0)
    return [
        Answer(f"r{i}", f"conversation {i}", (1, 2), tuple((dice.permutation(6) + 100).tolist()), (), "base", 8, True)
        for i in range(count)
    ]


def liked(answer: Answer) -> bool:
    """How it begins: means over tokens do not tell."""
    return answer.answer_ids[0] < 103


def thumbs(said: list[Answer]) -> Dataset:
    return Dataset(said, [Label(i, float(liked(answer)), "a") for i, answer in enumerate(said)])


def passes(policy: Policy, data: Dataset, folder: Path, count: int) -> RewardLora:
    """Cycles, each of which goes on from the one before it."""
    parent = None
    for number in range(count):
        lora = RewardLora(policy, TOKENS)
        lora.learn(data, np.zeros(len(data.answers)), parent, seed=number)
        parent = folder / str(number)
        parent.mkdir()
        lora.save(parent)
    return lora


def pairs(said: list[Answer]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(answer.prompt_ids, answer.answer_ids) for answer in said]


def test_what_the_head_cannot_see_is_learned_over_the_cycles_and_used(policy: Policy, tmp_path: Path) -> None:
    said = answers()
    lora = passes(policy, thumbs(said), tmp_path, 3)
    assert lora.gain is not None
    assert lora.gain.pays
    assert lora.gain.mean > 0.2
    unseen = [answer for answer in said if fold(answer.conversation, FOLDS) == UNSEEN]
    assert auc(lora.lift(pairs(unseen)), np.array([liked(answer) for answer in unseen])) > 0.9


def test_a_cycle_goes_on_where_its_parent_was(policy: Policy, tmp_path: Path) -> None:
    data = thumbs(answers())
    nothing = np.zeros(COUNT)
    lora = passes(policy, data, tmp_path, 3)
    onward, afresh = RewardLora(policy, TOKENS), RewardLora(policy, TOKENS)
    assert lora.gain is not None
    assert onward.learn(data, nothing, tmp_path / "2", seed=9).mean > lora.gain.mean
    assert afresh.learn(data, nothing, None, seed=9).mean < lora.gain.mean


def test_rankings_are_learned_too(policy: Policy, tmp_path: Path) -> None:
    said = [replace(answer, conversation=f"conversation {i // 2}") for i, answer in enumerate(answers())]
    chosen = [(i, i + 1) for i in range(0, COUNT, 2) if liked(said[i]) != liked(said[i + 1])]
    ranked = [Pair(a, b, 1.0, "a") if liked(said[a]) else Pair(b, a, 1.0, "a") for a, b in chosen]
    lora = passes(policy, Dataset(said, [], ranked), tmp_path, 3)
    assert lora.gain is not None
    assert lora.gain.pays


def test_votes_by_chance_do_not_pay_and_lift_nothing(policy: Policy, tmp_path: Path) -> None:
    said, dice = answers(), np.random.default_rng(1)
    data = Dataset(said, [Label(i, float(dice.random() < 0.5), "a") for i in range(COUNT)])
    lora = passes(policy, data, tmp_path, 3)
    assert lora.gain is not None
    assert not lora.gain.pays
    assert not lora.lift(pairs(said)).any()


def test_what_harms_is_not_handed_on(policy: Policy, tmp_path: Path) -> None:
    """The unseen say the opposite of what it is taught."""
    said = answers()
    opposite = [fold(answer.conversation, FOLDS) == UNSEEN for answer in said]
    data = Dataset(said, [Label(i, float(liked(a) ^ opposite[i]), "a") for i, a in enumerate(said)])
    lora = RewardLora(policy, TOKENS)
    for _ in range(3):
        gain = lora.learn(data, np.zeros(COUNT), None, seed=1)
    assert gain.harms
    lora.save(tmp_path)
    assert not (tmp_path / FILE).exists()


def test_the_unseen_never_train_it(policy: Policy) -> None:
    said = answers()
    seen = Dataset(said, [x for x in thumbs(said).labels if fold(said[x.answer].conversation, FOLDS) != UNSEEN])
    unseen = [x for x in thumbs(said).labels if fold(said[x.answer].conversation, FOLDS) == UNSEEN]
    one, other = RewardLora(policy, TOKENS), RewardLora(policy, TOKENS)
    weights = []
    for lora, labels in ((one, unseen), (other, [replace(x, value=1 - x.value) for x in unseen])):
        lora.learn(Dataset(said, [*seen.labels, *labels]), np.zeros(COUNT), None, seed=1)
        with policy.wearing("reward") as tensors:
            weights.append({name: tensor.clone() for name, tensor in tensors.items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_repeated_it_is_the_same_bit_for_bit(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    """In another process, too: one that remembers nothing."""
    data = thumbs(answers(120))
    for number, backbone in enumerate((policy, policy, Policy(tiny_model, LORA, seed=1))):
        lora = RewardLora(backbone, TOKENS)
        lora.learn(data, np.zeros(120), None, seed=3)
        (tmp_path / str(number)).mkdir()
        lora.save(tmp_path / str(number))
    first, *others = ((tmp_path / str(number) / FILE).read_bytes() for number in range(3))
    assert others == [first, first]


def test_the_policy_is_as_it_was(policy: Policy, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    policy.save_adapter(before)
    parameters = policy.adapter_parameters()
    random = torch.random.get_rng_state()
    RewardLora(policy, TOKENS).learn(thumbs(answers(60)), np.zeros(60), None, seed=1)
    policy.save_adapter(after)
    files = sorted(file.relative_to(before) for file in before.rglob("*") if file.is_file())
    assert files
    assert all((before / file).read_bytes() == (after / file).read_bytes() for file in files)
    kept = policy.adapter_parameters()
    assert len(kept) == len(parameters)
    assert all(a is b for a, b in zip(kept, parameters, strict=True))
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_pass_is_bounded_and_says_how_far_it_is(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[int] = []
    step = RewardLora._step
    monkeypatch.setattr(
        RewardLora,
        "_step",
        lambda self, optimiser, pairs, *rest: (taught.append(len(pairs)), step(self, optimiser, pairs, *rest)),
    )
    told: list[float] = []
    said = answers(ANSWERS + 300)
    RewardLora(policy, TOKENS).learn(thumbs(said), np.zeros(len(said)), None, seed=1, progress=told.append)
    assert ANSWERS - 10 < sum(taught) <= ANSWERS
    assert told == sorted(told)
    assert 0 < told[0] < told[-1] <= 1


def test_another_shape_is_refused(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    data = thumbs(answers(60))
    lora = RewardLora(policy, TOKENS)
    lora.learn(data, np.zeros(60), None, seed=1)
    lora.save(tmp_path)
    wider = Policy(tiny_model, config.Lora(rank=8, alpha=32, layers=0.5), seed=1)
    with pytest.raises(AdapterRefused, match="shape"):
        RewardLora(wider, TOKENS).learn(data, np.zeros(60), tmp_path, seed=1)


def test_nothing_learned_lifts_nothing_and_leaves_nothing(policy: Policy, tmp_path: Path) -> None:
    lora = RewardLora(policy, TOKENS)
    assert lora.lift(pairs(answers(3))).tolist() == [0, 0, 0]
    lora.save(tmp_path)
    assert not list(tmp_path.iterdir())
