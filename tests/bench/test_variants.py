"""What the studies of settings keep, and what they run again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import algorithms, efficiency, variants
from bench.variants import Run, Study, missing, read, summary
from thumbwheel import config


def made(variant: str, seed: int, after: float, outcomes: tuple[str, ...] = ("released",)) -> Run:
    return {
        "variant": variant, "seed": seed, "ratings": 100, "outcomes": list(outcomes), "up_rate_before": 0.2,
        "up_rate_after": after, "competence_change": 0.0, "kl_nats": 1.0, "minutes": 2.0, "learner_cpu_minutes": 3.0,
        "learner_peak_gib": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("study", [algorithms.STUDY, efficiency.STUDY], ids=lambda study: study.name)
def test_every_variant_is_a_configuration_of_its_own(study: Study) -> None:
    settings = [config.load(None, list(overrides)) for overrides in study.variants.values()]
    assert len({each.model_dump_json() for each in settings}) == len(settings)
    first = next(iter(study.variants.values()))
    assert config.load(None, list(first)) == config.Config()


def test_what_is_there_is_not_run_again() -> None:
    runs = [made("a", 1, 0.5), made("b", 2, 0.5)]
    assert missing([("a", 1), ("b", 1), ("a", 2), ("b", 2)], runs) == [("b", 1), ("a", 2)]


def test_a_row_is_of_all_seeds_and_says_what_was_refused() -> None:
    found = summary([made("a", 1, 0.5), made("b", 1, 0.9), made("a", 2, 0.7, ("refused", "released"))])
    assert list(found) == ["a", "b"]
    assert (found["a"]["released"], found["a"]["cycles"]) == (2, 3)
    spread = found["a"]["up_rate_after"]
    assert (spread.median, spread.low, spread.high, spread.runs) == (0.6, 0.5, 0.7, 2)


def test_each_run_is_kept_as_soon_as_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("study", "words", {"a": (), "b": ()})
    file, ran = tmp_path / "study.json", list[tuple[str, int]]()

    def run(study: Study, name: str, seed: int, ratings: int) -> Run:
        ran.append((name, seed))
        if len(ran) == 2:
            raise RuntimeError("it failed")
        return made(name, seed, 0.5)

    monkeypatch.setattr(variants, "_run", run)
    monkeypatch.setattr(sys, "argv", ["study", "--json", str(file)])
    with pytest.raises(RuntimeError):
        variants.main(study)
    assert [each["variant"] for each in read(file)] == ["a"]
    variants.main(study)
    assert ran == [("a", 1), ("b", 1), ("b", 1)]
    assert list(json.loads(file.read_text(encoding="utf-8"))["results"]["variants"]) == ["a", "b"]


def test_quick_runs_are_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, file = Study("study", "words", {"a": ()}), tmp_path / "study.json"
    monkeypatch.setattr(variants, "_run", lambda _, name, seed, ratings: made(name, seed, 0.5) | {"ratings": ratings})
    for words in (["--quick"], []):
        monkeypatch.setattr(sys, "argv", ["study", "--json", str(file), *words])
        variants.main(study)
    assert [run["ratings"] for run in read(file)] == [study.ratings]
