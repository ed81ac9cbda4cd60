"""Files of rows: whole, in groups, or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from cli import row_files
from cli.vote_rows import row_of
from thumbwheel.errors import SetupError
from thumbwheel.records import now
from thumbwheel_client.v1 import feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb


def row(number: int, comment: str = "") -> dict[str, Any]:
    event = pb.VoteEvent(
        turn_id=f"t{number}", response_id=f"t{number}-0", kind=pb.VOTE_KIND_THUMB, thumb=pb.THUMB_UP, comment=comment,
        created_at=now(),
    )  # fmt: skip
    return row_of(feedback_pb2.Vote(event=event, event_id=f"{number}-0"))


def test_groups_are_written_as_they_fill() -> None:
    file = io.BytesIO()
    with row_files.parquet(file) as writer:
        for number in range(row_files.GROUP_ROWS - 1):
            writer.write(row(number))
        before = file.tell()
        writer.write(row(row_files.GROUP_ROWS - 1))
        assert file.tell() > before, "a full group is written at once"
        writer.write(row(row_files.GROUP_ROWS))
    metadata = pyarrow.parquet.ParquetFile(file).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [row_files.GROUP_ROWS, 1]


def test_long_texts_fill_a_group_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "GROUP_CHARS", 10_000)
    file = io.BytesIO()
    with row_files.parquet(file) as writer:
        for number in range(4):
            writer.write(row(number, comment="long " * 1500))
    assert pyarrow.parquet.ParquetFile(file).metadata.num_row_groups == 2


def test_what_is_broken_off_is_no_parquet_file() -> None:
    file = io.BytesIO()

    def broken() -> None:
        with row_files.parquet(file) as writer:
            writer.write(row(0))
            raise ValueError("the server went away")

    with pytest.raises(ValueError, match="went away"):
        broken()
    file.seek(0)
    with pytest.raises(SetupError, match="no Parquet file"):
        list(row_files.read_parquet(file))


def test_rows_come_back_with_their_numbers() -> None:
    rows = [row(number) for number in range(4)]
    binary = io.BytesIO()
    with row_files.parquet(binary) as writer:
        for each in rows:
            writer.write(each)
    binary.seek(0)
    found = list(row_files.read_parquet(binary))
    assert [entry.row for entry in found] == rows
    assert [(entry.number, entry.share) for entry in found] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def test_a_line_that_is_none_does_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a"\n{"a": 2}\n')
    with path.open("rb") as file:
        found = list(row_files.read_lines(file))
    assert [(entry.number, entry.row, entry.wrong) for entry in found] == [
        (1, {"a": 1}, ""), (3, '{"a"\n', "is no JSON"), (4, {"a": 2}, ""),
    ]  # fmt: skip
    assert found[-1].share == 1


def test_only_a_list_is_a_list() -> None:
    assert [entry.row for entry in row_files.read_list(io.BytesIO(b'["a", "b"]'))] == ["a", "b"]
    for wrong in (b"{}", b"["):
        with pytest.raises(SetupError, match="no JSON"):
            list(row_files.read_list(io.BytesIO(wrong)))


def test_half_a_character_is_written_as_it_was_read() -> None:
    file = io.BytesIO()
    row_files.JsonLines(file).write({"text": json.loads('"\\ud83d"')})
    assert file.getvalue() == b'{"text": "\\ud83d"}\n'


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("old", encoding="utf-8")

    def broken() -> None:
        with row_files.whole(path) as file:
            file.write(b"new")
            raise ValueError("the server went away")

    with pytest.raises(ValueError, match="went away"):
        broken()
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows"]
    assert path.read_text(encoding="utf-8") == "old"
