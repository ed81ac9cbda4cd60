"""Plain questions with checkable answers: what a version must not forget while it learns to please.

Ask each as a single user message, greedily, with at most ``MAX_TOKENS`` tokens. The answer counts if the first
thing it names of the asked kind is right and is not denied: "Paris.", "The capital of France is Paris." and
"Paris, a city in France" count; "Lyon or Paris", "It is not Paris", "Two is not 4." and an echo of the question do not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

MAX_TOKENS = 32
"""Length of an answer, in tokens. Of 72 answers of the embedded model that are right within 48, 70 are within 32."""

DENIED_BEFORE = re.compile(r"\b(?:not|never|nor|neither|cannot|\w+n['’]t)\s+(?:(?!but\b)\w+\s+){0,2}$", re.IGNORECASE)
DENIED_AFTER = re.compile(r"^\W{0,2}\s?(?:is|are|was|were|has|have|do|does)(?:\s+not\b|n['’]t\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """`accepted` are the right words or phrases; `rivals` are wrong ones of the same kind, such as other colours."""

    text: str
    accepted: tuple[str, ...]
    rivals: tuple[str, ...]


@cache
def questions() -> tuple[Question, ...]:
    """All questions, always in the same order."""
    data = json.loads(files("thumbwheel").joinpath("competence.json").read_text(encoding="utf-8"))
    kinds: dict[str, list[str]] = data["kinds"]
    return tuple(
        Question(entry["question"], tuple(entry["accepted"]), _rivals(kinds[entry["kind"]], entry))
        for entry in data["questions"]
    )


def check(question: Question, answer: str) -> bool:
    """Whether the answer is right; see the module's docstring for what counts."""
    for match in _pattern(question.accepted + question.rivals).finditer(answer):
        word = match.group().lower()
        # What the question itself names ("the day after Monday is Tuesday") is no attempt at an answer.
        if word not in question.accepted and _pattern((word,)).search(question.text):
            continue
        return word in question.accepted and not _denied(answer, match)
    return False


def _denied(answer: str, match: re.Match[str]) -> bool:
    return bool(DENIED_BEFORE.search(answer[: match.start()]) or DENIED_AFTER.search(answer[match.end() :]))


def _rivals(kind: list[str], entry: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(word for word in kind if word not in entry["accepted"])


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the words as a whole, the longest first so that "twenty-one" is not read as "twenty".

    A number inside a longer one (12 in 120, 1,200 or 12.5) is another number.
    """
    choices = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?<!\d[.,])(?:{choices})(?![\w-]|[.,]\d)", re.IGNORECASE)
