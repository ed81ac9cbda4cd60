"""`thumbwheel up` as a person runs it: real processes, real vLLM on a tiny model, real Redis, real kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import redis as redis_client

from cli import instance
from cli.instance import Instance
from tests.processes import free_port
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, record_pb2
from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceStub
from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceStub

START_SECONDS = 150
FREE_PORTS = (
    "server.grpc_port=0", "server.admin_port=0", "server.http_port=0", "server.web_port=0", "learner.http_port=0",
)  # fmt: skip
SMALL = ("server.threads=1", "learner.threads=1", "server.kv_cache_bytes=67108864", "server.max_sequences=4")


def command(name: str, data_dir: Path, *words: str, sets: tuple[str, ...] = FREE_PORTS) -> list[str]:
    options = [word for item in (*sets, *SMALL) for word in ("--set", item)]
    return [sys.executable, "-P", "-m", "cli.main", name, "--data-dir", str(data_dir), *options, *words]


def environment(**more: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "REDIS_URL"} | more


def refused(*words: str, **more: str) -> str:
    """What a command that must not start says."""
    shown = subprocess.run(words, capture_output=True, text=True, env=environment(**more), timeout=60, check=False)
    assert shown.returncode == 2, shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr
    assert shown.stdout == "", "nothing was started"
    return shown.stderr


def members(data_dir: Path) -> dict[int, str]:
    """Every living process, however it is related, that was told of this data directory: pid to command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                said = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(data_dir).encode() in said:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Looks again and again: other processes' state gives no sign."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Running:
    """One `thumbwheel up`."""

    def __init__(self, data_dir: Path, model: Path) -> None:
        self.data_dir = data_dir
        self._model = model
        self.output = data_dir.with_suffix(".out")

    def start(self) -> None:
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command("up", self.data_dir, "--set", f"model.path={self._model}"),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
        until(self._settled, START_SECONDS, "up did not get ready")
        assert self.process.poll() is None, self.said

    def _settled(self) -> bool:
        return self.process.poll() is not None or instance.find(self.data_dir) is not None

    @property
    def here(self) -> Instance:
        found = instance.find(self.data_dir)
        assert found is not None
        return found

    @property
    def said(self) -> str:
        return self.output.read_text()

    def pid(self, name: str) -> int:
        return next(pid for pid, line in members(self.data_dir).items() if name in line)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.here.grpc)

    def chat(self) -> chat_pb2.Answer:
        request = chat_pb2.ChatRequest(
            input=chat_pb2.ChatInput(
                messages=[record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")],
                sampling=record_pb2.Sampling(max_tokens=4),
            )
        )
        with self.channel() as channel:
            return ChatServiceStub(channel).Chat(request, timeout=60, wait_for_ready=True).answers[0]

    def rate(self, response_id: str) -> None:
        vote = feedback_pb2.RateRequest(
            response_id=response_id, idempotency_key=uuid.uuid4().hex, thumb=record_pb2.THUMB_UP
        )
        with self.channel() as channel:
            FeedbackServiceStub(channel).Rate(vote, timeout=30, wait_for_ready=True)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("up") / "data", tiny_model)
    running.start()
    yield running
    running.process.kill()
    running.process.wait()


def test_says_where_it_is_and_what_to_try(up: Running) -> None:
    until(lambda: "Ctrl-C stops" in up.said, 10, "up did not say all")  # it goes on talking after it is ready
    for words in ("thumbwheel is ready", up.here.grpc, f"http://{up.here.http}/metrics", "base", "thumbwheel chat"):
        assert words in up.said


def test_chats_and_logs(up: Running) -> None:
    answer = up.chat()
    assert answer.receipt.version == "base"
    assert answer.finish.log_status == chat_pb2.LOG_STATUS_LOGGED


def test_second_instance_on_the_same_directory(up: Running) -> None:
    assert f"(pid {up.process.pid})" in refused(*command("up", up.data_dir))


def test_taken_port(up: Running, tmp_path: Path) -> None:
    port = up.here.grpc.rpartition(":")[2]
    said = refused(*command("up", tmp_path / "data", sets=(f"server.grpc_port={port}",)))
    assert f"127.0.0.1:{port} (server.grpc_port)" in said


def test_learner_alone_finds_the_running_redis(up: Running, tiny_model: Path) -> None:
    said = refused(*command("learn", up.data_dir, "--once", "--set", f"model.path={tiny_model}"))
    assert "learner.min_votes" in said


def test_killed_server_is_started_again(up: Running) -> None:
    engines = {pid for pid in members(up.data_dir) if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()}
    assert engines
    os.kill(up.pid("-m server"), signal.SIGKILL)
    until(lambda: "server ended (killed by SIGKILL)" in up.said, 20, "it was not noticed")
    assert not engines & members(up.data_dir).keys(), "its engine went with it"
    until(lambda: "server is ready again" in up.said, START_SECONDS, "it was not started again")
    assert up.chat().finish.log_status == chat_pb2.LOG_STATUS_LOGGED


def test_killed_redis_is_started_again_and_has_lost_nothing(up: Running) -> None:
    rated = up.chat()
    os.kill(up.pid("-server unixsocket"), signal.SIGKILL)
    until(lambda: "redis is ready again" in up.said, 30, "it was not started again")
    up.rate(rated.receipt.response_id)


def test_stop_leaves_no_process_and_the_next_start_has_everything(up: Running) -> None:
    rated = up.chat()
    began = time.monotonic()
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(20) == 0
    assert time.monotonic() - began < 10
    assert members(up.data_dir) == {}
    assert instance.find(up.data_dir) is None

    up.start()
    up.rate(rated.receipt.response_id)


def test_kill_9_leaves_no_process(up: Running) -> None:
    assert len(members(up.data_dir)) >= 4
    up.process.kill()
    up.process.wait()
    until(lambda: not members(up.data_dir), 10, f"left behind: {members(up.data_dir)}")


def test_server_alone_on_a_named_redis(redis_url: str, tiny_model: Path, tmp_path: Path) -> None:
    port = free_port()
    words = command("serve", tmp_path / "data", sets=(f"server.grpc_port={port}", *FREE_PORTS[1:]))
    with subprocess.Popen([*words, "--set", f"model.path={tiny_model}"], env=environment(REDIS_URL=redis_url)) as serve:
        options = [("grpc.max_reconnect_backoff_ms", 500)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            grpc.channel_ready_future(channel).result(START_SECONDS)
        serve.send_signal(signal.SIGINT)
        assert serve.wait(20) == 0
    with redis_client.Redis.from_url(redis_url) as client:
        assert client.ping()
    assert members(tmp_path / "data") == {}


def test_named_redis_that_does_not_answer(tmp_path: Path) -> None:
    said = refused(*command("up", tmp_path / "data"), REDIS_URL="redis://127.0.0.1:1/0")
    assert "REDIS_URL names it" in said


def test_file_in_place_of_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    assert "cannot be written" in refused(*command("up", tmp_path / "data"))
    assert (tmp_path / "data").read_text() == "mine"


def test_server_that_the_learner_could_not_use(tmp_path: Path) -> None:
    said = refused(*command("up", tmp_path / "data", "--set", "server.weights=merged"))
    assert "thumbwheel serve" in said


def test_model_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    said = refused(*command("up", tmp_path / "data", "--set", f"model.path={tmp_path / 'model'}"))
    assert "no config.json" in said


def test_model_that_the_engine_refuses_ends_with_the_engines_own_words(tiny_model: Path, tmp_path: Path) -> None:
    """Not to be known before: it takes the engine. Nothing may stay behind."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace("LlamaForCausalLM", "NoSuchForCausalLM"))
    shown = subprocess.run(
        command("up", tmp_path / "data", "--set", f"model.path={model}"),
        capture_output=True, text=True, env=environment(), timeout=START_SECONDS, check=False,
    )  # fmt: skip
    assert shown.returncode == 2
    assert "server does not start (exit code 2)" in shown.stderr
    assert "NoSuchForCausalLM" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert members(tmp_path / "data") == {}
