"""The walk over the configuration that everything written from it shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Key(NamedTuple):
    """A key, or a table."""

    path: tuple[str, ...]
    field: FieldInfo
    value: object
    """A `BaseModel` for a table, whose own keys come next."""


def keys(section: BaseModel, path: tuple[str, ...] = ()) -> Iterator[Key]:
    """Plain keys first: in TOML whatever follows a table's heading belongs to it."""
    tables = []
    for name, field in type(section).model_fields.items():
        key = Key((*path, name), field, getattr(section, name))
        if isinstance(key.value, BaseModel):
            tables.append((key, key.value))
        else:
            yield key
    for key, table in tables:
        yield key
        yield from keys(table, key.path)
