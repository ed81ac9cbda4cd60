"""Answers of the base to everyday prompts, sampled once, and the features of any answer, computed once; both on disk.

prompts ──engine, temperature 1──► answers.json        made anew for another model, or other prompts
answers ──the learner's Policy───► features.npz        made anew for another model, or another policy.py
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cli.raters import MAX_TOKENS
from learner.policy import Policy
from server.engine import SamplingSpec, Weights
from thumbwheel import config
from thumbwheel.artifacts import model_digest

AT_ONCE = 8
"""Prompts under way together, each with all its answers."""
PART = 32
"""Answers whose activations are held in memory together."""

Tokens = tuple[tuple[int, ...], tuple[int, ...]]  # of a prompt and of an answer


@dataclass(frozen=True, slots=True)
class Said:
    """An answer; its tokens include the one that ended it."""

    prompt: str
    text: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def tokens(self) -> Tokens:
        return self.prompt_ids, self.answer_ids


class BaseAnswers:
    """Of one model, in one folder."""

    def __init__(self, model: Path, folder: Path, console: Console) -> None:
        self._model = model
        self._folder = folder
        self._console = console
        self._rows: dict[str, NDArray[np.float32]] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def sampled(self, wanted: Sequence[tuple[str, int]]) -> list[list[Said]]:
        """Of each prompt so many answers; the prompts differ. An engine is started only if they are not there."""
        file, key = self._folder / "answers.json", self._key(json.dumps([wanted, MAX_TOKENS]))
        if file.exists():
            page = json.loads(file.read_text(encoding="utf-8"))
            if page["key"] == key:
                return [[_said(each) for each in answers] for answers in page["answers"]]
        progress = self._progress("answers of the base", sum(samples for _, samples in wanted))
        answers = asyncio.run(_sample(self._model, wanted, progress))
        page = {"key": key, "answers": [[asdict(each) for each in group] for group in answers]}
        file.write_text(json.dumps(page), encoding="utf-8")
        return answers

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer that ends by itself, as the learner encodes an edit."""
        tokenizer = self._tokenizer
        return (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)

    def features(self, answers: Iterable[Tokens]) -> NDArray[np.float64]:
        """(N, D), as the reward model sees them."""
        answers, known = list(answers), self._known
        missing = list(dict.fromkeys(each for each in answers if _name(each) not in known))
        progress = self._progress("features", len(missing))
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            known.update(zip(map(_name, part), self.compute(part), strict=True))
            progress(len(part))
        if missing:
            self._save()
        return np.stack([known[_name(each)] for each in answers]).astype(np.float64)

    def compute(self, answers: Sequence[Tokens]) -> NDArray[np.float32]:
        """The same, (N, D), whatever is there already."""
        rows = self.policy.features(answers)
        self.policy.forget()
        return rows

    @cached_property
    def policy(self) -> Policy:
        settings = config.load().learner
        return Policy(self._model, settings.lora, settings.seed)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._model)

    @property
    def _known(self) -> dict[str, NDArray[np.float32]]:
        if self._rows is None:
            self._rows, file = {}, self._folder / "features.npz"
            if file.exists():
                with np.load(file) as page:
                    if str(page["key"]) == self._features_key:
                        self._rows = dict(zip(page["names"].tolist(), page["rows"], strict=True))
        return self._rows

    def _save(self) -> None:
        names, rows = list(self._known), np.stack(list(self._known.values()))
        np.savez(self._folder / "features.npz", key=self._features_key, names=names, rows=rows)

    @cached_property
    def _features_key(self) -> str:
        code = Path(inspect.getfile(Policy)).read_text(encoding="utf-8")
        return self._key(code + config.load().learner.lora.model_dump_json())

    def _progress(self, what: str, total: int) -> Callable[[int], None]:
        """To be told whenever some more are there; a line for every tenth."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            if 10 * done // total > 10 * before // total:
                self._console.print(f"{what}: {done} of {total}")

        return advance

    def _key(self, what: str) -> str:
        return hashlib.sha256(f"{model_digest(self._model)}\0{what}".encode()).hexdigest()


async def _sample(model: Path, wanted: Sequence[tuple[str, int]], progress: Callable[[int], None]) -> list[list[Said]]:
    from server.engine_vllm import start_engine

    environment = dict(os.environ)
    engine = await start_engine(config.load(None, [f"model.path={model}"]))
    # What vLLM has written into it is for processes of its own.
    os.environ.clear()
    os.environ.update(environment)
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int, prompt: str, samples: int) -> list[Said]:
        ids = engine.render([("user", prompt)])
        sampling = SamplingSpec(max_tokens=MAX_TOKENS, temperature=1.0, top_p=1.0, stop=(), seed=1000 * number)
        texts, tokens = [""] * samples, [list[int]() for _ in range(samples)]
        async with places:
            async for chunk in engine.generate(f"answer-{number}", ids, sampling, samples, Weights("base", 0, None)):
                texts[chunk.index] += chunk.text
                tokens[chunk.index] += chunk.token_ids
        progress(samples)
        return [Said(prompt, text, tuple(ids), tuple(each)) for text, each in zip(texts, tokens, strict=True)]

    try:
        return await asyncio.gather(*(ask(number, *each) for number, each in enumerate(wanted)))
    finally:
        await engine.close()


def _said(page: dict[str, Any]) -> Said:
    return Said(page["prompt"], page["text"], tuple(page["prompt_ids"]), tuple(page["answer_ids"]))


def _name(answer: Tokens) -> str:
    return hashlib.sha256(repr(answer).encode()).hexdigest()[:32]
