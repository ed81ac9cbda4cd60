"""Versions as models, for clients that list what they can ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from server.engine_scripted import ScriptedEngine
from tests.server.web import ask, complete, error, web
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials
from thumbwheel.store import Store
from thumbwheel_client.v1 import models_pb2, record_pb2
from thumbwheel_client.v1.record_pb2 import (
    SCOPE_ADMIN,
    SCOPE_CHAT,
    VERSION_STATE_REJECTED,
    VERSION_STATE_TRAINING,
)

MakeConfig = Callable[..., Config]
Publish = Callable[..., Awaitable[record_pb2.VersionRecord]]


async def test_the_live_one_under_its_lasting_name_and_all_by_their_own(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    await publish(config, "v1")
    await publish(config, "v2", seed=2)
    await publish(config, "bad", seed=3, state=VERSION_STATE_REJECTED)
    await publish(config, "cycle-1", seed=4, state=VERSION_STATE_TRAINING)
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["thumbwheel", "v2", "v1", "base"]
        assert {model["object"] for model in listed["data"]} == {"model"}
        assert listed["data"][0]["thumbwheel"] == {"version": "base", "state": "live", "parent": ""}
        assert listed["data"][2]["thumbwheel"] == {"version": "v1", "state": "candidate", "parent": "base"}
        await server.models.Promote(models_pb2.PromoteRequest(name="v1", reason="test"))
        [live, *_] = (await client.get("/v1/models")).json()["data"]
        assert (live["id"], live["thumbwheel"]["version"]) == ("thumbwheel", "v1")
        assert (await client.get("/v1/models/thumbwheel")).json() == live
        assert (await client.get("/v1/models/v1")).json() == live | {"id": "v1"}
        answered = await client.post("/v1/chat/completions", json=ask())
        assert answered.headers["x-thumbwheel-version"] == answered.json()["model"] == "v1"
        for name in ("gpt-9", "bad", "cycle-1"):
            found = error(await client.get(f"/v1/models/{name}"), 404)
            assert (found["code"], found["param"]) == ("model_not_found", "model")


async def test_people_see_what_they_may_ask(
    settings: MakeConfig, run_server: Any, publish: Publish, redis_url: str
) -> None:
    config = settings()
    config = config.model_copy(update={"security": config.security.model_copy(update={"auth": "keys"})})
    await publish(config, "v1")
    store = await Store.open(redis_url, "default")
    person, _ = await Credentials(store).make("ada", [SCOPE_CHAT])
    operator, _ = await Credentials(store).make("op", [SCOPE_CHAT, SCOPE_ADMIN])
    await store.close()
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:

        async def seen(key: str) -> list[str]:
            models = (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).json()["data"]
            return [model["id"] for model in models]

        assert await seen(person) == ["thumbwheel", "base"]
        assert await seen(operator) == ["thumbwheel", "v1", "base"]
        headers = {"authorization": f"Bearer {person}"}
        assert error(await client.get("/v1/models/v1", headers=headers), 404)
        refused = await client.post("/v1/chat/completions", json=ask(model="v1"), headers=headers)
        assert error(refused, 400)["param"] == "model"
        assert (await complete(client, ask(model="base"), headers=headers))["model"] == "base"


class OneVersion(ScriptedEngine):
    one_version = True


async def test_a_server_of_merged_weights_lists_what_it_answers_with(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    await publish(config, "v1")
    async with run_server(config, OneVersion()) as server, web(server) as client:
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["thumbwheel", "base"]
        found = error(await client.post("/v1/chat/completions", json=ask(model="v1")), 409)
        assert found["code"] == "not_ready"
