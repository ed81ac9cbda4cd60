"""A corpus of bad adapters, each in many mutations, promoted on a real engine: none gets in, and nothing changes."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from server.adapters import CONFIG, WEIGHTS
from server.engine import Engine
from thumbwheel.artifacts import MANIFEST, model_digest, write_version
from thumbwheel.config import Config
from thumbwheel_client.v1 import models_pb2, rollout_pb2
from thumbwheel_client.v1 import record_pb2 as pb

PROMPTS = ([1, 100, 7], list(range(300, 340)), [5])

Tensors = dict[str, NDArray[np.float32]]
Spoil = Callable[[Path, random.Random], None]


def _rewrite(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _declare(folder: Path, **keys: object) -> None:
    declared = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(declared | keys), encoding="utf-8")


def one_nan(folder: Path, dice: random.Random) -> None:
    def change(tensors: Tensors) -> None:
        tensor = tensors[dice.choice(sorted(tensors))]
        tensor[dice.randrange(tensor.shape[0]), dice.randrange(tensor.shape[1])] = np.nan

    _rewrite(folder, change)


def all_infinite(folder: Path, dice: random.Random) -> None:
    chosen = dice.choice((np.inf, -np.inf))
    part = dice.choice(("lora_A", "lora_B", "lora"))

    def change(tensors: Tensors) -> None:
        for name in tensors:
            if part in name:
                tensors[name][:] = chosen

    _rewrite(folder, change)


def wrong_prefix(folder: Path, dice: random.Random) -> None:
    prefix = dice.choice(("", "model.", "base_model.", "base_model.model.model.model.", f"x{dice.random()}."))
    _rewrite(
        folder, lambda tensors: {prefix + name.removeprefix("base_model.model."): t for name, t in tensors.items()}
    )


def layers_missing(folder: Path, dice: random.Random) -> None:
    def change(tensors: Tensors) -> None:
        for name in dice.sample(sorted(tensors), dice.randint(1, len(tensors) - 1)):
            del tensors[name]

    _rewrite(folder, change)


def layers_beyond(folder: Path, dice: random.Random) -> None:
    beyond = dice.randrange(2, 10_000)

    def change(tensors: Tensors) -> None:
        for name in sorted(tensors)[: dice.randint(1, 8)]:
            tensors[name.replace("layers.1.", f"layers.{beyond}.")] = tensors[name]

    _rewrite(folder, change)
    if dice.random() < 0.5:
        _declare(folder, layers_to_transform=[1, beyond])


def rank_not_the_tensors(folder: Path, dice: random.Random) -> None:
    _declare(folder, r=dice.choice([rank for rank in range(1, 17) if rank != 8]))


def rank_above_maximum(folder: Path, dice: random.Random) -> None:
    rank = dice.randrange(17, 200)
    _rewrite(
        folder,
        lambda tensors: {
            name: np.resize(t, (rank, t.shape[1]) if "lora_A" in name else (t.shape[0], rank))
            for name, t in tensors.items()
        },
    )
    _declare(folder, r=rank)


def truncated(folder: Path, dice: random.Random) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: dice.randrange(len(data))])


def a_pickle(folder: Path, dice: random.Random) -> None:
    bomb = pickle.dumps({"weights": [dice.random() for _ in range(8)]}, protocol=dice.randint(0, 5))
    if dice.random() < 0.5:
        (folder / WEIGHTS).write_bytes(bomb)
    else:
        (folder / dice.choice(("adapter_model.bin", "adapter_model.pt", "optimizer.pt", "x.pkl"))).write_bytes(bomb)


def a_huge_header(folder: Path, dice: random.Random) -> None:
    """Up to a million entries: some fit the bound on a header's bytes and are refused for their names."""
    entries = dice.choice((1_000, 10_000, 100_000, 1_000_000))
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{i}":{empty}' for i in range(entries)) + "}").encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)


def a_huge_norm(folder: Path, dice: random.Random) -> None:
    factor = 10.0 ** dice.uniform(2, 30)

    def change(tensors: Tensors) -> None:
        module = dice.choice(sorted(tensors)).rpartition(".lora_")[0]
        for name in tensors:
            if name.startswith(module):
                tensors[name] *= np.float32(factor)

    _rewrite(folder, change)


def sound(folder: Path, dice: random.Random) -> None:
    """Spoiled after it was written."""


@dataclass(frozen=True, slots=True)
class Bad:
    """How an adapter is spoiled before it is published, and its published folder after; and what that is called."""

    spoil: Spoil
    reasons: frozenset[str]
    after: Spoil = sound
    base: str = ""


def another_byte(folder: Path, dice: random.Random) -> None:
    file = folder / dice.choice((WEIGHTS, CONFIG, MANIFEST))
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= dice.randrange(1, 256)
    file.chmod(0o644)
    file.write_bytes(data)


def a_link(folder: Path, dice: random.Random) -> None:
    """A file of it, or the whole folder, leads out of the artifact root."""
    if dice.random() < 0.3:
        outside = folder.parent.parent / f"outside-{folder.name}"
        folder.rename(outside)
        folder.symlink_to(outside)
        return
    file = folder / dice.choice((WEIGHTS, CONFIG, MANIFEST))
    outside = folder.parent.parent / f"outside-{folder.name}-{file.name}"
    file.rename(outside)
    file.symlink_to(outside if dice.random() < 0.5 else os.path.relpath(outside, folder))


CORPUS = {
    "one NaN": Bad(one_nan, frozenset({"not_finite"})),
    "all infinite": Bad(all_infinite, frozenset({"not_finite"})),
    "wrong prefix": Bad(wrong_prefix, frozenset({"keys"})),
    "layers missing": Bad(layers_missing, frozenset({"keys"})),
    "layers beyond": Bad(layers_beyond, frozenset({"keys", "config"})),
    "rank is not the tensors'": Bad(rank_not_the_tensors, frozenset({"shape"})),
    "rank above the maximum": Bad(rank_above_maximum, frozenset({"rank"})),
    "wrong base": Bad(sound, frozenset({"base_digest"}), base="another"),
    "truncated": Bad(truncated, frozenset({"truncated", "header"})),
    "a pickle": Bad(a_pickle, frozenset({"truncated", "header", "unexpected_file"})),
    "a link out of the root": Bad(sound, frozenset({"symlink", "missing_manifest"}), after=a_link),
    "another digest": Bad(sound, frozenset({"manifest_digest", "file_digest"}), after=another_byte),
    "a million header entries": Bad(a_huge_header, frozenset({"header", "keys"})),
    "a huge norm": Bad(a_huge_norm, frozenset({"norm", "not_finite"})),
}


async def greedy(server: Any, version: str) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities, to the bit. One prompt a call: a batch's makeup may change the last bits."""
    found = []
    for prompt in PROMPTS:
        request = rollout_pb2.RolloutRequest(
            version=version,
            prompts=[rollout_pb2.TokenPrompt(token_ids=prompt)],
            sampling=pb.Sampling(max_tokens=24, temperature=0, top_p=1, seed=1),
            n=1,
        )
        found += [(list(reply.token_ids), list(reply.logprobs)) async for reply in server.rollout.Rollout(request)]
    return found


def reason_of(error: aio.AioRpcError) -> str:
    """The label of a refusal; empty for any other error."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION or status is None or not status.details[0].Unpack(info):
        return ""
    return info.reason.lower()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutations", [5, pytest.param(100, marks=pytest.mark.slow)])
async def test_no_bad_adapter_gets_in_and_nothing_changes(
    engine: Engine,
    settings: Callable[..., Config],
    run_server: Any,
    write_adapter: Any,
    registry_of: Any,
    tmp_path: Path,
    mutations: int,
) -> None:
    config = settings(max_adapters=4)
    digest = model_digest(Path(config.model.path))
    wrong: list[str] = []
    async with run_server(config, engine) as server, registry_of(config) as registry:

        async def publish(name: str, bad: Bad, dice: random.Random) -> None:
            source = write_adapter(tmp_path / "adapters" / name, seed=dice.randrange(1 << 30), size=0.02)
            bad.spoil(source, dice)

            def fill(folder: Path) -> None:
                for file in source.iterdir():
                    (folder / file.name).write_bytes(file.read_bytes())

            path, manifest = write_version(config.artifact_root, name, fill, {"base_digest": bad.base or digest})
            bad.after(config.artifact_root / path, dice)
            await registry.register(
                pb.VersionRecord(
                    name=name, state=pb.VERSION_STATE_CANDIDATE, parent="base", path=path, manifest_sha256=manifest
                )
            )

        before = await greedy(server, "base")
        await publish("live", Bad(sound, frozenset()), random.Random(0))
        await server.models.Promote(models_pb2.PromoteRequest(name="live", reason="test"))
        live_before = await greedy(server, "live")
        for number, (title, bad) in enumerate(CORPUS.items()):
            for mutation in range(mutations):
                name = f"bad-{number}-{mutation}"
                await publish(name, bad, random.Random(name))
                with pytest.raises(aio.AioRpcError) as refusal:
                    await server.models.Promote(models_pb2.PromoteRequest(name=name, reason="test"))
                if reason_of(refusal.value) not in bad.reasons:
                    wrong.append(f"{title}, {name}: {refusal.value.code()} {refusal.value.details()}")
            assert await greedy(server, "base") == before, title
        assert not wrong, "\n".join(wrong[:20])
        assert (await server.models.ListVersions(models_pb2.ListVersionsRequest(page_size=1))).live == "live"
        assert await greedy(server, "live") == live_before
    await engine.unload(1)
