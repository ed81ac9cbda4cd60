"""Pages from facts made by hand: whole, alone in the world, and silent about who is gone."""

from __future__ import annotations

import math
import stat
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from learner import report_archive
from learner.report import Bin, Comparison, Facts, Heard, Past, Word, index, page
from thumbwheel.errors import SetupError

NAN = math.nan
EVIL = "</td><script>alert('x')</script><img onerror=\"boom()\">\x00 & \r\nmore"

FACTS = Facts(
    cycle="cycle-7",
    outcome="rejected",
    reasons=("win rate against live 0.41 ± 0.05", "<b>KL</b> & more"),
    version="v7.5-6abc34",
    parent="v6.5-111111",
    votes=144,
    seconds=451.4,
    finished=datetime(2026, 11, 26, 9, 30, tzinfo=UTC),
    metrics={"reward_model_auc": 0.78, "win_rate": 0.41, "odd": NAN},
    iterations=tuple({"iteration": float(i), "reward_mean": 0.1 * i, "entropy": NAN} for i in range(4)),
    calibration=(Bin(predicted=0.2, liked=0.25, votes=20), Bin(predicted=0.8, liked=0.7, votes=21)),
    heard=(Heard(version="base", up_rate=0.25, votes=40), Heard(version="v6.5-111111", up_rate=NAN, votes=0)),
    past=(
        Past(cycle="cycle-6", outcome="released", auc=0.7, win_rate=0.6),
        Past(cycle="cycle-7", outcome="rejected", auc=0.78, win_rate=NAN),
    ),
    comparisons=(
        Comparison(turn="t1", prompt="Ann's <q>", before="long", after=EVIL, before_score=0.31, after_score=0.62),
        Comparison(turn="t2", prompt="Bob's", before="b", after="a", before_score=NAN, after_score=NAN),
    ),
    words=(
        Word(text=EVIL, effect=0.8, answers=9, turns=("t1", "t2", "t3", "t4")),
        Word(text="however", effect=-0.4, answers=3, turns=("t1", "t3", "t4")),
    ),
)
BARE = Facts(
    cycle="cycle-1", outcome="too_few_votes", parent="base", votes=3, seconds=NAN, finished=FACTS.finished
)  # fmt: skip
VOID = {"meta", "img", "br", "link", "input"}
LOADING = {"src", "srcset", "data", "action", "formaction", "poster", "background", "xlink:href"}


class Reader(HTMLParser):
    """Notes the tags, and fails where they are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.said = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert name not in LOADING
            assert not name.startswith("on")
            if name == "href":
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


@pytest.mark.parametrize(
    "text", [page(FACTS), page(BARE), index([FACTS, BARE]), index([])], ids=["page", "bare", "index", "empty"]
)
def test_a_document_is_whole_and_needs_nothing_else(text: str) -> None:
    read = Reader(text)
    assert not read.tags & {"script", "img", "link", "iframe", "object", "form"}
    assert set(read.links) <= {"index.html", "cycle-7.html", "cycle-1.html"}
    assert not any(word in text for word in ("http://", "https://", "url(", "@import", "src="))
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_a_page_tells_what_happened() -> None:
    said = Reader(page(FACTS)).said
    for words in (
        "cycle-7: rejected", "refused", *FACTS.reasons, "v7.5-6abc34", "v6.5-111111", "144", "7 min 31 s",
        "2026-11-26 09:30 UTC", "Ann's <q>", "<script>alert('x')</script>", "0.31", "0.62", "however", "base (40)",
        "Reward of the answers", "reward_model_auc",
    ):  # fmt: skip
        assert words in said, words
    assert "Entropy" not in said, "nothing is known of it"
    assert "\x00" not in page(FACTS)
    assert "The cycle ended before it." in Reader(page(BARE)).said


def test_facts_come_back_from_the_file_and_render_the_same() -> None:
    again = Facts.model_validate_json(FACTS.model_dump_json())
    assert page(again) == page(FACTS)
    assert again.model_dump_json() == FACTS.model_dump_json()
    assert "NaN" not in FACTS.model_dump_json()


def test_who_is_gone_is_on_no_page() -> None:
    assert FACTS.turns == {"t1", "t2", "t3", "t4"}
    assert FACTS.keeping(FACTS.turns) == FACTS
    left = FACTS.keeping({"t2", "t3", "t4"})
    assert [row.turn for row in left.comparisons] == ["t2"]
    assert [word.turns for word in left.words] == [("t2", "t3", "t4")], "of the other too few answers are left"
    assert "Ann" not in page(left)
    assert "t1" not in left.model_dump_json()
    assert FACTS.keeping(()).turns == set()


def test_the_folder_is_its_owners_alone_and_holds_just_these_pages(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    assert report_archive.read(folder) == []
    assert report_archive.newest(folder) is None
    later = BARE.model_copy(update={"cycle": "cycle-10", "finished": datetime(2026, 12, 1, tzinfo=UTC)})
    report_archive.write(folder, [later, FACTS])
    assert [facts.cycle for facts in report_archive.read(folder)] == ["cycle-10", "cycle-7"]
    assert report_archive.newest(folder) == folder / "cycle-10.html"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    (folder / ".cycle-7.html.new").write_text("what a killed writer left")
    (folder / "notes.txt").write_text("somebody else's")
    report_archive.write(folder, [later])
    assert sorted(file.name for file in folder.iterdir()) == [
        "cycle-10.html", "cycle-10.json", "index.html", "notes.txt",
    ]  # fmt: skip
    report_archive.write(folder, [])
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_what_lies_there_is_put_right_and_what_is_right_stays(tmp_path: Path) -> None:
    report_archive.write(tmp_path, [FACTS])
    page_file, before = tmp_path / "cycle-7.html", (tmp_path / "cycle-7.json").stat().st_mtime_ns
    page_file.write_text("rows of somebody who was erased while the writer was killed")
    report_archive.write(tmp_path, report_archive.read(tmp_path))
    assert page_file.read_bytes().decode() == page(FACTS) + "\n"
    assert (tmp_path / "cycle-7.json").stat().st_mtime_ns == before


def test_a_page_of_which_nobody_knows_who_is_on_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report_archive.write(tmp_path, [FACTS])
    sidecar = tmp_path / "cycle-7.json"
    sidecar.write_text(sidecar.read_text(encoding="utf-8")[:-100], encoding="utf-8")
    pages = report_archive.read(tmp_path)
    assert pages == []
    assert "report_unreadable" in caplog.messages
    assert "Ann" not in caplog.text
    report_archive.write(tmp_path, pages)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file")
    with pytest.raises((SetupError, OSError)):
        report_archive.write(tmp_path / "reports", [FACTS])
