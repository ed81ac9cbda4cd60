"""Guard-rails: quiet between equals, loud where answers are worse by more than chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.rails import alarms, figures
from thumbwheel_client.v1 import record_pb2 as pb


def people(seed: int, count: int = 200) -> NDArray[np.float64]:
    draw = np.random.default_rng(seed)
    return np.column_stack(
        [draw.normal(4, 0.7, count), draw.normal(-3, 0.5, count), draw.random(count) < 0.1, draw.random(count) < 0.03]
    ).astype(np.float64)


def test_equals_are_left_alone() -> None:
    assert not any(alarms(people(2 * seed), people(2 * seed + 1)) for seed in range(300))


@pytest.mark.parametrize(
    ("rail", "move", "word"),
    [(0, math.log(2), "length"), (0, -math.log(2), "length"), (1, math.log(2), "seconds"), (2, 0.4, "broke off"),
     (3, 0.3, "refusals")],
)  # fmt: skip
def test_each_rail(rail: int, move: float, word: str) -> None:
    new = people(1)
    new[:, rail] += move
    (alarm,) = alarms(new, people(2))
    assert word in alarm


def test_faster_is_no_fault() -> None:
    new = people(1)
    new[:, 1] -= 1
    assert alarms(new, people(2)) == []


def test_an_answers_figures() -> None:
    turn = pb.TurnRecord()
    turn.created_at.FromMilliseconds(1_000)
    response = pb.ResponseRecord(token_ids=[1] * 10, text="I’m sorry, but no.", finish_reason=pb.FINISH_REASON_LENGTH)
    response.finished_at.FromMilliseconds(2_000)
    assert figures(turn, response) == pytest.approx((math.log(10), math.log(0.1), 1.0, 1.0))
