"""OpenAI's own clients, unmodified, against a running server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from server.engine import Engine
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel_client.v1 import feedback_pb2, record_pb2

MakeConfig = Callable[..., Config]

NODE_CLIENT = "openai@6"
SCRIPT = Path(__file__).with_name("openai_client.mjs")


def client_of(server: Any, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://{server.addresses.web}/v1", api_key="none", timeout=20, **options)


@pytest.fixture
async def server(settings: MakeConfig, run_server: Any) -> AsyncIterator[Any]:
    async with run_server(settings(), ScriptedEngine()) as running:
        yield running


def said(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


async def test_python_chats_and_rates(server: Any) -> None:
    async with client_of(server) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="thumbwheel",
            messages=said("Hi"),
            n=2,
            seed=3,
            logprobs=True,
            stop=["zzz"],
            max_tokens=200,
            user="ada",
        )
        answer = raw.parse()
        assert raw.headers["x-thumbwheel-version"] == answer.model == "base"
        assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
        assert answer.choices[0].response_id == answer.id  # type: ignore[attr-defined]
        assert answer.thumbwheel["logged"] is True  # type: ignore[attr-defined]
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert len(logprobs.content) == len((answer.choices[0].message.content or "").encode())
        vote = await client.post("/feedback", cast_to=object, body={"response_id": answer.id, "thumb": "up"})
        assert vote["event_id"]  # type: ignore[index]


async def test_python_streams(server: Any) -> None:
    async with client_of(server) as client:
        whole = await client.chat.completions.create(model="thumbwheel", messages=said("Hi"), temperature=0)
        text, usage, ids = "", None, set()
        stream = await client.chat.completions.create(
            model="thumbwheel", messages=said("Hi"), temperature=0, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            ids.add(chunk.id)
            usage = chunk.usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
        assert text == whole.choices[0].message.content
        assert usage == whole.usage
        assert len(ids) == 1
        async with client.chat.completions.stream(
            model="thumbwheel", messages=said("Hi"), temperature=0, n=2
        ) as events:
            gathered = await events.get_final_completion()
        assert [choice.message.content for choice in gathered.choices] == [text, text]


async def test_python_lists_models(server: Any) -> None:
    async with client_of(server) as client:
        assert [model.id async for model in await client.models.list()] == ["thumbwheel", "base"]
        assert (await client.models.retrieve("base")).id == "base"


async def test_python_raises_its_own_errors(settings: MakeConfig, run_server: Any) -> None:
    config = settings()
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    async with run_server(config, ScriptedEngine()) as server, client_of(server, max_retries=0) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as missing:
            await create(model="gpt-9", messages=said("Hi"))
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
            await create(model="thumbwheel", messages=said("Hi"), temperature=3)
        assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
        with pytest.raises(openai.BadRequestError, match="tools"):
            await create(model="thumbwheel", messages=said("Hi"), tools=[tool])
    config = config.model_copy(update={"security": config.security.model_copy(update={"auth": "keys"})})
    async with run_server(config, ScriptedEngine()) as server, client_of(server, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="not a key"):
            await client.models.list()


async def test_python_hears_of_an_error_in_the_middle_of_a_stream(settings: MakeConfig, run_server: Any) -> None:
    engine = ScriptedEngine()
    engine.resume.clear()
    async with run_server(settings(default_deadline=0.3), engine) as server, client_of(server, max_retries=0) as client:
        stream = await client.chat.completions.create(model="thumbwheel", messages=said("Hi"), stream=True)
        assert (await anext(aiter(stream))).choices[0].delta.role == "assistant"
        with pytest.raises(openai.APIError, match=r"longer than 0\.3 s"):
            await anext(aiter(stream))
        engine.resume.set()


async def test_python_closing_a_stream_ends_its_tokens(settings: MakeConfig, run_server: Any, until: Any) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 200, token_seconds=0.005)
    async with run_server(settings(), engine) as server, client_of(server) as client:
        stream = await client.chat.completions.create(model="thumbwheel", messages=said("Hi"), stream=True)
        async for _ in stream:
            break
        assert engine.running
        await stream.close()
        engine.resume.clear()
        await until(lambda: not engine.running)


async def test_python_with_vllm(settings: MakeConfig, run_server: Any, engine: Engine) -> None:
    async with run_server(settings(), engine) as server, client_of(server) as client:
        question: dict[str, Any] = {"model": "thumbwheel", "messages": said("Hi"), "temperature": 0, "max_tokens": 12}
        whole = await client.chat.completions.create(**question, logprobs=True)
        text = ""
        async for chunk in await client.chat.completions.create(**question, stream=True):
            text += chunk.choices[0].delta.content or ""
        assert text == whole.choices[0].message.content
        assert whole.choices[0].logprobs is not None


async def test_the_documents_python_example_works(server: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert example is not None
    program = example.group(1).replace("127.0.0.1:8080", server.addresses.web)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode().startswith("base base ")
    [vote] = (await server.feedback.ListVotes(feedback_pb2.ListVotesRequest())).votes
    assert vote.event.thumb == record_pb2.THUMB_UP


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds the package `openai`."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    words = ["npm", "install", "--no-fund", "--no-audit", "--no-package-lock", "--prefix", str(folder), NODE_CLIENT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {NODE_CLIENT} here")
    shutil.copy(SCRIPT, folder)
    return folder


async def test_the_documents_javascript_example_works(server: Any, node_client: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    example = re.search(r"```js\n(.*?)```", text, flags=re.DOTALL)
    assert example is not None
    program = node_client / "example.mjs"
    program.write_text(example.group(1).replace("127.0.0.1:8080", server.addresses.web), encoding="utf-8")
    process = await asyncio.create_subprocess_exec("node", str(program), stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    [vote] = (await server.feedback.ListVotes(feedback_pb2.ListVotesRequest())).votes
    assert vote.event.thumb == record_pb2.THUMB_UP


async def test_node_chats_streams_lists_and_hears_errors(server: Any, node_client: Path) -> None:
    address = f"http://{server.addresses.web}/v1"
    process = await asyncio.create_subprocess_exec(
        "node", str(node_client / SCRIPT.name), address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    seen = json.loads(out)
    assert seen["models"] == ["thumbwheel", "base"]
    assert seen["streamed"] == seen["whole"] != ""
    assert seen["usage"] == seen["streamedUsage"]
    assert seen["version"] == "base"
    assert seen["logged"] is True
    assert seen["answers"] == 2
    assert seen["event"]
    assert seen["missing"] == {"kind": "NotFoundError", "code": "model_not_found", "param": "model"}
    assert seen["wrong"] == {"kind": "BadRequestError", "code": "invalid_value", "param": "temperature"}
