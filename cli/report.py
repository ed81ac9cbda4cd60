"""`thumbwheel report`: where the pages about the cycles lie."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from cli.options import ConfigFile, DataDir, Overrides, resolve
from learner import report_archive
from thumbwheel.errors import NotFound


def report(
    open_: Annotated[bool, typer.Option("--open", help="Also opens it in a browser.")] = False,
    config: ConfigFile = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
) -> None:
    """Print the path of the latest cycle's page; index.html beside it lists all of them."""
    folder = resolve(config, set_, data_dir).report_root
    page = report_archive.newest(folder)
    if page is None:
        raise NotFound(f"no report in {folder}: the learner that leads writes one there after each cycle")
    print(page)
    if open_:
        webbrowser.open(page.as_uri())
