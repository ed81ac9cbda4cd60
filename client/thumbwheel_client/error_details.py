"""What a failed call says besides its code and its words.

gRPC sends it as a google.rpc.Status. The messages are declared here, in a pool of their own, so that the client needs
no package for three of them and gets along with whichever version of that package another part of the program brings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

TRAILER = "grpc-status-details-bin"

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Details:
    """`field` and `description` tell which value was refused and why; `retry_after` is in seconds."""

    field: str = ""
    description: str = ""
    retry_after: float | None = None


def details_of(trailers: Metadata) -> Details:
    """What the trailers of a call tell; nothing, if that cannot be read."""
    sent = next((value for key, value in trailers if key == TRAILER), b"")
    field, description, retry_after = "", "", None
    try:
        for detail in _STATUS.FromString(sent).details if isinstance(sent, bytes) else ():
            match detail.type_url.rpartition("/")[2]:
                case "google.rpc.BadRequest":
                    for violation in _BAD_REQUEST.FromString(detail.value).field_violations[:1]:
                        field, description = violation.field, violation.description
                case "google.rpc.RetryInfo":
                    delay = _RETRY_INFO.FromString(detail.value).retry_delay
                    retry_after = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        return Details()
    return Details(field, description, retry_after)


def _declare(**messages: dict[str, tuple[int, str]]) -> DescriptorPool:
    """Field by field: its number, and its type; a type in brackets repeats."""
    scalars = {
        "int32": FieldDescriptorProto.TYPE_INT32,
        "int64": FieldDescriptorProto.TYPE_INT64,
        "string": FieldDescriptorProto.TYPE_STRING,
        "bytes": FieldDescriptorProto.TYPE_BYTES,
    }
    file = FileDescriptorProto(name="error_details", syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
            if kind.startswith("["):
                kind, added.label = kind[1:-1], FieldDescriptorProto.LABEL_REPEATED
            if kind in scalars:
                added.type = scalars[kind]
            else:
                added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{kind}"
    pool = DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _declare(
    Status={"code": (1, "int32"), "message": (2, "string"), "details": (3, "[Any]")},
    Any={"type_url": (1, "string"), "value": (2, "bytes")},
    BadRequest={"field_violations": (1, "[Violation]")},
    Violation={"field": (1, "string"), "description": (2, "string")},
    RetryInfo={"retry_delay": (1, "Duration")},
    Duration={"seconds": (1, "int64"), "nanos": (2, "int32")},
)
_STATUS: Any = GetMessageClass(_POOL.FindMessageTypeByName("Status"))
_BAD_REQUEST: Any = GetMessageClass(_POOL.FindMessageTypeByName("BadRequest"))
_RETRY_INFO: Any = GetMessageClass(_POOL.FindMessageTypeByName("RetryInfo"))
