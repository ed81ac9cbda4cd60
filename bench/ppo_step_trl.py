"""One PPO step of TRL 1.12's, for `bench.ppo_step`: `python ppo_step_trl.py MODEL ANSWERS [--checkpointing]`.

Run by a Python that has TRL and nothing of ours.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def main(model: str, answers: str, checkpointing: bool) -> None:
    page = json.loads(Path(answers).read_text(encoding="utf-8"))
    size, length = len(page["prompts"]), len(page["answers"][0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    critic, judge = (
        transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    layers = policy.config.num_hidden_layers
    lora = peft.LoraConfig(
        r=16, lora_alpha=32, target_modules=TARGETS, layers_to_transform=list(range(layers // 2, layers)),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    premade = {tuple(prompt): answer for prompt, answer in zip(page["prompts"], page["answers"], strict=True)}

    @torch.no_grad()
    def hand_over(model: Any, queries: Any, batch: int, pad: int, config: Any) -> tuple[Any, Any]:
        """The answers that are there, and their logits, in place of sampling."""
        answers = torch.tensor([premade[tuple(query)] for query in queries.tolist()])
        whole = torch.cat([queries, answers], dim=1)
        start = queries.shape[1] - 1
        logits = [model(part).logits[:, start:-1] for part in torch.split(whole, batch)]
        return whole, torch.cat(logits)

    ppo_trainer.batch_generation = hand_over
    with tempfile.TemporaryDirectory() as scratch:
        settings = PPOConfig(
            output_dir=scratch, per_device_train_batch_size=size // 4, gradient_accumulation_steps=4,
            num_mini_batches=4, num_ppo_epochs=1, total_episodes=size, response_length=length, temperature=1.0,
            local_rollout_forward_batch_size=size // 4, num_sample_generations=0, gradient_checkpointing=checkpointing,
            learning_rate=5e-4, bf16=False, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=settings, processing_class=tokenizer, model=policy, ref_model=None, reward_model=judge,
            value_model=critic, train_dataset=Dataset.from_dict({"input_ids": page["prompts"]}), peft_config=lora,
        )  # fmt: skip
        before, began = time.process_time(), time.perf_counter()
        trainer.train()
    figures = {
        "cpu_seconds": time.process_time() - before,
        "seconds": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print("\n" + json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], checkpointing="--checkpointing" in sys.argv)
