"""TF-IDF and logistic regression against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from bench.tfidf import TfIdf


def test_rows_by_hand() -> None:
    model = TfIdf.fit(["Red red fish", "a blue fish"], np.array([1, 0]))
    assert list(model.place) == ["blue", "fish", "red"]  # "a" is too short to be a word
    rare = np.log(3 / 2) + 1
    assert model.idf == pytest.approx([rare, 1.0, rare])
    row = np.array([0, 1, 2 * rare])
    assert model.rows(["red, fish; RED unheard"])[0] == pytest.approx(row / np.linalg.norm(row))
    assert not model.rows(["unheard"]).any()


def test_the_fit_is_where_the_loss_is_least() -> None:
    texts = [f"{'good' if number % 3 else 'bad'} word{number % 5} word{number % 7}" for number in range(60)]
    liked = np.array([float(number % 3 > 0) for number in range(60)])
    liked[::10] = 1 - liked[::10]
    model = TfIdf.fit(texts, liked)
    gap = liked - expit(model.score(texts))
    assert model.weight == pytest.approx(model.rows(texts).T @ gap, abs=1e-3)  # C = 1
    assert gap.sum() == pytest.approx(0, abs=1e-3)
    assert model.score(["good"])[0] > model.score(["bad"])[0]
