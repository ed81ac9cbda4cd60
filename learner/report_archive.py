"""The folder of pages: what lies there is always what the facts beside it render to.

Its files are their owner's alone, for they hold what people have said. Whatever killed a writer half-way, to write the
same pages again puts it right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from learner import report
from learner.report import Facts
from thumbwheel.secret_files import write_secret

log = logging.getLogger("thumbwheel.learner.report_archive")

_OURS = re.compile(r"\.?(cycle-[0-9]+\.(html|json)|index\.html)(\.new)?")
"""Files of pages, and drafts of them."""


def read(folder: Path) -> list[Facts]:
    """What is told of each cycle, the latest first.

    Raises:
        OSError: a file cannot be read.
    """
    found = []
    for path in sorted(folder.glob("cycle-*.json")):
        try:
            facts = Facts.model_validate_json(path.read_bytes())
        except ValueError:  # torn or by hand; `write` then removes its page, for nobody knows who is on it
            log.warning("report_unreadable", extra={"file": path.name})
            continue
        if path.stem == facts.cycle:
            found.append(facts)
    return sorted(found, key=lambda facts: facts.finished, reverse=True)


def write(folder: Path, pages: Sequence[Facts]) -> None:
    """Makes the folder hold these pages, in this order in its index, and no others.

    Raises:
        OSError, SetupError: the disk is full or not writable; the next call goes on where this one was.
    """
    files: dict[str, str] = {}
    for facts in pages:
        files[f"{facts.cycle}.json"] = facts.model_dump_json(indent=1)
        files[f"{facts.cycle}.html"] = report.page(facts)
    if pages:
        files["index.html"] = report.index(pages)
    # First what goes: to forget needs no room on the disk.
    for path in folder.glob("*"):
        if _OURS.fullmatch(path.name) and path.name not in files:
            path.unlink(missing_ok=True)
    for name, text in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != f"{text}\n".encode():
            write_secret(path, text)


def newest(folder: Path) -> Path | None:
    """The page of the latest cycle."""
    pages = read(folder)
    return folder / f"{pages[0].cycle}.html" if pages else None
