"""What operators see of the learner."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from prometheus_client import Counter, Gauge

from learner.reward_model import Quality
from learner.tripwires import WIRES

STAGES = ("waiting", "frozen", "collecting", "reward_model", "training", "gate", "committing")

_stage = Gauge("thumbwheel_learner_stage", "1 for the stage the learner is in.", ["stage"])
progress = Gauge("thumbwheel_learner_progress_ratio", "How far the stage has come, 0 to 1.")
votes_waiting = Gauge("thumbwheel_learner_votes_waiting", "Votes in no committed batch: the learner's lag.")
leader = Gauge("thumbwheel_learner_leader", "1 while this learner holds the lease.")
cycles = Counter("thumbwheel_learner_cycles", "Cycles by outcome.", ["outcome"])
failures = Counter("thumbwheel_learner_failures", "Cycles that broke off and will be tried again.")
last_success = Gauge("thumbwheel_learner_last_success_timestamp_seconds", "When a cycle was last committed.")
cycle_seconds = Gauge("thumbwheel_learner_cycle_seconds", "Duration of the last committed cycle.")
report_failures = Counter("thumbwheel_learner_report_failures", "Cycles' pages that could not be written or mended.")
verdicts = Counter("thumbwheel_learner_gate_verdicts", "Candidates by verdict.", ["verdict"])
canary_decisions = Counter(
    "thumbwheel_learner_canary_decisions", "Trials and watches that the learner ended, by decision.", ["decision"]
)
dead_letters = Gauge("thumbwheel_learner_dead_votes", "Votes and manifests set aside because they cannot be read.")

quarantined_edits = Gauge(
    "thumbwheel_learner_quarantined_edits", "Edits of the last cycle's votes that wait until their raters are known."
)
distrusted_raters = Gauge(
    "thumbwheel_learner_distrusted_raters", "Raters of the last cycle's votes who are trusted by less than half."
)
_frozen = Gauge("thumbwheel_learner_frozen", "1 for each tripwire that has frozen the learner.", ["wire"])
_auc = Gauge("thumbwheel_learner_reward_model_auc", "AUC of the reward model on unseen conversations.")
_auc_later = Gauge(
    "thumbwheel_learner_reward_model_auc_later", "AUC on the latest votes of a model that was fitted on those before."
)
_ece = Gauge("thumbwheel_learner_reward_model_ece", "Expected calibration error on unseen conversations.")
reward_lora_gain = Gauge(
    "thumbwheel_learner_reward_lora_gain_nats",
    "How much lower the log loss of an unseen vote was with LoRA on the reward model, last time that it learned.",
)
_ppo = {
    name: Gauge(f"thumbwheel_learner_{metric}", text)
    for name, metric, text in (
        ("reward_mean", "reward_mean", "Mean reward of all answers of the last iteration, -1 to 1."),
        ("kl_per_sequence", "kl_nats", "KL to the base in nats per answer, before the last iteration."),
        ("approx_kl", "approx_kl", "KL between old and new policy of the last iteration (k3)."),
        ("clipfrac", "clip_ratio", "Share of tokens whose ratio was clipped."),
        ("explained_variance", "explained_variance", "Of the returns, by the critic."),
        ("policy_loss", "policy_loss", "Clipped surrogate of the last iteration."),
        ("value_loss", "value_loss", "Clipped value loss of the last iteration."),
        ("entropy", "entropy_nats", "Mean entropy of a token."),
        (
            "effective_sample_size",
            "effective_sample_ratio",
            "Effective sample size over sample size of the importance weights.",
        ),
        ("grad_norm", "gradient_norm", "Norm of the gradient before clipping."),
    )
}


_standing = (STAGES[0], 0.0)


def stage(name: str) -> None:
    """Moves the learner to a stage."""
    global _standing
    for other in STAGES:
        _stage.labels(other).set(other == name)
    progress.set(0)
    if name != _standing[0] or not _standing[1]:
        _standing = (name, time.time())


def standing() -> tuple[str, float, float]:
    """The stage, when it began (Unix seconds), and how far it has come, 0 to 1."""
    return (*_standing, next(iter(progress.collect())).samples[0].value)


def frozen(wires: Collection[str]) -> None:
    """Shows which wires hold the learner; none if it is free."""
    for wire in {*WIRES, *wires}:
        _frozen.labels(wire).set(wire in wires)


def reward_model(quality: Quality) -> None:
    """What was measured of the cycle's reward model."""
    _auc.set(quality.auc)
    _auc_later.set(quality.auc_later)
    _ece.set(quality.ece)


def ppo(stats: Mapping[str, float]) -> None:
    """The figures of one iteration."""
    for name, gauge in _ppo.items():
        if name in stats:
            gauge.set(stats[name])
