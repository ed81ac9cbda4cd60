"""HTTP/2 by hand: what no well-behaved library would send."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
CANCEL = 8


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def fields(**names: str) -> bytes:
    """Headers as literals without an index. Underscores stand for dashes, except in front, where they are colons."""

    def literal(text: str) -> bytes:
        raw = text.encode()
        assert len(raw) < 127
        return bytes([len(raw)]) + raw

    named = {(f":{name[1:]}" if name.startswith("_") else name).replace("_", "-"): text for name, text in names.items()}
    return b"".join(b"\0" + literal(name) + literal(text) for name, text in named.items())


def request(path: str) -> bytes:
    return fields(_method="POST", _scheme="http", _path=path, _authority="localhost", te="trailers") + fields(
        content_type="application/grpc"
    )


def farewell(said: bytes) -> int | None:
    """The error code of the GOAWAY among these frames."""
    while len(said) >= 9:
        length, kind = int.from_bytes(said[:3], "big"), said[3]
        if kind == GOAWAY:
            return int.from_bytes(said[13:17], "big")
        said = said[9 + length :]
    return None


class Connection:
    """One, whose answers nobody reads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = -1

    @classmethod
    @asynccontextmanager
    async def to(cls, address: str, window: int = 65_535) -> AsyncIterator[Connection]:
        """
        Args:
            window: bytes of a stream that the server may send before it is told that they were read.
        """
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + frame(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW_SIZE, window)))
        writer.write(frame(SETTINGS, ACK))
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    async def send(self, *frames: bytes) -> None:
        """
        Raises:
            ConnectionError: the server has closed it.
        """
        self._writer.writelines(frames)
        await self._writer.drain()

    def begin(self) -> int:
        """The number of a new stream."""
        self._stream += 2
        return self._stream

    async def call(self, path: str, message: bytes) -> None:
        stream = self.begin()
        body = struct.pack(">BI", 0, len(message)) + message
        await self.send(frame(HEADERS, END_HEADERS, stream, request(path)), frame(DATA, END_STREAM, stream, body))

    async def closed(self) -> bytes:
        """Everything that the server had to say until it closed the connection."""
        said = b""
        with suppress(ConnectionError):
            while more := await self._reader.read(1 << 16):
                said += more
        return said
