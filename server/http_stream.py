"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # a proxy between would keep the tokens back
}


class EventStream:
    """Sends each item (there must be one) as an event, and at last that there are no more.

    Ending early closes `items`.
    """

    def __init__(self, items: AsyncGenerator[dict[str, Any], None], headers: Mapping[str, str]) -> None:
        self._items = items
        self._headers = HEADERS | dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        started = False
        async with aclosing(self._items) as items:
            async for item in items:
                # Only now: closing a generator that has not begun would close nothing of what it holds.
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                await send({"type": "http.response.body", "body": _event(item), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _event(item: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(item, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
