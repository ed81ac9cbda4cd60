"""Options that all commands share, and the configuration they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thumbwheel import config

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration; default: thumbwheel.toml in this folder, if any."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Overrides one value; may be given again."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where everything that must be kept lies; default: data."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Prints the resulting configuration and stops.")]


def resolve(file: Path | None, overrides: list[str] | None, data_dir: Path | None) -> config.Config:
    """The configuration that these options mean, with an absolute `data_dir`.

    Raises:
        SetupError: an unknown key, a bad value or an unreadable file.
    """
    sets = list(overrides or ())
    if data_dir is not None:
        sets.append(f"data_dir={data_dir}")
    settings = config.load(file, sets)
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})
