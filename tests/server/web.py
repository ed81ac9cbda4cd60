"""HTTP as tests speak it: a client of a running server, and requests by hand where no client would send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

ASK: dict[str, Any] = {"model": "thumbwheel", "messages": [{"role": "user", "content": "Hi"}]}


def ask(content: str = "Hi", **more: Any) -> dict[str, Any]:
    return ASK | {"messages": [{"role": "user", "content": content}]} | more


@asynccontextmanager
async def web(server: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{server.addresses.web}", timeout=20, **options) as client:
        yield client


async def complete(client: httpx.AsyncClient, body: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A whole completion."""
    response = await client.post("/v1/chat/completions", json=body, **options)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def chunks(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All chunks of a streamed completion, which must end as one does."""
    events = []
    async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line:
                assert line.startswith("data: ")
                events.append(line.removeprefix("data: "))
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def rate(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/feedback", json=body)


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, whose shape is OpenAI's."""
    assert response.status_code == status, response.text
    found = response.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    inner: dict[str, Any] = found["error"]
    return inner


@asynccontextmanager
async def connection(server: Any, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection, dropped in the end."""
    host, _, port = server.addresses.web.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), **options)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def request(body: dict[str, Any], **headers: str) -> bytes:
    """A chat request by hand."""
    data = json.dumps(body).encode()
    fields = {"host": "localhost", "content_type": "application/json", "content_length": str(len(data))} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + data
