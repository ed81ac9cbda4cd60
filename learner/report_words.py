"""Which words moved the reward model.

It is linear in means over an answer's tokens, so what each token brings to the logit is no estimate: these shares, what
the form brings, and the bias add up to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_ANSWERS = 3
"""A word of fewer answers tells more of these than of the model."""
SHOWN = 12
"""Words of either sign."""
KEPT_TURNS = 12
"""Turns that are remembered of a word. When fewer than LEAST_ANSWERS of them are left, it is forgotten too."""
_STARTS = ("Ġ", "▁", "Ċ", " ")
"""How byte-level and SentencePiece vocabularies mark a token that begins a word."""

SplitWords = Callable[[Sequence[int]], Sequence[tuple[str, int]]]
"""Token ids of an answer -> its words in their order, each with how many tokens it takes."""


class Spoken(NamedTuple):
    """An answer: its turn, its words, and what each of its tokens brings to the logit, (A,)."""

    turn: str
    words: Sequence[tuple[str, int]]
    brought: NDArray[np.float64]


class Effect(NamedTuple):
    """What a word brings to the logit of an answer that it is in, on the mean over `answers` of them."""

    text: str
    mean: float
    answers: int
    turns: tuple[str, ...]


def effects(spoken: Iterable[Spoken]) -> list[Effect]:
    """The words that bring most and least, the best first; upper and lower case count as one."""
    brought: dict[str, list[float]] = defaultdict(list)
    turns: dict[str, dict[str, None]] = defaultdict(dict)  # an ordered set
    for answer in spoken:
        shares: dict[str, float] = defaultdict(float)
        at = 0
        for text, length in answer.words:
            shares[text.casefold()] += float(answer.brought[at : at + length].sum())
            at += length
        for text, share in shares.items():
            brought[text].append(share)
            turns[text][answer.turn] = None
    found = [
        Effect(text, float(np.mean(shares)), len(shares), tuple(turns[text])[:KEPT_TURNS])
        for text, shares in brought.items()
        if text and len(turns[text]) >= LEAST_ANSWERS
    ]
    found.sort(key=lambda effect: (-effect.mean, effect.text))
    best = [effect for effect in found if effect.mean > 0][:SHOWN]
    return best + [effect for effect in found if effect.mean < 0][-SHOWN:]


def splitter(tokenizer: Any) -> SplitWords:
    """Words by a Hugging Face tokenizer; marks of punctuation stand alone."""

    @cache
    def is_worded(token: int) -> bool:
        return any(map(str.isalnum, tokenizer.decode([token])))

    def split(tokens: Sequence[int]) -> list[tuple[str, int]]:
        groups: list[list[int]] = []
        goes_on = False
        for token, piece in zip(tokens, tokenizer.convert_ids_to_tokens(list(tokens)), strict=True):
            if goes_on and is_worded(token) and not str(piece).startswith(_STARTS):
                groups[-1].append(token)
            else:
                groups.append([token])
            goes_on = is_worded(token)
        return [(_shown(tokenizer.decode(group)), len(group)) for group in groups]

    return split


def _shown(text: str) -> str:
    return text.strip() or ("↵" if "\n" in text else "␣")
