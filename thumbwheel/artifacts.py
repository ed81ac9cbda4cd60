"""Version folders: written once, whole or not at all, and checked before anybody uses them.

<name>-<digest>/
    adapter_model.safetensors, adapter_config.json     the adapter, in PEFT's format
    training/...                                       whatever else the cycle wants to keep
    manifest.json                                      name, facts, and size and sha256 of every other file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from thumbwheel.errors import AdapterRefused, NotFound
from thumbwheel_client.v1.record_pb2 import VersionRecord

MANIFEST: Final = "manifest.json"
_UNFINISHED: Final = ".unfinished-"
_UNFINISHED_SECONDS: Final = 86_400.0
_MANIFEST_LIMIT: Final = 4 << 20


def write_version(root: Path, name: str, fill: Callable[[Path], None], facts: Mapping[str, Any]) -> tuple[str, str]:
    """Writes a version's folder below `root`; returns its path there and the sha256 of its manifest.

    Args:
        fill: writes the files into the folder that it is given.
        facts: what the manifest says beside the files; must be JSON.

    After a crash at any point the folder is there with all its bytes, or not at all.

    Raises:
        ValueError: `name` is not a file name, or `facts` are not JSON.
        AdapterRefused: `fill` left something else than plain files and folders.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"{name!r} is not a version's name")
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{name}-", dir=root))
    try:
        fill(folder)
        digest = _write_manifest(folder, name, facts)
        target = root / f"{name}-{digest[:16]}"
        # First the bytes, then the folders that name them, then the one name that makes them a version, then the folder
        # that holds that name. In any other order a power cut could leave a version that lacks bytes.
        _sync_tree(folder)
        if not _stands(root, VersionRecord(name=name, path=target.name, manifest_sha256=digest)):
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
            _sync(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target.name, digest


def verify_version(root: Path, record: VersionRecord) -> dict[str, Any]:
    """Checks that a version's folder is exactly what was published; returns its manifest.

    Raises:
        AdapterRefused: it lies outside `root`, holds a link, lacks a file, has one too many, or a byte changed.
    """
    folder = _folder(root, record.path)
    manifest = _manifest(folder, record)
    expected = manifest["files"]
    present = _files(folder)
    present.discard(MANIFEST)
    if missing := sorted(expected.keys() - present):
        raise AdapterRefused("missing_file", f"{record.name}: {missing[0]} is missing")
    if extra := sorted(present - expected.keys()):
        raise AdapterRefused("extra_file", f"{record.name}: {extra[0]} is not in the manifest")
    for name, facts in expected.items():
        path = folder / name
        if path.stat().st_size != facts["bytes"] or _sha256(path) != facts["sha256"]:
            raise AdapterRefused("file_digest", f"{record.name}: {name} is not what was published")
    return manifest


def _stands(root: Path, record: VersionRecord) -> bool:
    """Whether the same content was written before and nothing has happened to it since."""
    try:
        verify_version(root, record)
    except AdapterRefused:
        return False
    return True


def model_digest(folder: Path) -> str:
    """sha256 over config.json and the *.safetensors of a model folder.

    Remembered beside the folder with the files' sizes and times, so that gigabytes are read only once.

    Raises:
        NotFound: there are no such files.
    """
    files = [path for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))] if path.is_file()]
    if len(files) < 2:
        raise NotFound(f"{folder} holds no config.json with *.safetensors")
    seen = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    memory = folder.absolute().with_name(f"{folder.absolute().name}.digest.json")
    # Whatever is wrong with what was remembered, it can be made anew.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(memory.read_text(encoding="utf-8"))
        if kept["files"] == seen:
            return str(kept["sha256"])
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {_sha256(path)}\n".encode())
    with contextlib.suppress(OSError):  # a folder that is not ours to write in: read again next time
        _replace(memory, json.dumps({"files": seen, "sha256": total.hexdigest()}))
    return total.hexdigest()


def _write_manifest(folder: Path, name: str, facts: Mapping[str, Any]) -> str:
    files = {}
    for file in sorted(_files(folder)):
        path = folder / file
        path.chmod(0o444)
        files[file] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    text = json.dumps({"name": name, "files": files, "facts": dict(facts)}, indent=1, sort_keys=True, allow_nan=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / MANIFEST).chmod(0o444)
    folder.chmod(0o755)  # mkdtemp's is the owner's alone; a server may run as somebody else
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(folder: Path, record: VersionRecord) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise AdapterRefused("missing_manifest", f"{record.name}: there is no {MANIFEST}")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise AdapterRefused("manifest_malformed", f"{record.name}: {MANIFEST} is too large")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record.manifest_sha256:
        raise AdapterRefused("manifest_digest", f"{record.name}: {MANIFEST} is not what was registered")
    try:
        manifest = json.loads(data)
        well_formed = manifest["name"] == record.name and all(
            isinstance(facts["bytes"], int) and isinstance(facts["sha256"], str) and _is_inside(name)
            for name, facts in manifest["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterRefused("manifest_malformed", f"{record.name}: {MANIFEST} cannot be read") from error
    if not well_formed:
        raise AdapterRefused("manifest_malformed", f"{record.name}: {MANIFEST} is another version's or names odd files")
    return dict(manifest)


def _folder(root: Path, relative: str) -> Path:
    """The folder, if it lies below `root` without a link on the way."""
    if not relative or not _is_inside(relative):
        raise AdapterRefused("escape", f"{relative!r} is not a path below the artifact root")
    folder = root
    for part in PurePosixPath(relative).parts:
        folder = folder / part
        if folder.is_symlink():
            raise AdapterRefused("symlink", f"{relative!r} leads over a link")
    if not folder.is_dir():
        raise AdapterRefused("missing_folder", f"there is no folder {relative!r} below the artifact root")
    return folder


def _is_inside(relative: str) -> bool:
    path = PurePosixPath(relative)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\0" not in relative
        and str(path) == relative
    )


def _files(folder: Path) -> set[str]:
    """Relative paths of all files below; refuses whatever is neither file nor folder."""
    found = set()
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise AdapterRefused("symlink", f"{path.relative_to(folder)} is neither a plain file nor a folder")
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in files}
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(folder: Path) -> None:
    """Everything below to disk, contents before the folders that name them."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Puts a file in place so that no reader sees half of it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def _sweep(root: Path) -> None:
    """Removes what killed writers left; younger folders may still be written."""
    for folder in root.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _UNFINISHED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
