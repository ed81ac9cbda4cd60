"""What `thumbwheel export` writes, TRL's trainers and `datasets` load as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel

# Of three libraries that are not ours, about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


async def converse(served: Served) -> None:
    """Votes of every kind; a turn has an answer that is liked, one that is not, and a ranking of both."""
    texts = ("A wheel turns.", "It does not.")
    served.engine.script = lambda weights, prompt, index: f"{texts[index]} {len(prompt)}"
    metadata = served.services.identity("ann")
    said = [("system", "Be brief."), ("user", "Does it?"), ("assistant", "It does."), ("user", "And you, {}?")]
    for number in range(4):
        messages = [
            pb.Message(role=pb.Role.Value(f"ROLE_{role.upper()}"), content=text.format("x" * number))
            for role, text in said
        ]
        ask = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=messages, n=2))
        answers = (await served.services.chat.Chat(ask, metadata=metadata)).answers
        good, bad = (answer.receipt.response_id for answer in answers)
        items = [pb.RankedResponse(response_id=name, rank=rank) for rank, name in enumerate((good, bad), 1)]
        votes: list[dict[str, Any]] = [
            {"response_id": good, "thumb": pb.THUMB_UP},
            {"response_id": bad, "thumb": pb.THUMB_DOWN, "reasons": ["wrong"], "comment": "no"},
            {"response_id": bad, "stars": 1},
            {"response_id": bad, "edit": "It does."},
            {"ranking": pb.Ranking(items=items)},
        ]
        for place, vote in enumerate(votes):
            request = feedback_pb2.RateRequest(idempotency_key=f"{number} {place}", **vote)
            await served.services.feedback.Rate(request, metadata=metadata)


@pytest.fixture
async def exported(served: Served, thumbwheel: Thumbwheel, tmp_path: Path) -> Any:
    """Loads an export of these votes with `datasets`."""
    from datasets import load_dataset

    await converse(served)

    async def load(format: str) -> Any:
        file = tmp_path / f"votes.{format}"
        done = await thumbwheel("export", "--format", format, "-o", file.name, "--server", served.addresses.grpc)
        assert done.code == 0, done.err
        kind = "parquet" if format == "parquet" else "json"
        return load_dataset(kind, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))

    return load


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
async def test_datasets_reads_all_columns(exported: Any, format: str) -> None:
    data = await exported(format)
    assert len(data) == 4 * 5
    kinds = {row["kind"]: row for row in data}
    assert (kinds["thumb"]["thumb"], kinds["stars"]["stars"], kinds["edit"]["edit"]) == ("down", 1, "It does.")
    assert [place["rank"] for place in kinds["ranking"]["ranking"]] == [1, 2]
    assert [message["role"] for message in kinds["edit"]["prompt"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(("format", "rows"), [("kto", 4 * 2), ("dpo", 4 * 2)])
async def test_trls_trainers_learn_from_it(
    exported: Any, tiny_model: Path, tmp_path: Path, format: str, rows: int
) -> None:
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = await exported(format)
    assert len(data) == rows
    settings = {
        "output_dir": str(tmp_path / "trl"), "max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3,
        "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    trainer_of, config_of = getattr(trl, f"{format.upper()}Trainer"), getattr(trl, f"{format.upper()}Config")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = trainer_of(model=model, args=config_of(**settings), train_dataset=data, processing_class=tokenizer)
    learned = trainer.train()
    assert learned.global_step == 1
    assert math.isfinite(learned.training_loss)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
