"""Writes docs/api.md from the comments in protos/: ``python protos/reference.py``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

PROTOS = Path(__file__).parent
PACKAGE = ".thumbwheel.v1."

HEADER = """\
# API

Written from the comments in `protos/` by `make docs`: the services of gRPC, then messages and enums. What OpenAI's
clients find over HTTP is in [openai.md](openai.md), who may call what in [security.md](security.md), and the ports are
in [configuration.md](configuration.md).
"""


def write() -> str:
    """The whole page.

    Raises:
        RuntimeError: protoc refuses the files.
    """
    files = _parsed()
    parts = [_Page(file) for file in files]
    lines = [line for page in parts for line in page.services()] + [line for page in parts for line in page.types()]
    return HEADER + "\n".join(lines) + "\n"


def _parsed() -> list[FileDescriptorProto]:
    sources = sorted(str(file) for file in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        wellknown = Path(grpc_tools.__file__).parent / "_proto"
        arguments = [f"-I{PROTOS}", f"-I{wellknown}", "--include_source_info", f"--descriptor_set_out={out}", *sources]
        if protoc.main(["protoc", *arguments]) != 0:
            raise RuntimeError("protoc refuses the files")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


class _Page:
    """A file's part; a comment is found by the path of numbers that leads to what it describes."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): " ".join(place.leading_comments.split()) for place in file.source_code_info.location
        }

    def services(self) -> Iterator[str]:
        for index, service in enumerate(self._file.service):
            yield from self._service(service, (6, index))

    def types(self) -> Iterator[str]:
        for index, message in enumerate(self._file.message_type):
            yield from self._message(message, (4, index), "")
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (5, index), "")

    def _service(self, service: ServiceDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        yield f"\n## {service.name}\n\n{self._comment(path)}"
        yield "\n| method | takes | gives | what it does |\n|---|---|---|---|"
        for index, method in enumerate(service.method):
            yield f"| `{method.name}` | {_ends(method)} | {self._comment((*path, 2, index))} |"

    def _message(self, message: DescriptorProto, path: tuple[int, ...], outer: str) -> Iterator[str]:
        if message.options.map_entry:
            return
        name = outer + message.name
        yield f"\n### {name}\n\n{self._comment(path)}"
        if message.field:
            yield "\n| field | type | what it is |\n|---|---|---|"
        for index, field in enumerate(message.field):
            yield f"| `{field.name}` | {_kind(field)} | {self._comment((*path, 2, index))} |"
        for index, nested in enumerate(message.nested_type):
            yield from self._message(nested, (*path, 3, index), f"{name}.")
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, (*path, 4, index), f"{name}.")

    def _enum(self, enum: EnumDescriptorProto, path: tuple[int, ...], outer: str) -> Iterator[str]:
        yield f"\n### {outer}{enum.name}\n\n{self._comment(path)}\n\n| value | number | what it means |\n|---|---|---|"
        for index, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {self._comment((*path, 2, index))} |"

    def _comment(self, path: tuple[int, ...]) -> str:
        return self._comments.get(path, "").replace("|", "\\|")


def _ends(method: MethodDescriptorProto) -> str:
    takes = ("stream of " if method.client_streaming else "") + _type(method.input_type)
    gives = ("stream of " if method.server_streaming else "") + _type(method.output_type)
    return f"{takes} | {gives}"


def _kind(field: FieldDescriptorProto) -> str:
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    optional = "optional " if field.proto3_optional else ""
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return repeated + optional + (_type(field.type_name) if field.type_name else scalar)


def _type(full: str) -> str:
    """A link to what this page describes; others keep their full name."""
    if not full.startswith(PACKAGE):
        return full.removeprefix(".")
    name = full.removeprefix(PACKAGE)
    return f"[{name}](#{name.lower().replace('.', '')})"


if __name__ == "__main__":
    print(write(), end="")
