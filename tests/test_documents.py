"""Every command that README.md and docs/ tell people to type, typed: in a folder of its own, beside a thumbwheel that
runs there and has turned once, on a tiny random model.

What can't be run here is in NOT_HERE with the reason. The documents' Python and JavaScript is run where its doors are
tested: cli/test_readme.py, client/test_readme.py and server/test_http_openai.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli import instance
from cli.instance import Instance
from server.engine_scripted import ScriptedEngine
from tests.faults import world
from tests.processes import eventually
from thumbwheel import config

pytestmark = pytest.mark.timeout(600)  # minutes on a machine that is busy with other things

ROOT = Path(__file__).parents[1]
TEXTS = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}

PIECES = re.compile(r"^```(\w*)\n(.*?)^```|`([^`]+)`", flags=re.MULTILINE | re.DOTALL)
"""Language and text of a block, or what stands between ticks."""
PROMPT = re.compile(r"^ *(?:\$ |(?=\.venv/bin/|thumbwheel (?!is ready)))(?:\.venv/bin/)?(.*)", flags=re.MULTILINE)
"""A command in what a terminal shows."""
PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+\s)*(?:thumbwheel|make|python|pip|docker|helm|kubectl|sudo|systemctl|journalctl|systemd-analyze"
    r"|promtool|hadolint|open-webui|nvidia-smi|curl|redis-cli)\s"
)

START = "thumbwheel up --set model.path=/models/mine"
TURN = ("thumbwheel simulate --taste brief", "thumbwheel simulate --taste brief --noise 0.1 --ratings 96")
"""What the thumbwheel here is started by, and what starts its cycle."""
STAYS = ("thumbwheel up", "thumbwheel serve", "thumbwheel learn", "make run")
"""Whatever else stays in the foreground only tells its configuration here; that it starts is tests/cli/test_up.py's."""
SHORT = {"thumbwheel promote", "thumbwheel import", "thumbwheel erase", "thumbwheel keys revoke"}
"""Beginnings of commands that stand elsewhere in full."""
NOT_HERE = {
    "make test": "this is one of its tests",
    "make demo": "minutes with the real model; with a tiny one: tests/cli/test_demo.py",
    "make docs": "writes into the checkout; what it writes: tests/cli/test_references.py",
    "thumbwheel simulate --taste brief --ratings 144": "recorded by tests/pictures with the real model",
    "pip install": "another environment than this; the client's in one of its own: tests/client/test_distribution.py",
    "python -m bench.": "measures for minutes or hours",
    "python examples/cartpole.py": "half a minute: tests/examples/test_cartpole.py",
    "docker": "a container engine; what it is given: tests/deploy/test_compose.py, tests/deploy/test_image.py",
    "ACCELERATOR=cuda docker": "the same, and a GPU",
    "kubectl": "a cluster",
    "helm": "a cluster; the chart: tests/deploy/test_helm.py",
    "sudo": "root; the units: tests/deploy/test_systemd.py",
    "systemctl": "systemd as the first process",
    "journalctl": "systemd as the first process",
    "systemd-analyze": "a whole run of its own: tests/deploy/test_systemd.py",
    "promtool": "a whole run of its own: tests/deploy/test_monitoring.py",
    "nvidia-smi": "a GPU",
    "open-webui": "gigabytes of another project; what it exports: tests/cli/test_import.py",
}
"""Beginnings of commands that are not run here, and why: what they need, or where they are run."""
ENDS: dict[str, tuple[int, str]] = {"thumbwheel unfreeze": (1, "the learner is not frozen")}
"""Exit code and words of what has nothing to do here, and says so."""
SAYS = {
    "thumbwheel chat": r"^— (base|v1\.\S+)\nrated$",
    "thumbwheel versions": r"^● +(base|v1\.\S+) +live",
    "thumbwheel promote": r"^v1\.\S+ is live",
    "thumbwheel rollback": r"^base is live again, v1\.\S+ was taken back",
    "thumbwheel report": r"/data/reports/cycle-1\.html$",
    "thumbwheel doctor": r"^all is well$",
    "thumbwheel import": r"^[1-9]\d* votes (would be )?kept, \d+ known already, 0 refused$",
    "thumbwheel erase": r" turns and \d+ votes of '\S+' are removed$",
    "thumbwheel keys add": r"^tw_[\w-]+$",
    "thumbwheel keys list": r"^[0-9a-f]{12} +",
    "thumbwheel keys revoke": r"is revoked$",
    **dict.fromkeys(STAYS, r"^\[server\]$"),
}
"""What a command prints, by its words."""

START_SECONDS, CYCLE_SECONDS, COMMAND_SECONDS = 150, 240, 120


def commands(text: str) -> Iterator[str]:
    """In their order, without comments and line breaks."""
    for language, block, span in PIECES.findall(text):
        if language == "sh":
            lines = [re.sub(r"\s+#.*", "", line) for line in block.replace("\\\n", "").splitlines()]
        elif block:
            lines = [line.partition("  ")[0] for line in PROMPT.findall(block)]
        else:
            lines = [span] if PROGRAM.match(span) else []
        yield from (" ".join(line.split()) for line in lines if line.strip())


def reason(command: str) -> str:
    """The beginning by which NOT_HERE has it, or nothing."""
    return next((beginning for beginning in NOT_HERE if command.startswith(beginning)), "")


def on_the_host(command: str) -> str:
    """What Compose runs in a container of an installed thumbwheel can be run beside one."""
    return command.removeprefix("docker compose -f deploy/compose.yaml exec server ")


def first_seen() -> dict[str, str]:
    """Every command, and the first document that has it."""
    found: dict[str, str] = {}
    for name, text in TEXTS.items():
        for command in commands(text):
            found.setdefault(on_the_host(command), name)
    return found


DOCUMENTS = first_seen()
RUN = [command for command in DOCUMENTS if command not in SHORT and not reason(command)]


# One cycle, of all that the simulated raters say: what is exported and imported again makes fewer votes.
SETTINGS = dict(setting.split("=") for setting in world.SETTINGS) | {
    "learner.min_votes": "192", "learner.lease": "10", "server.drain": "1", "server.grpc_port": "0",
    "server.admin_port": "0", "server.http_port": "0", "server.web_port": "0", "learner.http_port": "0",
}  # fmt: skip


@dataclass
class Home:
    """A folder in which somebody uses thumbwheel, with the words that are others here than in the documents."""

    folder: Path
    environment: dict[str, str]
    stand_ins: dict[str, str]

    @property
    def here(self) -> Instance:
        found = instance.find(self.folder / "data")
        assert found is not None, (self.folder / "up.log").read_text(encoding="utf-8")
        return found

    def worded(self, command: str) -> str:
        """As it is run here."""
        for documents, ours in self.stand_ins.items():
            command = command.replace(documents, ours)
        # `make` is asked for what it would run, as that would set up an environment first.
        would = rf'eval "$(make -f {ROOT}/Makefile -n \1 | tail -n 1)"'
        stays = any(word in command for word in STAYS)
        command = re.sub(r"\bmake (run.*)", would, command)
        return f"{command} --dry-run" if stays and "--dry-run" not in command else command

    async def type(self, command: str) -> str:
        """Runs it as a person's shell would; returns what it prints, and says what is wrong if it ends wrongly."""
        process = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", self.worded(command), cwd=self.folder, env=self.environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        typed = b"y\n" if " erase " in command else b"What is the capital of France?\n+\n/quit\n"
        out, err = (part.decode() for part in await asyncio.wait_for(process.communicate(typed), COMMAND_SECONDS))
        code, words = ENDS.get(command, (0, ""))
        assert (process.returncode, "Traceback" in err) == (code, False), f"{command}\n{out}{err}"
        assert words in err
        return out


@pytest.fixture(scope="module")
async def home(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """A thumbwheel that has turned once."""
    folder = tmp_path_factory.mktemp("home")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "thumbwheel").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m cli.main "$@"\n', encoding="utf-8")
    (programs / "thumbwheel").chmod(0o755)
    (folder / "feedback.json").write_text(json.dumps([openwebui_feedback()]), encoding="utf-8")
    # Not what an outer `make test ARGS=...` or a person's own thumbwheel has set.
    outer = re.compile(r"REDIS_URL|ARGS|M\w*FLAGS|MAKE\w*|THUMBWHEEL_\w+")
    environment = {name: value for name, value in os.environ.items() if not outer.fullmatch(name)}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "COLUMNS": "160"}
    environment |= {f"THUMBWHEEL_{key.replace('.', '__').upper()}": value for key, value in SETTINGS.items()}
    environment["THUMBWHEEL_MODEL__PATH"] = str(tiny_model)
    stand_ins = {"/models/mine": str(tiny_model), "/models/my-chat-model": str(tiny_model)}
    home = Home(folder, environment, stand_ins)
    with (folder / "up.log").open("wb") as log:
        up = await asyncio.create_subprocess_exec(
            "bash", "-c", f"exec {START.replace('/models/mine', str(tiny_model))}",
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await eventually(lambda: up.returncode is not None or instance.find(folder / "data"), START_SECONDS)
        stand_ins |= {
            "127.0.0.1:8080": home.here.web,
            "redis://redis.example:6379/0": home.here.redis_url,
            "redis://host:6379": home.here.redis_url,
            "/var/lib/thumbwheel": "elsewhere",
            " DIR": " data",
            "--user NAME": "--user rater-1",
            "0123456789ab": "$(thumbwheel keys list | grep -Eo -m1 '^[0-9a-f]{12}')",
        }
        for command in TURN:
            assert (await home.type(command)).startswith("96 ratings for the taste brief")
        # The last that a cycle does.
        await eventually((folder / "data" / "reports" / "cycle-1.html").is_file, CYCLE_SECONDS)
        stand_ins["NAME"] = live(home)
        await home.type("(umask 077; thumbwheel keys add ada --scope chat --scope rate > ~/.thumbwheel.key)")
        yield home
    finally:
        if up.returncode is None:
            up.terminate()
        await up.wait()


def live(home: Home) -> str:
    """The version that answers."""
    with urllib.request.urlopen(f"http://{home.here.web}/v1/wheel", timeout=10) as reply:
        name: str = json.load(reply)["live"]
    return name


def openwebui_feedback() -> dict[str, Any]:
    """One rating as Open WebUI exports it."""
    said = [("a", None, "user", "Name a fruit."), ("b", "a", "assistant", "A plum.")]
    messages = {
        name: {"id": name, "parentId": parent, "role": role, "content": content, "timestamp": 1_700_000_000}
        for name, parent, role, content in said
    }
    return {
        "id": "one", "user_id": "5c1f", "version": 0, "type": "rating",
        "data": {"model_id": "thumbwheel", "rating": 1, "reason": None, "comment": ""},
        "meta": {"arena": False, "chat_id": "chat", "message_id": "b", "model_id": "thumbwheel"},
        "snapshot": {"chat": {"id": "chat", "chat": {"history": {"messages": messages, "currentId": "b"}}}},
        "created_at": 1_700_000_150, "updated_at": 1_700_000_200,
    }  # fmt: skip


@pytest.mark.parametrize("document", sorted({DOCUMENTS[command] for command in RUN}))
async def test_whoever_types_what_it_says_gets_there(document: str, home: Home, run_server: Any) -> None:
    if document == "deploy.md" and shutil.which("openssl") is None:
        pytest.skip("openssl is not on PATH")
    async with AsyncExitStack() as stack:
        for command in RUN:
            if DOCUMENTS[command] != document or command in (START, *TURN):
                continue
            if "localhost:50051" in command:  # a server on the network, with the certificate made just before
                door = await stack.enter_async_context(run_server(on_the_network(home), ScriptedEngine()))
                home.stand_ins["localhost:50051"] = door.addresses.grpc
            if command.startswith("export "):
                name, _, value = home.worded(command).removeprefix("export ").partition("=")
                home.environment[name] = value
                stack.callback(home.environment.pop, name)
                continue
            said = await home.type(command)
            for name, words in SAYS.items():
                if name in command and ">" not in command:
                    assert re.search(words, said, flags=re.MULTILINE), f"{command}\n{said}"


def on_the_network(home: Home) -> config.Config:
    """Of a second server on the same store, with the certificate that docs/deploy.md makes."""
    tls = home.folder / "deploy" / "tls"
    sets = [
        f"data_dir={home.folder / 'data'}", f"redis.url={home.here.redis_url}", "security.auth=keys",
        f"security.tls_certificate={tls / 'tls.crt'}", f"security.tls_key={tls / 'tls.key'}",
    ]  # fmt: skip
    return config.load(Path(os.devnull), sets, environ=home.environment)


def test_what_is_left_out_is_in_the_documents_and_its_tests_are_there() -> None:
    left_out = {reason(command) for command in DOCUMENTS}
    assert NOT_HERE.keys() == left_out - {""}
    for words in NOT_HERE.values():
        for file in re.findall(r"tests/\S+\.py", words):
            assert (ROOT / file).is_file(), file


def test_what_is_run_otherwise_is_in_the_documents() -> None:
    assert {START, *TURN, *ENDS} <= set(RUN)
    assert set(DOCUMENTS) >= SHORT
    for beginning in (*SHORT, *STAYS, *SAYS):
        assert any(command.startswith(beginning) for command in RUN), beginning


def test_commands_are_found_wherever_they_stand() -> None:
    text = (
        "```sh\nmake a \\\n  b  # why\nx\n```\n```\n$ .venv/bin/thumbwheel chat\nsaid\n  thumbwheel versions  all\n"
        "thumbwheel is ready\n$ make d\n```\n`A=b\nmake c`, `make` and `made of`"
    )
    assert list(commands(text)) == ["make a b", "x", "thumbwheel chat", "thumbwheel versions", "make d", "A=b make c"]
