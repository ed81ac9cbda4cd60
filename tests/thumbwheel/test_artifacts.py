from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from thumbwheel import artifacts
from thumbwheel.artifacts import model_digest, verify_version, write_version
from thumbwheel.errors import AdapterRefused, NotFound
from thumbwheel_client.v1.record_pb2 import VersionRecord


def fill(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "training").mkdir()
    (folder / "training" / "value_head.safetensors").write_bytes(b"head")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "versions"


@pytest.fixture
def record(root: Path) -> VersionRecord:
    path, digest = write_version(root, "v1", fill, {"parent": "base"})
    return VersionRecord(name="v1", path=path, manifest_sha256=digest)


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def reseal(root: Path, record: VersionRecord, change: Callable[[dict[str, object]], object]) -> None:
    """Changes the manifest and registers its new digest: what is left to find is in its content."""
    path = writable(root / record.path / "manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    record.manifest_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()


def reason(root: Path, record: VersionRecord) -> str:
    with pytest.raises(AdapterRefused) as caught:
        verify_version(root, record)
    return caught.value.reason


def test_what_is_written_verifies(root: Path, record: VersionRecord) -> None:
    manifest = verify_version(root, record)
    assert manifest["name"] == "v1"
    assert manifest["facts"] == {"parent": "base"}
    assert sorted(manifest["files"]) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training/value_head.safetensors",
    ]
    assert manifest["files"]["adapter_model.safetensors"] == {
        "bytes": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert record.path == f"v1-{record.manifest_sha256[:16]}"


def test_nothing_in_it_is_meant_to_be_written_again(root: Path, record: VersionRecord) -> None:
    folder = root / record.path
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o444}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_writing_the_same_again_is_the_same_version(root: Path, record: VersionRecord) -> None:
    assert write_version(root, "v1", fill, {"parent": "base"}) == (record.path, record.manifest_sha256)
    assert [path.name for path in root.iterdir()] == [record.path]


@pytest.mark.parametrize("happen", [shutil.rmtree, lambda folder: (folder / "training").rename(folder / "x")])
def test_what_was_torn_is_written_again(root: Path, record: VersionRecord, happen: Callable[[Path], object]) -> None:
    happen(root / record.path)
    assert write_version(root, "v1", fill, {"parent": "base"}) == (record.path, record.manifest_sha256)
    verify_version(root, record)


def test_other_content_under_one_name_is_another_folder(root: Path, record: VersionRecord) -> None:
    other, _ = write_version(root, "v1", fill, {"parent": "v0"})
    assert other != record.path
    verify_version(root, record)


@pytest.mark.parametrize("name", ["", "../v", "a/b", ".hidden", "a b"])
def test_names_that_are_none(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        write_version(root, name, fill, {})


def test_a_failure_leaves_nothing(root: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_version(root, "v1", fail, {})
    with pytest.raises(ValueError, match="JSON"):
        write_version(root, "v1", fill, {"kl": float("nan")})
    assert list(root.iterdir()) == []


def test_a_link_is_not_published(root: Path) -> None:
    def link(folder: Path) -> None:
        (folder / "adapter_model.safetensors").symlink_to("/etc/hostname")

    with pytest.raises(AdapterRefused, match="neither a plain file"):
        write_version(root, "v1", link, {})
    assert list(root.iterdir()) == []


def test_a_killed_writer_leaves_no_version(root: Path) -> None:
    """Killed while it fills the folder; the next writer is not disturbed, and the remains go after a day."""
    code = f"""
import os, pathlib, signal
from thumbwheel.artifacts import write_version
def fill(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
write_version(pathlib.Path({str(root)!r}), "v1", fill, {{}})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (remains,) = root.iterdir()
    path, _ = write_version(root, "v1", fill, {})
    assert sorted(entry.name for entry in root.iterdir()) == sorted([remains.name, path])
    yesterday = time.time() - 2 * 86_400
    os.utime(remains, (yesterday, yesterday))
    write_version(root, "v2", fill, {})
    assert not remains.exists()
    assert len(list(root.iterdir())) == 2


def test_bytes_are_on_disk_before_the_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = artifacts._sync, Path.rename

    def note_sync(path: Path) -> None:
        events.append("root" if path == root else f"sync {'/'.join(path.relative_to(root).parts[1:])}")
        sync(path)

    def note_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(artifacts, "_sync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    write_version(root, "v1", fill, {})
    at = events.index
    assert events[-2:] == ["rename", "root"]
    assert at("sync training/value_head.safetensors") < at("sync training") < at("sync ") < at("rename")
    assert {"sync manifest.json", "sync adapter_model.safetensors"} < set(events[: at("sync ")])


def test_a_changed_byte(root: Path, record: VersionRecord) -> None:
    writable(root / record.path / "adapter_model.safetensors").write_bytes(b"wEights")
    assert reason(root, record) == "file_digest"


def test_a_longer_file(root: Path, record: VersionRecord) -> None:
    writable(root / record.path / "adapter_model.safetensors").write_bytes(b"weights!")
    assert reason(root, record) == "file_digest"


def test_a_missing_file(root: Path, record: VersionRecord) -> None:
    (root / record.path / "training" / "value_head.safetensors").unlink()
    assert reason(root, record) == "missing_file"


def test_a_file_too_many(root: Path, record: VersionRecord) -> None:
    (root / record.path / "training" / "more").write_bytes(b"")
    assert reason(root, record) == "extra_file"


def test_a_changed_manifest(root: Path, record: VersionRecord) -> None:
    manifest = writable(root / record.path / "manifest.json")
    manifest.write_text(manifest.read_text() + " ")
    assert reason(root, record) == "manifest_digest"


def test_no_manifest(root: Path, record: VersionRecord) -> None:
    (root / record.path / "manifest.json").unlink()
    assert reason(root, record) == "missing_manifest"


def test_no_folder(root: Path, record: VersionRecord) -> None:
    shutil.rmtree(root / record.path)
    assert reason(root, record) == "missing_folder"


@pytest.mark.parametrize("path", ["", "/etc", "..", "../versions/x", "a/../../x", "a//b", "./a", "."])
def test_paths_that_lead_out(root: Path, record: VersionRecord, path: str) -> None:
    record.path = path
    assert reason(root, record) == "escape"


def test_an_absolute_path_even_to_itself(root: Path, record: VersionRecord) -> None:
    record.path = str(root / record.path)
    assert reason(root, record) == "escape"


def test_links_anywhere(root: Path, record: VersionRecord) -> None:
    folder = root / record.path
    (root / "link").symlink_to(folder)
    through = VersionRecord(name="v1", path="link", manifest_sha256=record.manifest_sha256)
    assert reason(root, through) == "symlink"
    weights = folder / "adapter_model.safetensors"
    weights.rename(root / "aside")
    weights.symlink_to(root / "aside")
    assert reason(root, record) == "symlink"
    weights.unlink()
    (root / "aside").rename(weights)
    (folder / "training").rename(root / "aside")
    (folder / "training").symlink_to(root / "aside")
    assert reason(root, record) == "symlink"
    (folder / "training").unlink()
    os.mkfifo(folder / "training")
    assert reason(root, record) == "symlink"


def test_a_manifest_behind_a_link(root: Path, record: VersionRecord) -> None:
    manifest = root / record.path / "manifest.json"
    manifest.rename(root / "aside")
    manifest.symlink_to(root / "aside")
    assert reason(root, record) == "missing_manifest"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(name="v2"),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=["adapter_model.safetensors"]),
        lambda manifest: manifest["files"].update({"../x": {"bytes": 1, "sha256": ""}}),
        lambda manifest: manifest["files"].update({"/etc/hostname": {"bytes": 1, "sha256": ""}}),
        lambda manifest: manifest["files"].update({"x": {"bytes": "1", "sha256": ""}}),
        lambda manifest: manifest["files"].update({"x": {"sha256": ""}}),
    ],
)
def test_manifests_that_make_no_sense(
    root: Path, record: VersionRecord, change: Callable[[dict[str, object]], object]
) -> None:
    reseal(root, record, change)
    assert reason(root, record) == "manifest_malformed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_models_digest_tells_models_apart(model: Path) -> None:
    first = model_digest(model)
    assert len(first) == 64
    (model / "tokenizer.json").write_text("{ }")
    assert model_digest(model) == first  # only configuration and weights count
    (model / "model.safetensors").write_bytes(b"weightz")
    second = model_digest(model)
    (model / "config.json").write_text("{ }")
    assert len({first, second, model_digest(model)}) == 3


def test_a_models_digest_is_computed_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = model_digest(model)
    monkeypatch.setattr(artifacts, "_sha256", lambda path: pytest.fail(f"read {path} again"))
    assert model_digest(model) == digest


@pytest.mark.parametrize("remembered", ["", "[]", "{}", '{"files": {}}'])
def test_whatever_is_remembered_wrongly_is_computed_anew(model: Path, remembered: str) -> None:
    digest = model_digest(model)
    (model.parent / "model.digest.json").write_text(remembered)
    assert model_digest(model) == digest


def test_a_model_in_a_place_that_cannot_be_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(artifacts, "_replace", refuse)
    assert model_digest(model)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model"]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        model_digest(tmp_path)
