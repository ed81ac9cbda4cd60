"""The image: what its Dockerfile copies is there, and what it installs is what the product needs. Nothing is built."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy import tools

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"


def instructions() -> list[tuple[str, str]]:
    """Of all stages, in order, with continued lines joined and without comments."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(line).name.lower().replace("_", "-") for line in requirements}


def locked(accelerator: str) -> set[str]:
    lines = (ROOT / "requirements" / f"{accelerator}.lock").read_text(encoding="utf-8").splitlines()
    return names([line for line in lines if line and not line.startswith(("#", " "))])


def excluded() -> set[str]:
    return set((DOCKER / "excludes.txt").read_text(encoding="utf-8").split())


def copied() -> list[str]:
    """What comes from the repository."""
    return [
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]


def test_hadolint_finds_no_fault() -> None:
    command = [tools.hadolint(), "--no-color", DOCKER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    wrong = subprocess.run([*command[:2], "-"], input="FROM python\n", capture_output=True, text=True, check=False)
    assert "DL3006" in wrong.stdout


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert let_in == set(copied())
    for source in copied():
        assert (ROOT / source).exists(), source


def test_it_runs_as_nobody_in_particular() -> None:
    last_user = [rest for word, rest in instructions() if word == "USER"][-1]
    assert last_user == "10001:10001"
    after = [word for word, _ in instructions()][[word for word, _ in instructions()].index("USER") :]
    assert "RUN" not in after
    assert ("ENTRYPOINT", '["thumbwheel"]') in instructions()


def test_it_is_made_from_the_lock_with_the_set_ups_uv() -> None:
    runs = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert '"requirements/$ACCELERATOR.lock"' in runs
    assert runs.count("pip install") == runs.count("--no-deps") + 1  # uv itself
    command = re.search(r"\$\((sed [^)]*)\)", runs)
    assert command is not None
    found = subprocess.run(["sh", "-c", command[1]], cwd=ROOT / "deploy", capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+", found.stdout.strip())


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_nothing_but_tools_of_tests_is_left_out(accelerator: str, tmp_path: Path) -> None:
    run = next(rest for word, rest in instructions() if word == "RUN" and "grep" in rest)
    command = run.partition(" > lock.txt")[0].replace("excludes.txt", str(DOCKER / "excludes.txt"))
    kept = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={"PATH": "/usr/bin:/bin", "ACCELERATOR": accelerator},
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert names([line for line in kept if not line.startswith(("#", " "))]) == locked(accelerator) - excluded()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert excluded() <= names(extras.pop("test"))
    assert not excluded() & names([*project["dependencies"], *(line for extra in extras.values() for line in extra)])


def test_nothing_that_is_kept_needs_what_is_left_out() -> None:
    for name in locked("cpu") - excluded():
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform
        needed = {
            each.name.lower()
            for each in map(Requirement, requires)
            if each.marker is None or each.marker.evaluate({"extra": ""})
        }
        assert not needed & excluded(), name


def test_vllm_finds_its_libraries() -> None:
    """Of the system's own, the CPU build needs libnuma only; the image has it."""
    objdump = tools.on_path("objdump")
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations
    needed = set()
    for library in Path(found.submodule_search_locations[0]).glob("_C*.so"):
        needed |= set(re.findall(r"NEEDED\s+(\S+)", subprocess.check_output([objdump, "-p", library], text=True)))
    of_the_image = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp)\.so|ld-linux|lib(torch|c10)")
    assert {name for name in needed if not of_the_image.match(name)} <= {"libnuma.so.1"}
    assert "libnuma1" in next(rest for word, rest in instructions() if "apt-get" in rest)


def test_an_installed_project_has_all_its_files(tmp_path: Path) -> None:
    """Everywhere else it is editable: what setuptools leaves out would be missed in the image only."""
    source = tmp_path / "src"
    listed = subprocess.check_output(["git", "ls-files", *copied()], cwd=ROOT, text=True).splitlines()
    for file in listed:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_bytes((ROOT / file).read_bytes())
    uv = Path(sys.executable).with_name("uv")
    run = [rest for word, rest in instructions() if word == "RUN" and "./client" in rest]
    assert run == ["uv pip install --no-deps --no-build-isolation . ./client"]
    subprocess.run(
        [uv, *run[0].split()[1:], "-q", "--python", sys.executable, "--target", tmp_path / "installed"],
        cwd=source, check=True,
    )  # fmt: skip
    packages = ("thumbwheel/", "server/", "learner/", "cli/", "client/thumbwheel_client/")
    expected = {file.removeprefix("client/") for file in listed if file.startswith(packages)}
    assert len(expected) > 100
    assert [file for file in sorted(expected) if not (tmp_path / "installed" / file).is_file()] == []
