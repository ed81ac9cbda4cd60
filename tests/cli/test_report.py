"""`thumbwheel report`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from learner import report_archive
from learner.report import Facts

if TYPE_CHECKING:
    from tests.cli.conftest import Thumbwheel


async def test_it_prints_where_the_latest_page_lies(thumbwheel: Thumbwheel, tmp_path: Path) -> None:
    none = await thumbwheel("report", "--data-dir", str(tmp_path))
    assert (none.code, none.out) == (1, "")
    assert "no report in" in none.err
    pages = [
        Facts(
            cycle=f"cycle-{number}", outcome="released", parent="base", votes=64, seconds=9,
            finished=datetime(2026, 1, number, tzinfo=UTC),
        )
        for number in (10, 9)
    ]  # fmt: skip
    report_archive.write(tmp_path / "reports", pages)
    found = await thumbwheel("report", "--data-dir", str(tmp_path))
    assert (found.code, found.err) == (0, "")
    assert found.out == f"{tmp_path / 'reports' / 'cycle-10.html'}\n"
