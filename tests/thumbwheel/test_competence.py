"""The checks count right answers, short or long, and nothing else."""

from __future__ import annotations

import re

import pytest

from thumbwheel.competence import Question, check, questions


def ask(text: str) -> Question:
    return next(question for question in questions() if question.text == text)


def test_there_are_enough_distinct_questions() -> None:
    assert len({question.text for question in questions()}) == len(questions()) >= 100


@pytest.mark.parametrize("question", questions(), ids=lambda question: question.text)
def test_every_question_takes_its_answers_and_nothing_cheap(question: Question) -> None:
    for word in question.accepted:
        assert check(question, word)
        assert check(question, f"{word.capitalize()}.")
        assert check(question, f"The answer is {word.upper()}, of course.")
        assert not check(question, f"It is not {word}.")
        assert not check(question, f"It isn't really {word}.")
        assert not check(question, f"xx{word}xx")
    for rival in question.rivals:
        named = re.search(rf"\b{rival}\b", question.text, re.IGNORECASE) is not None
        assert check(question, f"{rival}, or {question.accepted[0]}") == named, rival
    for wrong in ("", "Oooh.", "Two is not 4.", "I don't know.", question.text):
        assert not check(question, wrong)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("What is the capital of France?", "Paris, the city of light", True),
        ("What is the capital of France?", "It is not Lyon but Paris.", False),
        ("What is the capital of France?", "not in the south but in Paris", True),
        ("What is the capital of France?", "London. No, Paris.", False),
        ("What is 2 plus 2?", "2 + 2 = 4", True),
        ("What is 2 plus 2?", "2 + 2 = 40", False),
        ("What is 2 plus 2?", "4.5", False),
        ("What is 2 plus 2?", "4 isn't it", False),
        ("What is 2 plus 2?", "Four! It's 4.", True),
        ("Can pigs fly?", "No, pigs can't fly.", True),
        ("Can pigs fly?", "Pigs can fly, yes.", False),
    ],
)
def test_the_first_answer_counts(text: str, answer: str, right: bool) -> None:
    assert check(ask(text), answer) is right
