"""The learner's metrics, by the conventions of Prometheus."""

from __future__ import annotations

import re
import subprocess

from prometheus_client import REGISTRY, generate_latest

from learner import metrics
from tests.deploy import tools


def page() -> str:
    lines = generate_latest(REGISTRY).decode().splitlines()
    ours = r"(# (HELP|TYPE) )?thumbwheel_learner_(?!\w+_created)"
    return "\n".join(line for line in lines if re.match(ours, line)) + "\n"


def test_one_stage_at_a_time() -> None:
    for stage in metrics.STAGES:
        metrics.stage(stage)
        on = [name for name in metrics.STAGES if f'thumbwheel_learner_stage{{stage="{name}"}} 1.0' in page()]
        assert on == [stage]


def test_what_the_learner_does_and_since_when() -> None:
    metrics.stage("waiting")
    metrics.stage("training")
    metrics.progress.set(0.5)
    stage, since, progress = metrics.standing()
    assert (stage, progress) == ("training", 0.5)
    metrics.stage("training")
    assert metrics.standing() == ("training", since, 0.0), "the same stage has not begun anew"


def test_an_iteration_is_shown() -> None:
    metrics.ppo({"kl_per_sequence": 1.5, "clipfrac": 0.25, "unknown": 9.0})
    assert "thumbwheel_learner_kl_nats 1.5" in page()
    assert "thumbwheel_learner_clip_ratio 0.25" in page()


def test_promtool_finds_nothing() -> None:
    promtool = tools.prometheus("promtool")
    check = subprocess.run([promtool, "check", "metrics"], input=page(), capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout + check.stderr) == (0, "")
