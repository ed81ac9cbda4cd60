"""How records are kept: sealed bytes that notice a flipped bit, and the names of answers.

sealed = 1 format byte + crc32 of the body (4 bytes, big endian) + protobuf body

Redis' append-only file loads a flipped byte in the middle without a word, so every record carries its own checksum.
"""

from __future__ import annotations

import struct
import time
import zlib
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from thumbwheel.errors import CorruptRecord, NotFound

FORMAT = 1
_HEAD = struct.Struct(">BI")
MAX_ANSWERS = 8

M = TypeVar("M", bound=Message)


def seal(message: Message) -> bytes:
    """The bytes to store. Equal messages give equal bytes."""
    body = message.SerializeToString(deterministic=True)
    return _HEAD.pack(FORMAT, zlib.crc32(body)) + body


def unseal(kind: type[M], data: bytes) -> M:
    """The message that was sealed.

    Raises:
        CorruptRecord: the bytes are not what was written, or were written by a newer format.
    """
    if len(data) < _HEAD.size:
        raise CorruptRecord(f"a {kind.__name__} of {len(data)} bytes is too short")
    form, checksum = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if form != FORMAT:
        raise CorruptRecord(f"a {kind.__name__} has format {form}, not {FORMAT}")
    if zlib.crc32(body) != checksum:
        raise CorruptRecord(f"a {kind.__name__} fails its checksum")
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise CorruptRecord(f"a {kind.__name__} cannot be read") from error
    return message


def now() -> Timestamp:
    """The wall clock."""
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns())
    return stamp


def response_id(turn_id: str, index: int) -> str:
    """Names answer `index` (0 to 7) of a turn."""
    return f"{turn_id}-{index}"


def split_response_id(name: str) -> tuple[str, int]:
    """Turn id and index of an answer.

    Raises:
        NotFound: no answer can have this name.
    """
    turn_id, dash, index = name.rpartition("-")
    if not dash or not turn_id or len(index) != 1 or not "0" <= index < str(MAX_ANSWERS):
        raise NotFound(f"no response {name!r}")
    return turn_id, int(index)
