"""The base model: the embedded one, a folder, or one from the hub; and what it was made from, where it is quantised."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cli import embedded_model, hub_model
from cli.checkpoint import Checkpoint, quantisation, require_usable
from thumbwheel.config import Config
from thumbwheel.errors import SetupError

EMBEDDED = "embedded"


def is_prepared(settings: Config) -> bool:
    """False while `ensure` still has work to do."""
    return all(_here(settings, path) is not None for path in _named(settings).values())


def room(settings: Config) -> int:
    """Bytes on the data directory's disk that `ensure` still takes."""
    return embedded_model.ROOM if settings.model.path == EMBEDDED and not is_prepared(settings) else 0


def check(settings: Config) -> None:
    """Sees, without loading a weight, that the model can be what we need.

    Of a model on the hub, if it has not been fetched yet, only what it says about itself is.

    Raises:
        SetupError: a model lacks a part, or is one that we cannot serve or train; the hub does not hand it out; or the
            embedded model's package is not there.
    """
    if settings.model.path == EMBEDDED and not is_prepared(settings):
        embedded_model.source()
        return
    checkpoints = {key: _checkpoint(settings, key, path) for key, path in _named(settings).items()}
    served = checkpoints["path"]
    require_usable(served, checkpoints.get("full_precision"), settings.server.tensor_parallel)
    if quantisation(served) and settings.server.weights == "merged":
        raise SetupError(
            f'{served.named} is quantised, and server.weights = "merged" exchanges full weights\n'
            '  set server.weights to "adapters"'
        )


def ensure(settings: Config, console: Console) -> Config:
    """Prepares the embedded model, or fetches one from the hub, if that is the one and it has not been done.

    Returns:
        The configuration with folders in `model.path` and `model.full_precision`, which any process finds.

    Raises:
        SetupError: preparing or fetching failed, or what was fetched is none that we can serve and train.
    """
    if not is_prepared(settings):
        for key, path in _named(settings).items():
            if path == EMBEDDED:
                embedded_model.prepare(settings.data_dir, console)
            elif _here(settings, path) is None:
                hub_model.pin(settings.data_dir, path, f"model.{key}", console)
        check(settings)
    folders = {key: str(_here(settings, path)) for key, path in _named(settings).items()}
    return settings.model_copy(update={"model": settings.model.model_copy(update=folders)})


def _named(settings: Config) -> dict[str, str]:
    """What is given of `model.path` and `model.full_precision`."""
    named = {"path": settings.model.path, "full_precision": settings.model.full_precision}
    return {key: path for key, path in named.items() if path}


def _here(settings: Config, path: str) -> Path | None:
    """A model's folder on this machine; None if it is still to be made or fetched."""
    if path == EMBEDDED:
        return embedded_model.prepared(settings.data_dir)
    folder = Path(path).expanduser()
    if not folder.is_dir() and hub_model.is_id(path):
        return hub_model.pinned(settings.data_dir, path)
    return folder.absolute()


def _checkpoint(settings: Config, key: str, path: str) -> Checkpoint:
    """
    Raises:
        SetupError: there is no such folder, or the hub does not hand the model out.
    """
    named, folder = f"model.{key} = {path}", _here(settings, path)
    if folder is None:
        return Checkpoint(hub_model.describe(path, f"model.{key}"), named, whole=False)
    if not folder.is_dir():
        raise SetupError(f"{named}: there is no such folder, and it is no hub id (OWNER/NAME) either")
    return Checkpoint(folder, named)
