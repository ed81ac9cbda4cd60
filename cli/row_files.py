"""Files of rows: JSON lines, and Parquet where pyarrow is installed. Written and read in constant memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol

from cli.vote_rows import Row
from thumbwheel.errors import SetupError

GROUP_ROWS = 1000
"""Rows in a group of a Parquet file ..."""
GROUP_CHARS = 16 << 20
"""... or as many as have about so much text."""


class Writer(Protocol):
    """Takes rows."""

    def write(self, row: Row) -> None:
        """Adds one."""


class JsonLines:
    """One object a line. Times are written as ISO 8601."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        line = json.dumps(row, ensure_ascii=False, default=datetime.isoformat)
        self._file.write(line.encode(errors="backslashreplace") + b"\n")  # half a surrogate pair, as JSON escapes it


class Parquet:
    """The columns of `vote_rows.row_of`, in groups that are written as they fill."""

    def __init__(self, file: IO[bytes]) -> None:
        self._pa, parquet = _pyarrow()
        self._schema = _columns(self._pa)
        self._file = _Counted(file)
        self._writer = parquet.ParquetWriter(self._file, self._schema)
        self._rows: list[Row] = []
        self._chars = 0

    def write(self, row: Row) -> None:
        self._rows.append(row)
        self._chars += len(str(row))
        if len(self._rows) >= GROUP_ROWS or self._chars >= GROUP_CHARS:
            self._write_group()

    def close(self) -> None:
        """Writes what waits and the end, without which nobody can read the file."""
        self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Writes nothing more; left to itself, pyarrow's writer would try to end the file when it is collected."""
        self._file.discard()
        self._writer.close()

    def _write_group(self) -> None:
        if self._rows:
            self._writer.write_table(self._pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._chars = [], 0


@contextmanager
def parquet(file: IO[bytes]) -> Iterator[Parquet]:
    """A Parquet file, whole when the context ends well.

    Raises:
        SetupError: pyarrow is not installed.
    """
    writer = Parquet(file)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abandon()
        raise


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file holds: the number of a line or row from 1, the row, and how far into the file it is (0 to 1).

    `wrong` tells why it is no row; `row` is then whatever is there.
    """

    number: int
    row: Any
    share: float
    wrong: str = ""


def read_lines(file: IO[bytes]) -> Iterator[Entry]:
    """The object of each line that is not blank."""
    size, done = os.fstat(file.fileno()).st_size, 0
    for number, line in enumerate(file, 1):
        done += len(line)
        share = min(1.0, done / size) if size else 0.0  # a pipe has no size
        if line.strip():
            try:
                yield Entry(number, json.loads(line), share)
            except ValueError:
                yield Entry(number, line.decode(errors="replace"), share, "is no JSON")


def read_list(file: IO[bytes]) -> Iterator[Entry]:
    """The elements of one JSON list, which has to fit into memory.

    Raises:
        SetupError: it is none.
    """
    try:
        rows = json.load(file)
    except ValueError as error:
        raise SetupError("this is no JSON") from error
    if not isinstance(rows, list):
        raise SetupError("this is no JSON list")
    for number, row in enumerate(rows, 1):
        yield Entry(number, row, number / len(rows))


def read_parquet(file: IO[bytes]) -> Iterator[Entry]:
    """The rows of a Parquet file, some at a time.

    Raises:
        SetupError: pyarrow is not installed, or this is no Parquet file.
    """
    pa, parquet = _pyarrow()
    try:
        table, number = parquet.ParquetFile(file), 0
        for batch in table.iter_batches(GROUP_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Entry(number, row, number / table.metadata.num_rows)
    except pa.ArrowInvalid as error:
        raise SetupError(f"this is no Parquet file that can be read: {error}") from error


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is whole.

    Raises:
        SetupError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError("Parquet needs pyarrow, which is not installed: pip install 'thumbwheel[export]'") from error
    return pyarrow, pyarrow.parquet


def _columns(pa: Any) -> Any:
    text, number, time = pa.string(), pa.int32(), pa.timestamp("us", tz="UTC")
    message = pa.struct([("role", text), ("content", text)])
    answer = pa.struct([("response_id", text), ("text", text), ("version", text)])
    place = pa.struct([("response_id", text), ("rank", number)])
    return pa.schema(
        [
            ("event_id", text), ("kind", text), ("thumb", text), ("stars", number), ("ranking", pa.list_(place)),
            ("edit", text), ("reasons", pa.list_(text)), ("comment", text), ("rater", text), ("version", text),
            ("turn_id", text), ("response_id", text), ("prompt", pa.list_(message)), ("answers", pa.list_(answer)),
            ("answered_at", time), ("rated_at", time),
        ]
    )  # fmt: skip


class _Counted:
    """A file that tells how much was written to it: pipes cannot, and pyarrow asks."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def discard(self) -> None:
        """What is written from now on goes nowhere."""
        self._file = io.BytesIO()

    def close(self) -> None:
        """Whoever opened the file closes it."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
