"""Votes over HTTP: our kinds, and by TensorZero's names; the same votes as over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from server.engine_scripted import ScriptedEngine
from tests.server.web import ask, complete, error, rate, web
from thumbwheel.config import Config
from thumbwheel_client.v1 import feedback_pb2, record_pb2

THUMB, STARS = record_pb2.VOTE_KIND_THUMB, record_pb2.VOTE_KIND_STARS
RANKING, EDIT = record_pb2.VOTE_KIND_RANKING, record_pb2.VOTE_KIND_EDIT
ADA = {"x-thumbwheel-user": "ada"}


@pytest.fixture
async def client(server: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with web(server, headers=ADA) as client:
        yield client


async def votes(server: Any) -> list[record_pb2.VoteEvent]:
    """Ada's current votes, as gRPC lists them."""
    listed = await server.feedback.ListVotes(feedback_pb2.ListVotesRequest(), metadata=(("x-thumbwheel-user", "ada"),))
    return [vote.event for vote in listed.votes]


async def answers(client: httpx.AsyncClient, n: int = 1) -> list[str]:
    return [choice["response_id"] for choice in (await complete(client, ask(n=n)))["choices"]]


async def test_the_kinds_of_votes(server: Any, client: httpx.AsyncClient) -> None:
    first, second, third = await answers(client, n=3)
    why = {"reasons": ["short", "kind"], "comment": "as I like it"}
    for body in (
        {"response_id": first, "thumb": "up", **why},
        {"response_id": second, "thumb": "down"},
        {"response_id": first, "stars": 4},
        {"response_id": first, "edit": "better"},
        {"ranking": [second, [first, third]]},
    ):
        response = await rate(client, **body)
        assert response.status_code == 200, response.text
        assert set(response.json()) == {"event_id"}
    kept = {(vote.kind, vote.response_id): vote for vote in await votes(server)}
    assert len(kept) == 5
    thumb = kept[THUMB, first]
    assert (thumb.thumb, list(thumb.reasons), thumb.comment) == (record_pb2.THUMB_UP, ["short", "kind"], why["comment"])
    assert kept[THUMB, second].thumb == record_pb2.THUMB_DOWN
    assert kept[STARS, first].stars == 4
    assert kept[EDIT, first].edit == "better"
    ranks = {item.response_id: item.rank for item in kept[RANKING, ""].ranking.items}
    assert ranks == {second: 1, first: 2, third: 2}


async def test_the_latest_vote_counts_and_can_be_taken_back(server: Any, client: httpx.AsyncClient) -> None:
    first, second = await answers(client, n=2)
    await rate(client, response_id=first, thumb="up")
    await rate(client, response_id=first, thumb="down")
    await rate(client, ranking=[first, second])
    assert [vote.thumb for vote in await votes(server) if vote.kind == THUMB] == [record_pb2.THUMB_DOWN]
    gone = await client.delete("/v1/feedback", params={"response_id": first, "kind": "thumb"})
    assert (gone.status_code, set(gone.json())) == (200, {"event_id"})
    assert [vote.kind for vote in await votes(server)] == [RANKING]
    body = {"turn_id": first.rpartition("-")[0], "kind": "ranking"}
    assert (await client.request("DELETE", "/v1/feedback", json=body)).status_code == 200
    assert await votes(server) == []
    again = await client.delete("/v1/feedback", params={"response_id": first, "kind": "thumb"})
    assert error(again, 404)["code"] == "not_found"


@pytest.mark.parametrize("where", ["body", "header"])
async def test_a_repeated_call_counts_once(client: httpx.AsyncClient, where: str) -> None:
    [answer] = await answers(client)

    async def vote(thumb: str) -> httpx.Response:
        if where == "body":
            return await rate(client, response_id=answer, thumb=thumb, idempotency_key="k1")
        body = {"response_id": answer, "thumb": thumb}
        return await client.post("/v1/feedback", json=body, headers={"idempotency-key": "k1"})

    first, again = await vote("up"), await vote("up")
    assert first.json() == again.json()
    conflict = await vote("down")
    assert error(conflict, 409)["code"] == "conflict"
    assert conflict.headers["x-should-retry"] == "false"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no vote": ({"response_id": "t-0"}, "vote"),
    "two votes": ({"response_id": "t-0", "thumb": "up", "stars": 4}, "stars"),
    "a thumb sideways": ({"response_id": "t-0", "thumb": "sideways"}, "thumb"),
    "no stars": ({"response_id": "t-0", "stars": 0}, "stars"),
    "six stars": ({"response_id": "t-0", "stars": 6}, "stars"),
    "half a star": ({"response_id": "t-0", "stars": 0.5}, "stars"),
    "an empty edit": ({"response_id": "t-0", "edit": " "}, "edit"),
    "no answer": ({"thumb": "up"}, "response_id"),
    "an empty ranking": ({"ranking": []}, "ranking.items"),
    "one place": ({"ranking": ["t-0"]}, "ranking.items"),
    "of two turns": ({"ranking": ["t-0", "u-0"]}, "ranking.items[1].response_id"),
    "numbers": ({"ranking": [1, 2]}, "ranking[0]"),
    "a ranking of one": ({"response_id": "t-0", "ranking": ["t-0", "t-1"]}, "response_id"),
    "reasons": ({"response_id": "t-0", "thumb": "up", "reasons": ["x"] * 9}, "reasons"),
    "an empty key": ({"response_id": "t-0", "thumb": "up", "idempotency_key": ""}, "idempotency_key"),
    "what is no field": ({"response_id": "t-0", "thumbs": "up"}, "thumbs"),
    "no such metric": ({"inference_id": "t-0", "metric_name": "helpful", "value": True}, "metric_name"),
    "a comment alone": ({"inference_id": "t-0", "metric_name": "comment", "value": "x"}, "metric_name"),
    "an episode": ({"episode_id": "e", "metric_name": "thumb", "value": True}, "inference_id"),
    "a number for a thumb": ({"inference_id": "t-0", "metric_name": "thumb", "value": 1}, "value"),
    "a truth for stars": ({"inference_id": "t-0", "metric_name": "stars", "value": True}, "value"),
    "stars beyond": ({"inference_id": "t-0", "metric_name": "stars", "value": 5.5}, "value"),
    "no text": ({"inference_id": "t-0", "metric_name": "demonstration", "value": 5}, "value"),
    "no block of text": ({"inference_id": "t-0", "metric_name": "demonstration", "value": [{"type": "x"}]}, "value"),
    "a dry run": ({"inference_id": "t-0", "metric_name": "thumb", "value": True, "dryrun": True}, "dryrun"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_value_is_named(server: Any, client: httpx.AsyncClient, name: str) -> None:
    body, param = WRONG[name]
    assert error(await rate(client, **body), 400)["param"] == param
    assert await votes(server) == []


async def test_votes_on_what_is_not_there_or_not_theirs(server: Any, client: httpx.AsyncClient) -> None:
    found = error(await rate(client, response_id="t0-0", thumb="up"), 404)
    assert (found["code"], found["param"]) == ("not_found", None)
    [answer] = await answers(client)
    async with web(server) as another:
        assert error(await rate(another, response_id=answer, thumb="up"), 403)["code"] == "permission_denied"
    wrong = await client.delete("/v1/feedback", params={"response_id": answer, "kind": "hug"})
    assert error(wrong, 400)["param"] == "kind"


async def test_by_tensorzeros_names(server: Any, client: httpx.AsyncClient) -> None:
    first, second, third = await answers(client, n=3)
    blocks = [{"type": "text", "text": "much "}, {"type": "text", "text": "better"}]
    for answer, metric, value in (
        (first, "thumb", True),
        (second, "thumbs_up", False),
        (first, "stars", 3),
        (second, "stars", 5.0),
        (first, "demonstration", "better"),
        (third, "demonstration", blocks),
    ):
        body = {"inference_id": answer, "metric_name": metric, "value": value, "tags": {"by": "ada"}, "dryrun": False}
        response = await rate(client, **body)
        assert response.status_code == 200, response.text
        assert set(response.json()) == {"feedback_id"}
    kept = {(vote.kind, vote.response_id): vote for vote in await votes(server)}
    assert kept[THUMB, first].thumb == record_pb2.THUMB_UP
    assert kept[THUMB, second].thumb == record_pb2.THUMB_DOWN
    assert (kept[STARS, first].stars, kept[STARS, second].stars) == (3, 5)
    assert (kept[EDIT, first].edit, kept[EDIT, third].edit) == ("better", "much better")


async def test_no_false_ok_while_the_store_is_away(
    settings: Callable[..., Config], run_server: Any, own_redis: Any
) -> None:
    config = settings()
    config = config.model_copy(update={"redis": config.redis.model_copy(update={"url": own_redis.url})})
    async with run_server(config, ScriptedEngine()) as server, web(server, headers=ADA) as client:
        [answer] = await answers(client)
        own_redis.kill()
        response = await rate(client, response_id=answer, thumb="up")
        assert error(response, 503)["code"] == "unavailable"
        assert int(response.headers["retry-after"]) >= 1
        body = await complete(client, ask())
        assert body["thumbwheel"]["logged"] is False, "chat goes on, and says that this cannot be rated yet"
        own_redis.start()
