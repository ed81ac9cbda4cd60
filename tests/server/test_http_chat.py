"""Chat in OpenAI's words over real sockets: the same engine, the same records, the same receipts as over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from server.answers import WholeAnswer
from server.engine import Engine
from server.engine_scripted import ScriptedEngine
from server.http_completion import completion, no_logprobs
from tests.server.web import ask, chunks, complete, error, web
from thumbwheel.config import Config
from thumbwheel.store import Store
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel_client.v1 import chat_pb2, record_pb2
from thumbwheel_client.v1.record_pb2 import VERSION_STATE_CANDIDATE, VERSION_STATE_REJECTED

MakeConfig = Callable[..., Config]
Publish = Callable[..., Awaitable[record_pb2.VersionRecord]]


async def turn_of(config: Config, turn_id: str) -> Turn:
    store = await Store.open(config.redis.url, config.redis.namespace)
    try:
        [turn] = await TurnLog(store, config.turn_log).get_many([turn_id])
    finally:
        await store.close()
    assert turn is not None
    return turn


@pytest.fixture
async def client(settings: MakeConfig, run_server: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with run_server(settings(), ScriptedEngine()) as server, web(server) as client:
        yield client


async def test_a_whole_answer_is_the_one_that_was_logged(settings: MakeConfig, run_server: Any) -> None:
    config = settings()
    async with run_server(config, ScriptedEngine(script=lambda *_: "café")) as server, web(server) as client:
        response = await client.post("/v1/chat/completions", json=ask("Tell me.", n=2))
        body = response.json()
    turn = await turn_of(config, body["thumbwheel"]["turn_id"])
    assert response.headers["x-thumbwheel-version"] == body["model"] == "base"
    assert body["thumbwheel"] == {"version": "base", "turn_id": turn.record.turn_id, "logged": True}
    assert body["object"] == "chat.completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    for index, choice in enumerate(body["choices"]):
        assert choice["message"] == {"role": "assistant", "content": "café", "refusal": None}
        assert choice["finish_reason"] == "stop"
        assert choice["logprobs"] is None
        assert choice["response_id"] == turn.responses[index].response_id
        assert turn.responses[index].text == "café"
    assert body["id"] == body["choices"][0]["response_id"]
    prompt = len(turn.record.prompt_token_ids)
    assert body["usage"] == {"prompt_tokens": prompt, "completion_tokens": 12, "total_tokens": prompt + 12}
    assert [message.content for message in turn.record.messages] == ["Tell me."]


async def test_a_stream_is_the_same_answer_in_pieces(client: httpx.AsyncClient) -> None:
    body = ask(n=2, temperature=1, seed=5)
    whole = await complete(client, body)
    sent = await chunks(client, body)
    assert {chunk["object"] for chunk in sent} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in sent}) == 1
    assert all("usage" not in chunk for chunk in sent)
    for index, choice in enumerate(whole["choices"]):
        mine = [(chunk, chunk["choices"][0]) for chunk in sent if chunk["choices"][0]["index"] == index]
        (first, opening), *_, (last, end) = mine
        assert opening["delta"]["role"] == "assistant"
        assert first["thumbwheel"]["version"] == "base"
        assert "logged" not in first["thumbwheel"], "nobody knows yet"
        assert "".join(one["delta"].get("content", "") for _, one in mine) == choice["message"]["content"]
        assert [one["finish_reason"] for _, one in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert last["thumbwheel"] == first["thumbwheel"] | {"logged": True}
        assert {one["response_id"] for _, one in mine} == {end["response_id"]}
        assert end["response_id"] == f"{first['thumbwheel']['turn_id']}-{index}"
    assert sent[0]["id"] == sent[0]["choices"][0]["response_id"]


async def test_a_stream_tells_its_usage_if_asked_to(client: httpx.AsyncClient) -> None:
    body = ask(n=2, temperature=1, seed=5)
    whole = await complete(client, body)
    *others, last = await chunks(client, body | {"stream_options": {"include_usage": True}})
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in others)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({}, {"max_tokens": 256, "temperature": 1, "top_p": 1}),
        ({"max_tokens": None, "temperature": None, "stop": None, "n": None}, {"max_tokens": 256, "temperature": 1}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 8, "max_tokens": 7}, {"max_tokens": 8}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.5, "top_p": 0.25}, {"temperature": 0.5, "top_p": 0.25}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["a1", "b2"]}, {"stop": ["a1", "b2"]}),
        ({"seed": 17}, {"seed": 17}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
    ],
)
async def test_sampling_parameters_arrive(
    settings: MakeConfig, run_server: Any, sent: dict[str, Any], kept: dict[str, Any]
) -> None:
    config = settings()
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        body = await complete(client, ask(**sent))
    sampling = (await turn_of(config, body["thumbwheel"]["turn_id"])).record.sampling
    for name, value in kept.items():
        found = getattr(sampling, name)
        assert (list(found) if name == "stop" else found) == value


async def test_an_answer_ends_at_a_stop_string_and_at_its_length(settings: MakeConfig, run_server: Any) -> None:
    engine = ScriptedEngine(script=lambda *_: "one two three")
    async with run_server(settings(), engine) as server, web(server) as client:
        [stopped] = (await complete(client, ask(stop=" three")))["choices"]
        [cut] = (await complete(client, ask(max_tokens=3)))["choices"]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("one two", "stop")
    assert (cut["message"]["content"], cut["finish_reason"]) == ("one", "length")


async def test_logprobs_are_those_of_the_record(settings: MakeConfig, run_server: Any) -> None:
    config = settings()
    async with run_server(config, ScriptedEngine(script=lambda *_: "né")) as server, web(server) as client:
        body = await complete(client, ask(logprobs=True, top_logprobs=0))
        streamed = await chunks(client, ask(logprobs=True))
    listed = body["choices"][0]["logprobs"]["content"]
    kept = (await turn_of(config, body["thumbwheel"]["turn_id"])).responses[0]
    assert len(kept.logprobs) == 4, "the end of the turn has one too"
    assert [one["logprob"] for one in listed] == list(kept.logprobs)[:3]
    assert [one["token"] for one in listed] == ["n", "�", "�"]
    assert [one["bytes"] for one in listed] == [[ord("n")], None, None], "which part of a character, no text tells"
    assert all(one["top_logprobs"] == [] for one in listed)
    parts = [chunk["choices"][0] for chunk in streamed]
    kept = (await turn_of(config, streamed[0]["thumbwheel"]["turn_id"])).responses[0]
    found = [one["logprob"] for part in parts if part["logprobs"] for one in part["logprobs"]["content"]]
    assert found == list(kept.logprobs)[:3]
    assert parts[0]["logprobs"] is None


@pytest.mark.parametrize("model", ["thumbwheel", "default", "tiny", "…/tiny", None])
async def test_the_live_version_has_names_that_stay(
    settings: MakeConfig, run_server: Any, publish: Publish, tiny_model: Any, model: str | None
) -> None:
    config = settings()
    await publish(config, "v1")
    names = {"tiny": tiny_model.name, "…/tiny": str(tiny_model)}
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        answered = await complete(client, ask(model=names.get(model or "", model)))
        assert (answered["model"], answered["choices"][0]["message"]["content"][:4]) == ("base", "base")
        pinned = await complete(client, ask(model="v1"))
        assert (pinned["model"], pinned["choices"][0]["message"]["content"][:2]) == ("v1", "v1")
        assert (await complete(client, ask(model="base")))["model"] == "base"
    assert not (await turn_of(config, answered["thumbwheel"]["turn_id"])).record.pinned
    assert (await turn_of(config, pinned["thumbwheel"]["turn_id"])).record.pinned


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_is_not_there(settings: MakeConfig, run_server: Any, publish: Publish, stream: bool) -> None:
    config = settings()
    await publish(config, "bad", state=VERSION_STATE_REJECTED)
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        unknown = await client.post("/v1/chat/completions", json=ask(model="gpt-9", stream=stream))
        found = error(unknown, 404)
        assert (found["code"], found["param"], found["type"]) == ("model_not_found", "model", "invalid_request_error")
        assert "gpt-9" in found["message"]
        rejected = error(await client.post("/v1/chat/completions", json=ask(model="bad", stream=stream)), 400)
        assert rejected["param"] == "model"
        assert rejected["message"].startswith("model: bad was rejected")


UNSUPPORTED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "response_format": {"type": "json_object"},
    "logit_bias": {"5": 1},
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "top_logprobs": 2,
    "top_k": 5,
    "modalities": ["text", "audio"],
    "reasoning_effort": "high",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
async def test_what_would_change_the_answer_and_is_not_supported_is_refused(
    client: httpx.AsyncClient, name: str
) -> None:
    found = error(await client.post("/v1/chat/completions", json=ask(**{name: UNSUPPORTED[name]})), 400)
    assert found["param"] == name
    assert found["message"].startswith(f"{name}: not supported")


async def test_what_changes_no_answer_is_ignored(client: httpx.AsyncClient) -> None:
    neutral = {
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "top_logprobs": 0,
        "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "functions": None, "top_k": -1,
    }  # fmt: skip
    foreign = {"user": "ada", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "never_heard_of": [1]}
    plain = await complete(client, ask(temperature=0))
    assert (await complete(client, ask(temperature=0, **neutral, **foreign)))["choices"][0]["message"] == (
        plain["choices"][0]["message"]
    )


async def test_messages_come_in_several_forms(settings: MakeConfig, run_server: Any) -> None:
    config = settings()
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "one."}]
    said = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "ada"},
        {"role": "assistant", "content": "Hello.", "refusal": None},
        {"role": "user", "content": parts},
    ]
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        body = await complete(client, ask(messages=said))
    turn = await turn_of(config, body["thumbwheel"]["turn_id"])
    assert [(message.role, message.content) for message in turn.record.messages] == [
        (record_pb2.ROLE_SYSTEM, "Be brief."),
        (record_pb2.ROLE_USER, "Hi"),
        (record_pb2.ROLE_ASSISTANT, "Hello."),
        (record_pb2.ROLE_USER, "Name one."),
    ]


USER = {"role": "user", "content": "Hi"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages that are none": ({"messages": "Hi"}, "messages"),
    "a tool's message": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "an image": ({"messages": [USER | {"content": [{"type": "image_url"}]}]}, "messages[0].content"),
    "a part without text": ({"messages": [USER | {"content": [{"type": "text"}]}]}, "messages[0].content"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "empty content": ({"messages": [USER | {"content": " "}]}, "messages[0].content"),
    "an assistant at the end": ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
    "no answers": ({"n": 0}, "n"),
    "many answers": ({"n": 9}, "n"),
    "a negative number": ({"max_tokens": -1}, "max_tokens"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "many tokens": ({"max_completion_tokens": 5000}, "max_tokens"),
    "a number beyond all": ({"max_tokens": 2**40}, "max_tokens"),
    "hot": ({"temperature": 3}, "temperature"),
    "beyond float": ({"temperature": 1e300}, "temperature"),
    "a text for a number": ({"temperature": "1"}, "temperature"),
    "a truth for a number": ({"n": True}, "n"),
    "top_p": ({"top_p": 0}, "top_p"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "an empty stop": ({"stop": ""}, "stop[0]"),
    "a number to stop at": ({"stop": 5}, "stop"),
    "a long name": ({"model": "x" * 200}, "model"),
    "stream options": ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_value_is_named(client: httpx.AsyncClient, name: str) -> None:
    sent, param = WRONG[name]
    found = error(await client.post("/v1/chat/completions", json=ask(**sent)), 400)
    assert (found["param"], found["type"]) == (param, "invalid_request_error")
    assert found["message"].startswith(f"{param}: ")
    assert "input." not in found["message"]


async def test_a_long_prompt_is_read_too(settings: MakeConfig, run_server: Any) -> None:
    async with run_server(settings(), ScriptedEngine(max_context=20_000)) as server, web(server) as client:
        assert (await complete(client, ask("word " * 2000)))["usage"]["prompt_tokens"] > 10_000
        assert error(await client.post("/v1/chat/completions", json=ask("word " * 4000)), 400)["param"] == "messages"


def test_an_answer_of_two_versions_says_so() -> None:
    spans = [record_pb2.VersionSpan(version="v1"), record_pb2.VersionSpan(version="v2", first_token=3)]
    finish = chat_pb2.Finish(reason=record_pb2.FINISH_REASON_LENGTH, spans=spans)
    receipt = chat_pb2.Receipt(response_id="t-0", version="v1", turn_id="t")
    body = completion([WholeAnswer(receipt, "x", finish)], no_logprobs)
    assert body["choices"][0]["spans"] == [{"version": "v1", "first_token": 0}, {"version": "v2", "first_token": 3}]
    assert body["thumbwheel"]["logged"] is False


async def test_candidates_are_for_operators_alone_as_over_grpc(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    await publish(config, "v1", state=VERSION_STATE_CANDIDATE)
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        assert (await complete(client, ask(model="v1")))["model"] == "v1", "without keys everybody is one"


async def test_vllm_answers_over_http_as_over_grpc(settings: MakeConfig, run_server: Any, engine: Engine) -> None:
    config = settings()
    async with run_server(config, engine) as server, web(server) as client:
        request = chat_pb2.ChatInput(
            messages=[record_pb2.Message(role=record_pb2.ROLE_USER, content="Tell me about wheels.")],
            sampling=record_pb2.Sampling(max_tokens=24, temperature=0),
        )
        [grpc_answer] = (await server.chat.Chat(chat_pb2.ChatRequest(input=request))).answers
        body = ask("Tell me about wheels.", max_tokens=24, temperature=0, logprobs=True)
        whole = await complete(client, body)
        sent = await chunks(client, body)
    [choice] = whole["choices"]
    assert choice["message"]["content"] == grpc_answer.text
    assert whole["usage"]["completion_tokens"] == grpc_answer.finish.usage.completion_tokens
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in sent) == grpc_answer.text
    kept = (await turn_of(config, whole["thumbwheel"]["turn_id"])).responses[0]
    ends = engine.eos_token_ids
    listed = choice["logprobs"]["content"]
    assert [one["logprob"] for one in listed] == [
        logprob for token, logprob in zip(kept.token_ids, kept.logprobs, strict=True) if token not in ends
    ]
    streamed = [one for chunk in sent for one in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [one["token"] for one in streamed] == [one["token"] for one in listed]
