"""The plainest way from rated texts to a taste: TF-IDF of words and logistic regression.

As scikit-learn does it where nothing is set: words of two letters or more in lower case, smoothed inverse document
frequencies, rows of length 1; the sum of the losses and half the squared norm of the weights (C = 1), bias unpenalised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

WORD = re.compile(r"\b\w\w+\b")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TfIdf:
    """V words."""

    place: dict[str, int]
    idf: Floats  # (V,)
    weight: Floats  # (V,)
    bias: float

    @classmethod
    def fit(cls, texts: Sequence[str], liked: NDArray[Any]) -> TfIdf:
        """
        Args:
            texts: N of them.
            liked: (N,) 0 or 1.
        """
        place = {word: i for i, word in enumerate(sorted({word for text in texts for word in _words(text)}))}
        seen = Counter(place[word] for text in texts for word in set(_words(text)))
        counts = np.array([seen[i] for i in range(len(place))], dtype=np.float64)
        empty = cls(place, np.log((1 + len(texts)) / (1 + counts)) + 1, np.zeros(len(place)), 0.0)
        x, y = empty.rows(texts), np.asarray(liked, dtype=np.float64)

        def objective(theta: Floats) -> tuple[float, Floats]:
            weight, z = theta[:-1], x @ theta[:-1] + theta[-1]
            loss = -(y @ log_expit(z) + (1 - y) @ log_expit(-z)) + weight @ weight / 2
            gap = expit(z) - y
            return float(loss), np.append(x.T @ gap + weight, gap.sum())

        theta = minimize(objective, np.zeros(len(place) + 1), jac=True, method="L-BFGS-B").x
        return cls(place, empty.idf, theta[:-1], float(theta[-1]))

    def rows(self, texts: Sequence[str]) -> Floats:
        """(N, V); unknown words count for nothing."""
        x = np.zeros((len(texts), len(self.place)))
        for row, text in enumerate(texts):
            for word in _words(text):
                if word in self.place:
                    x[row, self.place[word]] += 1
        x *= self.idf
        length = np.linalg.norm(x, axis=1, keepdims=True)
        rows: Floats = x / np.where(length == 0, 1, length)
        return rows

    def score(self, texts: Sequence[str]) -> Floats:
        """(N,) logits."""
        scores: Floats = self.rows(texts) @ self.weight + self.bias
        return scores


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
