"""The set-up script: that it costs nothing when nothing changed, and that what fails says what to do."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (
    "deploy/setup.sh", "requirements/cpu.lock", "requirements/cuda.lock", "pyproject.toml", "client/pyproject.toml",
)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """As much of a clone as the script looks at."""
    folder = tmp_path / "clone"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder for PATH with the tools that every machine has, but no Python and no nvidia-smi."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (
        "bash", "env", "dirname", "uname", "cat", "sed", "sha256sum", "cut", "flock", "df", "awk", "tail", "grep", "rm",
        "mv", "tr",
    ):  # fmt: skip
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return folder


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def executable(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)


def setup(project: Path, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "deploy" / "setup.sh"],
        capture_output=True,
        text=True,
        env={"PATH": str(path), **environment},
        timeout=60,
        check=False,
    )


def python(file: Path, version: str = "3.12.4", *, can_make_environments: bool = True, pip: int = 0) -> None:
    """A Python that knows its version, makes environments that hold itself, and whose pip ends as told."""
    major, minor, _ = version.split(".")
    fits = (3, 11) <= (int(major), int(minor)) <= (3, 13)
    executable(
        file,
        f"""
case "$*" in
  -V) echo "Python {version}" ;;
  *"not (3, 11)"*) exit {int(not fits)} ;;
  *ensurepip*) exit {int(not can_make_environments)} ;;
  *version_info*) echo {version} ;;
  "-m venv "*) /bin/mkdir -p "$3/bin"; /bin/cp "$0" "$3/bin/python"
    printf '#!/bin/bash\\necho "$@" >> uv-calls' > "$3/bin/uv"; /bin/chmod +x "$3/bin/uv" ;;
  "-m pip "*) echo "pip was here" >&2; exit {pip} ;;
esac""",
    )


def calls(project: Path) -> list[str]:
    file = project / "uv-calls"
    return file.read_text().splitlines() if file.exists() else []


def test_nothing_changed_costs_nothing() -> None:
    """On the environment that runs this test."""
    began = time.monotonic()
    result = subprocess.run([ROOT / "deploy" / "setup.sh"], capture_output=True, text=True, check=True)
    if result.stdout:  # it was not up to date; now it is
        began = time.monotonic()
        result = subprocess.run([ROOT / "deploy" / "setup.sh"], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 1
    assert result.stdout == ""


def test_each_change_redoes_what_it_must(project: Path, path: Path) -> None:
    python(path / "python3")
    assert setup(project, path).returncode == 0
    first = calls(project)
    assert len(first) == 2
    assert "requirements/cpu.lock" in first[0]
    assert "--no-deps" in first[0]

    assert setup(project, path).stdout == ""
    assert calls(project) == first, "nothing"

    append(project / "pyproject.toml", "\n")
    assert setup(project, path).returncode == 0
    assert len(calls(project)) == 3, "the project"
    assert "-e ." in calls(project)[2]

    append(project / "requirements/cpu.lock", "\n")
    assert setup(project, path).returncode == 0
    assert len(calls(project)) == 5, "the packages and the project"

    mark = project / ".venv" / "mark"
    mark.touch()
    python(path / "python3.11", "3.11.9")
    assert setup(project, path, PYTHON="python3.11").returncode == 0
    assert not mark.exists(), "another Python is another environment"


def test_unfinished_environment_is_made_anew(project: Path, path: Path) -> None:
    python(path / "python3")
    mark = project / ".venv" / "half-written"
    executable(project / ".venv" / "bin" / "python", "exit 1")
    mark.touch()
    result = setup(project, path)
    assert result.returncode == 0, result.stderr
    assert not mark.exists()
    assert setup(project, path).stdout == ""


def test_failed_step_is_named_and_tried_again(project: Path, path: Path) -> None:
    python(path / "python3", pip=1)
    result = setup(project, path)
    assert result.returncode == 1
    assert "this failed: fetching uv" in result.stderr
    assert "pip was here" in result.stderr
    assert "PIP_INDEX_URL" in result.stderr
    python(path / "python3")
    assert setup(project, path).returncode == 0


@pytest.mark.parametrize("version", ["3.10.14", "3.14.0"])
def test_unfit_python(project: Path, path: Path, version: str) -> None:
    python(path / "python3", version)
    result = setup(project, path)
    assert result.returncode == 1
    assert f"python3 is Python {version}" in result.stderr
    assert "python3-venv" in result.stderr
    assert not (project / ".venv").exists()


def test_no_python(project: Path, path: Path) -> None:
    assert "There is no python3 on PATH" in setup(project, path).stderr


def test_fitting_python_beside_an_unfit_one(project: Path, path: Path) -> None:
    python(path / "python3", "3.14.0")
    python(path / "python3.13", "3.13.1")
    assert setup(project, path).returncode == 0


def test_debian_without_venv(project: Path, path: Path) -> None:
    python(path / "python3", can_make_environments=False)
    result = setup(project, path)
    assert result.returncode == 1
    assert "apt-get install python3-venv" in result.stderr


def test_gpu_takes_its_own_lock(project: Path, path: Path) -> None:
    python(path / "python3")
    executable(path / "nvidia-smi", 'echo "GPU 0: NVIDIA H200 (UUID: GPU-0)"')
    assert setup(project, path).returncode == 0
    assert "requirements/cuda.lock" in calls(project)[0]
    assert "torch-backend" not in calls(project)[0]


def test_driver_without_gpu_is_a_cpu(project: Path, path: Path) -> None:
    python(path / "python3")
    executable(path / "nvidia-smi", 'echo "NVIDIA-SMI has failed"; exit 9')
    assert setup(project, path).returncode == 0
    assert "requirements/cpu.lock" in calls(project)[0]
    assert "--torch-backend cpu" in calls(project)[0]


def test_torch_from_a_folder_of_wheels(project: Path, path: Path, tmp_path: Path) -> None:
    python(path / "python3")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    assert setup(project, path, PIP_FIND_LINKS=str(wheels)).returncode == 0
    assert "--torch-backend cpu" in calls(project)[0], "no torch in it"
    (wheels / f"torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_{os.uname().machine}.whl").touch()
    append(project / "requirements/cpu.lock", "\n")
    assert setup(project, path, PIP_FIND_LINKS=str(wheels)).returncode == 0
    assert f"--find-links {wheels}" in calls(project)[2]


def test_unknown_accelerator(project: Path, path: Path) -> None:
    python(path / "python3")
    assert "there is no requirements/tpu.lock" in setup(project, path, ACCELERATOR="tpu").stderr


def test_second_one_waits_for_the_first(project: Path, path: Path) -> None:
    python(path / "python3")
    with (project / ".venv.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [project / "deploy" / "setup.sh"], env={"PATH": str(path)}, stdout=subprocess.PIPE, text=True
        )
        assert second.stdout is not None
        assert "waiting for it" in second.stdout.readline()
        assert calls(project) == []
    assert second.communicate(timeout=30)[0].endswith("done\n")
    assert len(calls(project)) == 2


@pytest.mark.slow
def test_fresh_clone_installs(tmp_path: Path) -> None:
    """The real thing, from the network; interrupted once, then two at once."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", clone], check=True)
    with subprocess.Popen([clone / "deploy" / "setup.sh"], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        while "installing requirements" not in killed.stdout.readline():
            assert killed.poll() is None
        killed.kill()
    both = [subprocess.Popen([clone / "deploy" / "setup.sh"]) for _ in range(2)]
    assert [each.wait(900) for each in both] == [0, 0]
    shown = subprocess.run([clone / ".venv/bin/thumbwheel", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: thumbwheel" in shown.stdout
