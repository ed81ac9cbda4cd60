"""The units, by systemd's own tools."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS
from tests.deploy import tools
from thumbwheel.config import Config

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
INSTALLED = "/opt/thumbwheel"


def section(unit: Path, name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters="=", comment_prefixes="#", strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(unit, encoding="utf-8")
    return parser[name]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_no_fault(unit: Path, tmp_path: Path) -> None:
    """As it would be after the installation that docs/deploy.md describes: only the folder is another here."""
    here = tmp_path / unit.name
    command = Path(sys.executable).with_name("thumbwheel")
    text = unit.read_text(encoding="utf-8").replace(f"{INSTALLED}/.venv/bin/thumbwheel", str(command))
    here.write_text(text, encoding="utf-8")
    analyze = tools.on_path("systemd-analyze")
    done = subprocess.run([analyze, "verify", here], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    here.write_text(text.replace("NoNewPrivileges=", "NoNewPriviliges="), encoding="utf-8")
    wrong = subprocess.run([analyze, "verify", here], capture_output=True, text=True, timeout=60, check=False)
    assert "NoNewPriviliges" in wrong.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_what_it_may_do_is_little(unit: Path) -> None:
    command = [
        tools.on_path("systemd-analyze"),
        "security",
        "--offline=true",
        "--threshold=40",
        "--no-pager",
        str(unit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize(("name", "word"), [("server", "serve"), ("learner", "learn")])
def test_it_starts_a_command_that_exists(name: str, word: str) -> None:
    (unit,) = [unit for unit in UNITS if unit.stem == f"thumbwheel-{name}"]
    service = section(unit, "Service")
    command, *arguments = service["ExecStart"].split()
    assert command == f"{INSTALLED}/.venv/bin/thumbwheel"
    assert word in COMMANDS
    assert arguments == [word, "--config", "/etc/thumbwheel/thumbwheel.toml", "--data-dir", "/var/lib/thumbwheel"]
    assert service["User"] == service["StateDirectory"] == "thumbwheel"


def test_a_server_has_the_time_to_drain() -> None:
    (unit,) = [unit for unit in UNITS if unit.stem == "thumbwheel-server"]
    assert int(section(unit, "Service")["TimeoutStopSec"]) > Config().server.drain + 5
