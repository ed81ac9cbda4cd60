"""What `pip install ./client` brings: the package, and nothing that needs more than grpcio and protobuf."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import thumbwheel_client

ROOT = Path(__file__).parents[2]

ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        declared = ("grpc", "google", "typing_extensions", "thumbwheel_client")
        if name.partition(".")[0] not in {*declared, *sys.stdlib_module_names} or name.startswith("google.rpc"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
"""
"""Only what the client declares can be imported: no torch, vllm, redis, numpy, or anything else."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip builds it, from a copy: builds leave things behind."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "client", folder / "client", ignore=ignored)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, folder], cwd=folder / "client", check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture
def alone(wheel: Path, tmp_path: Path) -> Any:
    """Runs Python with the wheel and what it declares."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")

    async def run(program: str, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", ALONE + program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed"), "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    return run


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if not name.startswith("thumbwheel_client-0.1.0.dist-info/")}
    package = ROOT / "client" / "thumbwheel_client"
    source = {path for path in package.rglob("*") if path.suffix in (".py", ".pyi") or path.name == "py.typed"}
    assert packed == {str(path.relative_to(ROOT / "client")) for path in source}
    assert "thumbwheel_client/client.py" in packed
    licences = [name for name in names if name.endswith("/LICENSE")]
    assert licences == ["thumbwheel_client-0.1.0.dist-info/licenses/LICENSE"]
    assert (ROOT / "client" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_it_needs_grpcio_and_protobuf_only(wheel: Path) -> None:
    declared = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(need.partition(">")[0] for need in declared["dependencies"]) == ["grpcio", "protobuf"]
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(declared["dependencies"]) <= set(whole["dependencies"]), "one environment holds both"


async def test_it_works_with_nothing_else_installed(alone: Any, server: Any) -> None:
    program = """
for missing in ("torch", "vllm", "redis", "numpy", "thumbwheel", "google.rpc"):
    try:
        __import__(missing)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{missing} can be imported")
import thumbwheel_client
from thumbwheel_client import *
from thumbwheel_client.v1 import chat_pb2_grpc, feedback_pb2_grpc, models_pb2_grpc, privacy_pb2_grpc, rollout_pb2_grpc
with Client(sys.argv[1]) as client:
    answer = client.chat("Hello")
    client.rate(answer, "up")
    try:
        client.rate(answer, stars=9)
    except InvalidInput as error:
        print(thumbwheel_client.__file__, error.field, answer.text)
"""
    home, field, text = (await alone(program, server.addresses.grpc)).split(maxsplit=2)
    assert Path(home).parts[-3:] == ("installed", "thumbwheel_client", "__init__.py")
    assert field == "stars"
    assert text.startswith("HELLO")


async def test_messages_are_imported_without_the_client(alone: Any) -> None:
    """Server and learner need only these, and parts of them no gRPC."""
    program = """
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, models_pb2, privacy_pb2, record_pb2, rollout_pb2
ours = {name for name in sys.modules if name.startswith("thumbwheel_client.")}
print({name for name in ours if not name.startswith("thumbwheel_client.v1")} | ({"grpc"} & sys.modules.keys()))
"""
    assert (await alone(program)).strip() == "set()"


def test_every_public_name_is_there() -> None:
    for name in thumbwheel_client.__all__:
        assert getattr(thumbwheel_client, name) is not None
        assert name in dir(thumbwheel_client)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = thumbwheel_client.nonsense
    with pytest.raises(ImportError):
        from thumbwheel_client import other_nonsense  # noqa: F401
