"""DPO (arXiv:2305.18290) and KTO (arXiv:2402.01306): the policy learns from votes without a reward in between.

preferences or verdicts ──► TRL's trainer on the policy's own backbone and adapter ──► weights after each epoch

The trainers are TRL's; what is set here, and why:

- Examples are token ids as they were sampled or typed. TRL would make text into tokens anew, and these need not be the
  ones that the policy said.
- The reference is the base, not the version that the cycle began with: what holds the policy must not wander off with
  it, cycle after cycle. PPO and the gate hold it to the base, too.
- KTO's rarer side counts more, so that both count the same in all (equation 8 of the paper).
- The order is drawn here, as KTO's mismatched answers must be those of the same micro-batch.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from learner.policy import Policy
from learner.preferences import Preference, Verdict
from thumbwheel import config
from thumbwheel.errors import TrainingDiverged

_FIGURES = {
    "loss": "loss",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "margin",
}
"""Of what TRL logs, what is kept, and its name here."""


class _Ours:
    """Goes before a trainer of TRL."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # it holds token ids already

    def _send_telemetry(self) -> None:
        """What a company trains is nobody else's business."""


class _Dpo(_Ours, DPOTrainer):  # type: ignore[misc]
    pass


class _Kto(_Ours, KTOTrainer):  # type: ignore[misc]
    pass


class _Listener(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_epoch: Callable[[dict[str, float]], None], progress: Callable[[float], None]) -> None:
        self._on_epoch, self._progress = on_epoch, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress(state.global_step / state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:  # the summary after the last epoch has none
            self._on_epoch({name: float(logs[key]) for key, name in _FIGURES.items() if key in logs})


def train(
    policy: Policy,
    examples: Sequence[Preference] | Sequence[Verdict],
    settings: config.Direct,
    tokens_per_microbatch: int,
    seed: int,
    on_epoch: Callable[[dict[str, float]], None],
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Trains the policy's adapter from where it stands; preferences by DPO, verdicts by KTO.

    Args:
        policy: the value head stays as it is.
        examples: at least two, all of one kind.
        settings: how.
        tokens_per_microbatch: padded tokens of one forward and backward pass, where two answers do not need more.
        seed: of the order; the same examples and seed give the same weights.
        on_epoch: told the figures of each epoch when it has ended, with the policy as it then is.
        progress: told the share that is done, in [0, 1].

    Raises:
        TrainingDiverged: the weights are not finite.
    """
    rows = [asdict(example) for example in examples]
    random.Random(seed).shuffle(rows)
    paired = isinstance(examples[0], Preference)
    answers = ("chosen_ids", "rejected_ids") if paired else ("completion_ids",)
    longest = max(len(row["prompt_ids"]) for row in rows) + max(len(row[name]) for row in rows for name in answers)
    fitting = tokens_per_microbatch // (longest * len(answers))
    size = min(settings.batch, len(rows), max(1 if paired else 2, fitting))
    with tempfile.TemporaryDirectory(prefix="thumbwheel-") as scratch, policy.whole() as model:
        arguments: dict[str, Any] = {
            "output_dir": scratch,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": max(1, min(settings.batch, len(rows)) // size),
            "num_train_epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "warmup_steps": settings.warmup_updates,
            "lr_scheduler_type": "constant_with_warmup",
            "max_grad_norm": settings.max_grad_norm,
            "beta": settings.beta,
            "max_length": None,
            "seed": seed,
            "use_cpu": policy.device.type == "cpu",
            "bf16": policy.device.type != "cpu",
            "gradient_checkpointing": False,  # micro-batches bound the memory
            "dataloader_pin_memory": False,
            "logging_strategy": "epoch",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        given: dict[str, Any] = {"model": model, "processing_class": AutoTokenizer.from_pretrained(policy.folder)}
        if paired:
            trainer = _Dpo(args=DPOConfig(**arguments), train_dataset=_dataset(rows), **given)
        else:
            arguments |= _balance([row["label"] for row in rows])
            trainer = _Kto(args=KTOConfig(**arguments), train_dataset=_dataset(_mismatched(rows, size)), **given)
        model.delete_adapter("ref")  # TRL's copy of where the cycle began; without it the base is the reference
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Listener(on_epoch, progress))
        trainer.train()
    if not all(torch.isfinite(parameter).all() for parameter in policy.adapter_parameters()):
        raise TrainingDiverged("the weights are not finite any more. Lower learner.direct.learning_rate.")


def _dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    # With a name for its cache, which is not used: else it makes one of a pickle, with warnings.
    return Dataset(InMemoryTable(pyarrow.Table.from_pylist(list(rows))), fingerprint="votes")


def _balance(labels: Sequence[bool]) -> dict[str, float]:
    ups = sum(labels)
    downs = len(labels) - ups
    if not ups or not downs:
        return {}
    return {"desirable_weight": max(1.0, downs / ups), "undesirable_weight": max(1.0, ups / downs)}


def _mismatched(rows: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Each row with the answer of its neighbour in the micro-batch, by which KTO estimates the KL.

    A row that would be alone in the last micro-batch is left out: its neighbour would be itself.
    """
    kept = rows[: len(rows) - (len(rows) % size == 1)]
    parts = [kept[start : start + size] for start in range(0, len(kept), size)]
    return [
        row | {"KL_completion_ids": part[place - 1]["completion_ids"]}
        for part in parts
        for place, row in enumerate(part)
    ]
