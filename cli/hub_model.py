"""A model from Hugging Face's hub: fetched into Hugging Face's cache, and pinned by a link in the data directory.

Pinned, because a version belongs to the very weights that it was trained on: a model that its owner changes between two
starts would void all of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from thumbwheel.errors import SetupError

DESCRIPTIONS = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHTS = ("*.safetensors",)


def is_id(path: str) -> bool:
    """Whether it reads as OWNER/NAME."""
    return path.count("/") == 1 and not path.startswith((".", "~", "/"))


def pinned(data_dir: Path, name: str) -> Path | None:
    """The folder of a model that has been fetched."""
    link = _link(data_dir, name)
    return link if (link / "config.json").is_file() else None


def describe(name: str, key: str) -> Path:
    """A folder with all that a model says about itself, which is kilobytes; asks the hub.

    Args:
        key: of the configuration, for errors.

    Raises:
        SetupError: the hub does not hand it out.
    """
    from huggingface_hub import snapshot_download  # half a second, and a model by hub id is the exception
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    with _refusals(name, key):
        return Path(snapshot_download(name, allow_patterns=list(DESCRIPTIONS)))


def pin(data_dir: Path, name: str, key: str, console: Console) -> Path:
    """Fetches a model, and links to it. One that was pinned, and is gone from the cache, comes back in that revision.

    Raises:
        SetupError: as `describe`; or there is too little room for it.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils.tqdm import enable_progress_bars

    if console.is_terminal:
        enable_progress_bars()
    link = _link(data_dir, name)
    revision = link.readlink().name if link.is_symlink() else None
    wanted = [*DESCRIPTIONS, *WEIGHTS]
    with _refusals(name, key):
        with suppress(errors.DryRunError):  # the hub is away: the cache may have it all
            files = snapshot_download(name, revision=revision, allow_patterns=wanted, dry_run=True)
            need = sum(file.file_size or 0 for file in files if file.will_download)
            _require_room(Path(HF_HUB_CACHE), need, name)
            if need:
                console.print(f"Fetching {name} from the hub, {need / 1e9:.1f} GB (once)")
        folder = snapshot_download(name, revision=revision, allow_patterns=wanted)
    link.parent.mkdir(parents=True, exist_ok=True)
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.symlink_to(folder)
    draft.replace(link)
    return link


def _link(data_dir: Path, name: str) -> Path:
    return data_dir.absolute() / "models" / name


def _require_room(cache: Path, need: int, name: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < need:
        raise SetupError(
            f"the disk is short: {free / 1e9:.1f} GB free for {cache}, {name} takes {need / 1e9:.1f} GB\n"
            "  make room, or set HF_HOME to a folder with more"
        )


@contextmanager
def _refusals(name: str, key: str) -> Iterator[None]:
    """The hub's errors in our words."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        why = "its owner wants to be asked"
        raise _refused(name, key, why, "accept the terms on its page, and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        why = "there is no such folder, and the hub has no such model, or not for you"
        raise _refused(name, key, why, "mind the spelling; one that is private needs HF_TOKEN") from error
    except (httpx2.HTTPError, errors.HFValidationError, OSError) as error:
        why = f"it cannot be fetched: {str(error).splitlines()[0]}"
        raise _refused(name, key, why, "try again, or fetch it elsewhere and name its folder") from error


def _refused(name: str, key: str, why: str, advice: str) -> SetupError:
    return SetupError(f"{key} = {name}: {why}\n  {advice}")
