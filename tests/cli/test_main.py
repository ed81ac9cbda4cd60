from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli import main


def thumbwheel(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("THUMBWHEEL_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**inherited, "COLUMNS": "120", **environment},
        timeout=60,
        check=False,
    )


def test_help_lists_every_command(tmp_path: Path) -> None:
    shown = thumbwheel("--help", folder=tmp_path)
    assert shown.returncode == 0
    for name, (_, summary) in main.COMMANDS.items():
        assert f" {name} " in shown.stdout
        assert summary in shown.stdout


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, name: str) -> None:
    shown = thumbwheel(name, "--help", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"Usage: thumbwheel {name}" in shown.stdout


@pytest.mark.parametrize("words", [["--help"], ["up", "--dry-run"]])
def test_heavy_packages_stay_away(tmp_path: Path, words: list[str]) -> None:
    """Counted, not timed: what is not imported costs nothing on any machine."""
    code = f"import sys\nfrom cli.main import main\nsys.argv[1:] = {words}\ntry:\n    main()\nfinally:\n"
    code += "    print([name for name in ('grpc', 'torch', 'vllm', 'transformers') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_dry_run_prints_what_would_be_used(tmp_path: Path) -> None:
    (tmp_path / "thumbwheel.toml").write_text("[server]\ngrpc_port = 1\nhttp_port = 1\nmax_queue = 1\n")
    shown = thumbwheel(
        "up", "--dry-run", "--set", "server.http_port=3", "--data-dir", "here",
        folder=tmp_path, THUMBWHEEL_SERVER__GRPC_PORT="2", THUMBWHEEL_SERVER__HTTP_PORT="2",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    tree = tomllib.loads(shown.stdout)
    assert tree["server"]["max_queue"] == 1, "the file"
    assert tree["server"]["grpc_port"] == 2, "the environment over the file"
    assert tree["server"]["http_port"] == 3, "--set over the environment"
    assert tree["data_dir"] == str(tmp_path / "here")
    assert not (tmp_path / "here").exists(), "nothing is done"


@pytest.mark.parametrize("command", ["up", "serve", "learn"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "server.no_such=1"], "server.no_such: no such key"),
        (["--set", "server.grpc_port=many"], "server.grpc_port"),
        (["--set", "nonsense"], "write it as section.key=value"),
        (["--config", "absent.toml"], "absent.toml"),
    ],
)
def test_wrong_configuration_ends_in_one_clear_sentence(
    tmp_path: Path, command: str, words: list[str], message: str
) -> None:
    shown = thumbwheel(command, *words, folder=tmp_path)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was started or made"


@pytest.mark.parametrize("command", ["serve", "learn"])
def test_half_alone_needs_a_redis(tmp_path: Path, command: str) -> None:
    shown = thumbwheel(command, "--data-dir", "data", folder=tmp_path, REDIS_URL="")
    assert shown.returncode == 2
    assert "no Redis" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_unknown_command(tmp_path: Path) -> None:
    shown = thumbwheel("upp", folder=tmp_path)
    assert shown.returncode == 2
    assert "Did you mean 'up'" in shown.stderr
