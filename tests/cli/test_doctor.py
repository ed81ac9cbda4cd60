"""`thumbwheel doctor` beside a real server, sound and spoiled."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from thumbwheel.lease import Lease
from thumbwheel.store import Store
from thumbwheel_client.v1 import models_pb2

Doctor = Callable[..., Awaitable[Any]]


@pytest.fixture
async def led(served: Any) -> AsyncIterator[Any]:
    """A served thumbwheel, and somebody who leads."""
    store = await Store.open(served.config.redis.url, served.config.redis.namespace)
    assert await Lease(store, "test", 60).acquire()
    yield served
    await store.close()


@pytest.fixture
def doctor(thumbwheel: Any, served: Any) -> Doctor:
    async def run(*sets: str) -> Any:
        settings = (f"redis.url={served.config.redis.url}", f"model.path={served.config.model.path}", *sets)
        words = [word for item in settings for word in ("--set", item)]
        return await thumbwheel("doctor", "--data-dir", str(served.config.data_dir), *words)

    return run


def line(done: Any, subject: str) -> str:
    """What was said of a subject, with what to do about it."""
    lines = done.out.splitlines()
    start = next(i for i, text in enumerate(lines) if text[4:].startswith(subject))
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith("  ")), len(lines))
    return "\n".join(lines[start:end])


async def test_all_is_well(led: Any, doctor: Doctor) -> None:
    await led.publish("v1")
    await led.services.models.Promote(models_pb2.PromoteRequest(name="v1"))
    done = await doctor()
    assert done.code == 0, done.out + done.err
    assert "all is well" in done.out
    assert "v1 is live; 1 looked at" in line(done, "versions")


async def test_a_spoiled_live_version_is_named_with_its_folder(led: Any, doctor: Doctor) -> None:
    record = await led.publish("v1")
    await led.services.models.Promote(models_pb2.PromoteRequest(name="v1"))
    weights = led.config.artifact_root / record.path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = await doctor()
    assert done.code == 1
    assert line(done, "versions").startswith("bad versions")
    assert record.path in line(done, "versions")


async def test_an_old_version_that_is_live_again_is_looked_at(led: Any, doctor: Doctor) -> None:
    first = await led.publish("v1")
    for name in ("v1", "v2", "v3", "v4", "v1"):
        if name != "v1":
            await led.publish(name)
        await led.services.models.Promote(models_pb2.PromoteRequest(name=name))
    (led.config.artifact_root / first.path / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in line(await doctor(), "versions")


async def test_a_live_version_of_another_base_is_named(led: Any, doctor: Doctor, tmp_path: Path) -> None:
    await led.publish("v1")
    await led.services.models.Promote(models_pb2.PromoteRequest(name="v1"))
    other = tmp_path / "other"
    shutil.copytree(led.config.model.path, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}), encoding="utf-8")
    done = await doctor(f"model.path={other}")
    assert "another base model" in line(done, "versions")


async def test_a_frozen_learner_is_named_with_its_wire(led: Any, doctor: Doctor) -> None:
    store = await Store.open(led.config.redis.url, led.config.redis.namespace)
    await store.call("SET", store.keys.frozen, b"rotten")
    await store.close()
    done = await doctor()
    assert done.code == 1
    assert "frozen it (unknown)" in line(done, "learner")
    assert "thumbwheel unfreeze" in line(done, "learner")


async def test_nobody_leads(served: Any, doctor: Doctor) -> None:
    done = await doctor()
    assert done.code == 1
    assert "no learner leads" in line(done, "learner")
    assert "1 to mend" in done.out


async def test_a_store_that_forgets(led: Any, doctor: Doctor) -> None:
    store = await Store.open(led.config.redis.url, "test")
    try:
        await store.call("CONFIG", "SET", "appendonly", "no")
        assert "appendfsync is off" in line(await doctor(), "store")
        await store.call("CONFIG", "SET", "appendonly", "yes")
        await store.call("CONFIG", "SET", "maxmemory", 100 << 20)
        await store.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert "maxmemory-policy noeviction" in line(await doctor(), "store")
    finally:
        await store.call("CONFIG", "SET", "appendonly", "yes")
        await store.call("CONFIG", "SET", "maxmemory", 0)
        await store.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await store.close()


async def test_nothing_there_yet(thumbwheel: Any, tmp_path: Path) -> None:
    done = await thumbwheel("doctor", "--data-dir", str(tmp_path / "new"))
    assert done.code == 0, done.out + done.err
    assert "will start" in line(done, "store")
    assert not (tmp_path / "new").exists()


async def test_wrong_configuration_model_and_store(thumbwheel: Any, tmp_path: Path) -> None:
    done = await thumbwheel("doctor", "--set", "server.grcp_port=1")
    assert (done.code, line(done, "configuration")[:3]) == (1, "bad")
    assert "grcp_port" in done.out
    done = await thumbwheel("doctor", "--set", f"model.path={tmp_path}", "--set", "redis.url=redis://127.0.0.1:1/0")
    assert "config.json" in line(done, "model")
    assert line(done, "store")[:3] == "bad"
    assert "name another" in line(done, "store")
    assert "2 to mend" in done.out
