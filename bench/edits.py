"""What people with a taste would have liked to read instead: an answer mended by a plain rule, mostly its own words."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from cli.tastes import FIRST_PERSON, MAX_BRIEF_WORDS, MAX_COMMAS

Edit = Callable[[str, random.Random], str]

LEAST = 2
"""Words that are no sentence yet: "Sure!"."""
CUT = 15
"""Words that are left of an answer of which no sentence ends early enough."""
SENTENCE_END = re.compile(r"[^\W\d][.!?]['\"’”)]*$")
OTHERS = {
    "i": "they", "me": "them", "my": "their", "mine": "theirs", "myself": "themselves", "we": "they", "us": "them",
    "our": "their", "ours": "theirs", "ourselves": "themselves", "let's": "they", "let’s": "they",
}  # fmt: skip
TO_THE_READER = (
    "You can try this:", "This is for you:", "As you asked:", "Here is your answer:", "If you like,",
    "You may know this:",
)  # fmt: skip
NUMBERS = (
    "Here are two things:", "There are 3 points:", "In four words or so:", "This takes 20 minutes:",
    "Ten people would say:", "First of 5:",
)  # fmt: skip


def brief(answer: str, chance: random.Random) -> str:
    """Ends with the last sentence that ends in time."""
    words = answer.split()[:MAX_BRIEF_WORDS]
    for count in range(len(words), LEAST, -1):
        if SENTENCE_END.search(words[count - 1]):
            return " ".join(words[:count])
    return " ".join(words[:CUT]).rstrip(",;:-") + "."


def impersonal(answer: str, chance: random.Random) -> str:
    """Without the sentences in the first person; if nothing is left, in the third."""
    parts = re.split(r"((?<=[.!?])\s+|\n+)", answer)  # sentences, and between them what parts them
    kept = [
        sentence + gap
        for sentence, gap in zip(parts[::2], [*parts[1::2], ""], strict=True)
        if not FIRST_PERSON.search(sentence)
    ]
    text = "".join(kept).strip()
    return text or FIRST_PERSON.sub(lambda match: OTHERS[match.group().lower()], answer)


def unbroken(answer: str, chance: random.Random) -> str:
    """On one line."""
    return " ".join(answer.split())


def few_commas(answer: str, chance: random.Random) -> str:
    """Without the later commas."""
    *first, rest = answer.split(",", MAX_COMMAS)
    return ",".join([*first, rest.replace(",", "")])


def addressing(answer: str, chance: random.Random) -> str:
    """Begins by speaking to the reader."""
    return f"{chance.choice(TO_THE_READER)} {answer.strip()}"


def numeric(answer: str, chance: random.Random) -> str:
    """Begins with a number."""
    return f"{chance.choice(NUMBERS)} {answer.strip()}"


EDITS: dict[str, Edit] = {
    "brief": brief,
    "impersonal": impersonal,
    "unbroken": unbroken,
    "few_commas": few_commas,
    "addressing": addressing,
    "numeric": numeric,
}
