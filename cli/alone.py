"""``thumbwheel serve`` and ``thumbwheel learn``: one half alone, in the foreground."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from cli import base_model, programs, redis_server
from cli.config_toml import write
from cli.options import ConfigFile, DataDir, DryRun, Overrides, resolve
from thumbwheel.config import Config


def serve(config: ConfigFile = None, set_: Overrides = None, data_dir: DataDir = None, dry_run: DryRun = False) -> None:
    """Runs the server alone, for a Redis that is there already."""
    settings = resolve(config, set_, data_dir)
    if dry_run:
        print(write(settings), end="")
        return
    settings = _prepare(settings)
    os.execve(programs.server_command()[0], programs.server_command(), programs.server_environment(settings))


def learn(
    config: ConfigFile = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
    once: Annotated[
        bool, typer.Option("--once", help="Runs one cycle over the votes that are there, and stops.")
    ] = False,
) -> None:
    """Runs the learner alone, for a Redis and a server that are there already."""
    settings = resolve(config, set_, data_dir)
    if dry_run:
        print(write(settings), end="")
        return
    settings = _prepare(settings)
    command = programs.learner_command(once)
    os.execve(command[0], command, programs.learner_environment(settings))


def _prepare(settings: Config) -> Config:
    """The configuration with a Redis that answers to its name and a model that is prepared.

    Raises:
        SetupError: no Redis is named and none runs in this data directory; or the model cannot be used.
    """
    url = redis_server.url_in_use(settings)
    base_model.check(settings)
    settings = base_model.ensure(settings, Console(stderr=True))
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": url})})
