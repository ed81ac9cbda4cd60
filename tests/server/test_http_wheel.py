"""The wheel over HTTP: what operators see, what they move, and that nobody else does."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.engine_scripted import ScriptedEngine
from tests.server.web import ask, complete, error, rate, web
from thumbwheel import pulse
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials
from thumbwheel.pulse import Pulse
from thumbwheel.store import Store
from thumbwheel.vote_tally import MOST_BUCKETS, Said, bucketed
from thumbwheel_client.v1 import models_pb2, record_pb2
from thumbwheel_client.v1.record_pb2 import SCOPE_ADMIN, SCOPE_CHAT, SCOPE_RATE

MakeConfig = Callable[..., Config]
Publish = Callable[..., Awaitable[record_pb2.VersionRecord]]
MOVES = ("/v1/models/v1/promote", "/v1/models/v1/rollback")


async def test_what_people_said_by_version_and_what_the_learner_does(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    await publish(config, "v1")
    began = time.time()
    store = await Store.open(config.redis.url, config.redis.namespace)
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        empty = (await client.get("/v1/wheel")).json()
        assert (empty["live"], empty["learner"], empty["votes"]["buckets"]) == ("base", None, [])
        answers = [(await complete(client, ask(n=2))) for _ in range(3)]
        for answer, thumb in zip(answers, ("up", "down", "up"), strict=True):
            await rate(client, response_id=answer["id"], thumb=thumb)
        await rate(client, response_id=answers[0]["id"], edit="better")
        await rate(client, ranking=[choice["response_id"] for choice in answers[1]["choices"]])
        assert (await client.post("/v1/models/v1/promote", json={"reason": "try"})).json() == {
            "live": "v1",
            "previous": "base",
        }
        await rate(client, response_id=(await complete(client, ask()))["id"], stars=2)
        await pulse.beat(store, Pulse("training", 0.25, began, 64))
        await client.post("/v1/models/v1/promote", json={})  # a move, so that the next look is a new one
        seen = (await client.get("/v1/wheel")).json()
    await store.close()
    assert seen["live"] == "v1"
    assert seen["learner"] == {"stage": "training", "progress": 0.25, "since": began, "min_votes": 64}
    versions = {version["name"]: version for version in seen["versions"]}
    assert (versions["base"]["good"], versions["base"]["judged"]) == (2, 3)
    assert (versions["v1"]["good"], versions["v1"]["judged"], versions["v1"]["reasons"]) == (0, 1, ["try"])
    counted = {"base": [0, 0, 0], "v1": [0, 0, 0]}
    for bucket in seen["votes"]["buckets"]:
        for place, kind in enumerate(("good", "bad", "other")):
            counted[bucket["version"]][place] += bucket[kind]
        assert began - seen["votes"]["seconds"] <= bucket["start"] <= seen["now"]
    assert counted == {"base": [2, 1, 2], "v1": [0, 1, 0]}
    assert (seen["votes"]["waiting"], seen["votes"]["complete"]) == (6, True)


async def test_rollback_takes_back_what_was_seen_and_no_other(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    await publish(config, "v1")
    await publish(config, "v2", seed=2)
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        for name in ("v1", "v2"):
            assert (await client.post(f"/v1/models/{name}/promote", json={})).status_code == 200
        assert error(await client.post("/v1/models/v1/rollback", json={}), 409)["code"] == "not_ready"
        gone = await client.post("/v1/models/v2/rollback", json={"reason": "worse"})
        assert gone.json() == {"live": "v1", "previous": "v2"}
        answered = await complete(client, ask())
        assert answered["model"] == "v1"
        taken = await server.models.GetVersion(models_pb2.GetVersionRequest(name="v2"))
        assert list(taken.version.reasons) == ["worse"]
        assert error(await client.post("/v1/models/gone/promote", json={}), 404)
        assert error(await client.post("/v1/models/v2/promote", json={"reason": "x" * 2001}), 400)["param"] == "reason"


@pytest.mark.parametrize("path", MOVES)
async def test_pages_of_other_sites_move_nothing(
    settings: MakeConfig, run_server: Any, publish: Publish, path: str
) -> None:
    config = settings()
    await publish(config, "v1")
    await publish(config, "v2", seed=2)
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        await client.post("/v1/models/v1/promote", json={})
        if path.endswith("promote"):
            await client.post("/v1/models/v2/promote", json={})
        before = (await client.get("/v1/models/thumbwheel")).json()
        # What a browser sends for a foreign page without asking: no body, or one that is not called JSON.
        assert error(await client.post(path), 400)
        assert error(await client.post(path, content=b"{}", headers={"content-type": "text/plain"}), 415)
        assert (await client.get("/v1/models/thumbwheel")).json() == before


async def test_with_keys_only_operators_and_only_where_it_is_allowed(
    settings: MakeConfig, run_server: Any, publish: Publish, redis_url: str
) -> None:
    config = settings()
    await publish(config, "v1")
    store = await Store.open(redis_url, "default")
    person, _ = await Credentials(store).make("ada", [SCOPE_CHAT, SCOPE_RATE])
    operator, _ = await Credentials(store).make("op", [SCOPE_ADMIN])
    await store.close()
    for allowed in (False, True):
        security = config.security.model_copy(update={"auth": "keys", "web_admin": allowed})
        kept = config.model_copy(update={"security": security})
        async with run_server(kept, ScriptedEngine()) as server, web(server) as client:
            assert (await client.get("/")).status_code == 200
            for key, status in (("", 401), (person, 403), (operator, 200)):
                headers = {"authorization": f"Bearer {key}"} if key else {}
                looked = await client.get("/v1/wheel", headers=headers)
                moved = await client.post("/v1/models/v1/promote", json={}, headers=headers)
                if allowed:
                    assert (looked.status_code, moved.status_code) == (status, status)
                else:
                    assert looked.status_code == 404
                    assert moved.status_code in (404, 405)


def test_buckets_are_few_and_hold_every_vote() -> None:
    now = 1_800_000_000.0
    assert bucketed([], now) == (60, [])
    for age in (10, 3000, 86_400 * 3, 86_400 * 300):
        said = [Said(now - age * share, "v", good) for share, good in ((1, True), (0.5, False), (0, None))]
        width, buckets = bucketed(said, now)
        assert (now - buckets[0].start) / width <= MOST_BUCKETS
        assert [sum(getattr(each, kind) for each in buckets) for kind in ("good", "bad", "other")] == [1, 1, 1]
        assert all(each.start % width == 0 for each in buckets)
