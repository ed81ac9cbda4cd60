"""Connections that are opened and not used, used slowly, or used for nothing but noise."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from contextlib import suppress

from tests.http2 import (
    CANCEL,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Connection,
    farewell,
    frame,
    request,
)  # fmt: skip

ENHANCE_YOUR_CALM = 11
PATIENCE = 0.3
SLOWNESS = 0.5
"""Seconds between two bytes of a slow connection."""


async def dawdle(addresses: list[str], count: int, seconds: float) -> Counter[str]:
    """Holds connections that say nothing, half a greeting, or a request byte by byte; tells which were closed on it."""
    request_line = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 1000
    first_call = PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, request("/a/b"))
    sayings = {
        "silent": (b"", b""),
        "half a greeting": (PREFACE[:10], b""),
        "greeting byte by byte": (b"", PREFACE),
        "headers byte by byte": (first_call[:40], first_call[40:]),
        "http byte by byte": (b"", request_line),
    }
    ends: Counter[str] = Counter()

    async def one(number: int) -> None:
        name, (at_once, slowly) = list(sayings.items())[number % len(sayings)]
        host, _, port = addresses[number // len(sayings) % len(addresses)].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(seconds):
                writer.write(at_once)
                for byte in slowly:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(SLOWNESS)
                while await reader.read(1 << 16):
                    pass
            ends[f"{name}: closed by the server"] += 1
        except TimeoutError:
            ends[f"{name}: held"] += 1
        except ConnectionError:
            ends[f"{name}: closed by the server"] += 1
        finally:
            writer.transport.abort()

    await asyncio.gather(*(one(number) for number in range(count)))
    return ends


def noise(kind: str, frames: int) -> list[bytes]:
    """Frames that cost a server more than their sender."""
    if kind == "pings":
        return [frame(PING, payload=struct.pack(">Q", number)) for number in range(frames)]
    if kind == "settings":
        return [frame(SETTINGS)] * frames
    call, left = request("/thumbwheel.v1.ChatService/StreamChat"), struct.pack(">I", CANCEL)
    return [
        frame(HEADERS, END_HEADERS, stream, call) + frame(RST_STREAM, 0, stream, left)
        for stream in range(1, 2 * frames, 2)
    ]


async def flood(address: str, kind: str, connections: int, frames: int) -> Counter[str]:
    """Floods one connection after another, as fast as it goes; tells what the server thought of it."""
    ends: Counter[str] = Counter()
    for _ in range(connections):
        async with Connection.to(address) as connection:
            listening = asyncio.create_task(connection.closed())
            with suppress(ConnectionError):
                for piece in noise(kind, frames):
                    await connection.send(piece)
            try:
                async with asyncio.timeout(PATIENCE):
                    code = farewell(await listening)
                # The end of a connection may overtake the server's last words.
                ends["told to calm down" if code == ENHANCE_YOUR_CALM else "closed"] += 1
            except TimeoutError:
                ends["borne"] += 1
    return ends
