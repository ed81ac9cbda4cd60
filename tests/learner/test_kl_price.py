from __future__ import annotations

import pytest

from learner.kl_price import AIM, KlPrice

BUDGET = 5.0
ITERATIONS = 6


def cycle(distance: float, price: KlPrice, pull: float) -> tuple[list[float], list[float]]:
    """A policy at a distance d from the base (KL d²/2) that reward pulls away and the price of KL holds back.

    Returns the KL before each iteration and after the last, and the price of each.
    """
    kls, prices = [], []
    for number in range(ITERATIONS):
        kls.append(distance**2 / 2)
        prices.append(price.after(kls[-1]))
        rate = 0.8 if number else 0.5  # the rate warms up
        distance += rate * (pull - 2.5 * prices[-1] * distance)
    return [*kls, distance**2 / 2], prices


class Fixed(KlPrice):
    def after(self, kl: float) -> float:
        return self._price


def test_the_budget_holds_where_a_fixed_price_overshoots() -> None:
    fixed, _ = cycle(0.0, Fixed(0.1, BUDGET, ITERATIONS), pull=1.5)
    held, prices = cycle(0.0, KlPrice(0.1, BUDGET, ITERATIONS), pull=1.5)
    assert max(fixed) > 1.5 * BUDGET
    assert max(held) < BUDGET
    assert max(held) > 0.6 * BUDGET, "it is there to be spent"
    assert prices[0] == 0.1


def test_it_holds_over_cycles_for_each_starts_at_the_price_of_the_last() -> None:
    held, price = [0.0], 0.0
    forgetful = [0.0]
    for _ in range(4):
        kls, prices = cycle((2 * held[-1]) ** 0.5, KlPrice(0.1, BUDGET, ITERATIONS, price), pull=1.5)
        held += kls
        price = prices[-1]
        forgetful += cycle((2 * forgetful[-1]) ** 0.5, KlPrice(0.1, BUDGET, ITERATIONS), pull=1.5)[0]
    assert max(held) < BUDGET
    assert held[-1] == pytest.approx(AIM * BUDGET, rel=0.1)
    assert max(forgetful) > BUDGET


def test_who_keeps_within_the_budget_pays_the_usual_price() -> None:
    kls, prices = cycle(0.0, KlPrice(0.1, BUDGET, ITERATIONS), pull=1.0)
    assert max(kls) < BUDGET
    assert prices == [0.1] * ITERATIONS


def test_numbers_by_hand() -> None:
    price = KlPrice(0.1, 10.0, 3)  # aims at 9
    assert price.after(0.0) == pytest.approx(0.1)  # where it began
    assert price.after(4.5) == pytest.approx(0.15)  # 3 were due: × 1.5
    assert price.after(600.0) == pytest.approx(0.3)  # 6 were due: × 2 at most
    assert price.after(6.0) == pytest.approx(0.2)  # 9 were due: × 2/3
    assert price.after(0.0) == pytest.approx(0.1)  # halved at most
    assert price.after(0.0) == pytest.approx(0.1)  # and never below the floor


def test_a_policy_that_begins_beyond_the_budget_is_called_back() -> None:
    price = KlPrice(0.1, 10.0, 3)
    assert price.after(12.0) == pytest.approx(0.1 * 12 / 9)


def test_a_price_of_zero_stays_zero() -> None:
    assert KlPrice(0.0, 1.0, 3).after(50.0) == 0
