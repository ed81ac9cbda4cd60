"""How a server starts, tells its health, and ends: without cutting an answer or losing a record."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from server.app import ADMIN_SERVICES, PUBLIC_SERVICES, SERVICES, serve
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel.errors import EngineDead, SetupError
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, models_pb2, record_pb2

MakeConfig = Callable[..., Config]
Until = Callable[..., Awaitable[None]]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def ask(max_tokens: int = 256) -> chat_pb2.ChatInput:
    return chat_pb2.ChatInput(
        messages=[record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")],
        sampling=record_pb2.Sampling(max_tokens=max_tokens),
    )


def at_store(config: Config, url: str) -> Config:
    return config.model_copy(update={"redis": config.redis.model_copy(update={"url": url})})


async def probe(address: str, path: str) -> int:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


async def no_engine(_: Config) -> Any:
    raise AssertionError("the engine must not be started")


async def test_an_address_on_the_network_is_refused_before_anything_starts(settings: MakeConfig) -> None:
    with pytest.raises(SetupError, match="without keys and TLS"):
        await serve(settings(host="0.0.0.0"), asyncio.Event(), start_engine=no_engine)


@pytest.mark.parametrize("which", ["grpc_port", "admin_port", "http_port", "web_port"])
async def test_a_taken_port_is_said_before_the_engine_starts(settings: MakeConfig, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"127.0.0.1:{port}"):
            await serve(settings(**{which: port}), asyncio.Event(), start_engine=no_engine)


async def test_a_second_server_on_the_port_is_refused(settings: MakeConfig, run_server: Any) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        port = int(server.addresses.grpc.rpartition(":")[2])
        with pytest.raises(SetupError, match=str(port)):
            await serve(settings(grpc_port=port), asyncio.Event(), start_engine=no_engine)


async def test_a_store_that_is_not_there_is_said_before_the_engine_starts(
    settings: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match="Redis"):
        await serve(at_store(settings(), f"unix://{tmp_path}/none.sock"), asyncio.Event(), start_engine=no_engine)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(SetupError, match="REDIS_URL"):
        await serve(at_store(settings(), ""), asyncio.Event(), start_engine=no_engine)


async def test_health_and_probes_say_that_it_serves(settings: MakeConfig, run_server: Any) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        health = health_pb2_grpc.HealthStub(server.channel)
        for service in ("", *SERVICES):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
        assert await probe(server.addresses.http, "/healthz") == 200
        assert await probe(server.addresses.http, "/readyz") == 200


@pytest.mark.parametrize("on", [True, False])
async def test_reflection_follows_its_setting(settings: MakeConfig, run_server: Any, on: bool) -> None:
    async with run_server(settings(reflection=on), ScriptedEngine()) as server:
        for channel, services in ((server.channel, PUBLIC_SERVICES), (server.admin, ADMIN_SERVICES)):
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            if on:
                names = {service.name for service in (await call.read()).list_services_response.service}
                assert names == {*services, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
            else:
                with pytest.raises(aio.AioRpcError) as refusal:
                    await call.read()
                assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_draining_finishes_answers_and_takes_no_new_ones(
    settings: MakeConfig, run_server: Any, until: Until
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 50)
    async with run_server(settings(drain=20), engine) as server:
        health = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        watch = server.models.WatchVersions(models_pb2.WatchVersionsRequest())
        assert (await watch.read()).live == "base"
        engine.resume.clear()
        call = server.chat.StreamChat(chat_pb2.StreamChatRequest(input=ask()))
        receipt = (await call.read()).receipt
        await until(lambda: bool(engine.running))

        server.stop.set()
        assert (await health.read()).status == NOT_SERVING
        assert await watch.read() is aio.EOF, "a watch has no end of its own and must not hold up the drain"
        assert await probe(server.addresses.http, "/readyz") == 503
        assert await probe(server.addresses.http, "/healthz") == 200
        async with aio.insecure_channel(server.addresses.grpc) as fresh:
            for channel in (server.channel, fresh):
                with pytest.raises(aio.AioRpcError) as refusal:
                    await chat_pb2_grpc.ChatServiceStub(channel).Chat(chat_pb2.ChatRequest(input=ask()), timeout=5)
                assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not server.task.done()
        engine.resume.set()
        text = ""
        while (event := await call.read()) is not aio.EOF:
            text += event.delta
            last = event
        assert text == "x" * 50
        assert last.finish.log_status == chat_pb2.LOG_STATUS_LOGGED
        assert (await call.code()) is grpc.StatusCode.OK
        async with asyncio.timeout(5):  # far less than `drain`: it ends when the last answer does
            await server.task
    assert receipt.version == "base"


async def test_an_answer_that_outlasts_the_drain_is_logged_as_cancelled(settings: MakeConfig, run_server: Any) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 200, token_seconds=0.01)  # it shall not be done before it is paused
    config = settings(drain=0.2)
    async with run_server(config, engine) as server:
        call = server.chat.StreamChat(chat_pb2.StreamChatRequest(input=ask()))
        receipt = (await call.read()).receipt
        assert (await call.read()).delta
        engine.resume.clear()
        server.stop.set()
        async with asyncio.timeout(5):
            await server.task
        assert not engine.running
    store = await Store.open(config.redis.url, config.redis.namespace)
    [response] = (await TurnLog(store, config.turn_log).get(receipt.turn_id)).responses.values()
    await store.close()
    assert response.finish_reason == record_pb2.FINISH_REASON_CANCELLED


async def test_answers_that_waited_for_the_store_are_written_before_the_end(
    settings: MakeConfig, run_server: Any, own_redis: Any
) -> None:
    config = at_store(settings(), own_redis.url)
    async with run_server(config, ScriptedEngine()) as server:
        own_redis.kill()
        answer = (await server.chat.Chat(chat_pb2.ChatRequest(input=ask()))).answers[0]
        assert answer.finish.log_status == chat_pb2.LOG_STATUS_PENDING
        own_redis.start()
        server.stop.set()
        await server.task
    store = await Store.open(own_redis.url, config.redis.namespace)
    assert (await TurnLog(store, config.turn_log).get(answer.receipt.turn_id)).responses[0].text == answer.text
    await store.close()


async def test_a_dead_engine_ends_the_server_with_its_error(settings: MakeConfig, run_server: Any) -> None:
    engine = ScriptedEngine()
    running = run_server(settings(), engine)
    server = await running.__aenter__()
    engine.die()
    with pytest.raises(aio.AioRpcError) as failure:
        await server.chat.Chat(chat_pb2.ChatRequest(input=ask()))
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    async with asyncio.timeout(10):
        await asyncio.wait((server.task,))
    with pytest.raises(EngineDead):
        await running.__aexit__(None, None, None)


async def test_a_store_that_may_lose_votes_is_said(
    settings: MakeConfig, run_server: Any, own_redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.command("CONFIG", "SET", "appendonly", "no")
    async with run_server(at_store(settings(), own_redis.url), ScriptedEngine()):
        assert REGISTRY.get_sample_value("thumbwheel_store_durable") == 0
    assert [record for record in caplog.records if record.getMessage() == "store_not_durable"]


@asynccontextmanager
async def process(config: Config, *extra: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """``python -m server`` with this configuration."""
    overrides = [
        f"data_dir={config.data_dir}",
        f"model.path={config.model.path}",
        f"redis.url={config.redis.url}",
        "server.grpc_port=0",
        "server.admin_port=0",
        "server.http_port=0",
        "server.web_port=0",
        "server.threads=2",
        "server.kv_cache_bytes=67108864",
        *extra,
    ]
    arguments = [word for item in overrides for word in ("--set", item)]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *arguments, stderr=asyncio.subprocess.PIPE, cwd=config.data_dir.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def read_event(child: asyncio.subprocess.Process, event: str) -> dict[str, str]:
    """The fields of the first line with this event."""
    assert child.stderr is not None
    lines = []
    async with asyncio.timeout(120):
        while line := (await child.stderr.readline()).decode():
            lines.append(line)
            if f"event={event} " in f"{line.strip()} ":
                return dict(pair.partition("=")[::2] for pair in line.split())
    raise AssertionError("".join(lines))


def descendants(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found |= {child} | descendants(child)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_real_process_drains_at_a_signal_and_leaves_nothing(
    settings: MakeConfig, number: signal.Signals, until: Until
) -> None:
    async with process(settings()) as child:
        ready = await read_event(child, "ready")
        family = descendants(child.pid)
        async with aio.insecure_channel(ready["grpc"]) as channel:
            call = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(chat_pb2.StreamChatRequest(input=ask(300)))
            assert (await call.read()).receipt.version == "base"
            assert (await call.read()).WhichOneof("event") == "delta"
            child.send_signal(number)
            tail = asyncio.create_task(read_event(child, "drained"))
            while (event := await call.read()) is not aio.EOF:
                last = event
            assert last.finish.usage.completion_tokens > 0
            assert last.finish.reason != record_pb2.FINISH_REASON_CANCELLED
            assert await call.code() is grpc.StatusCode.OK
        await tail
        async with asyncio.timeout(30):
            assert await child.wait() == 0
        await until(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()])


async def test_a_signal_while_it_starts_ends_it_at_once(settings: MakeConfig) -> None:
    config = settings()
    async with process(config, "log.level=debug") as child:
        async with asyncio.timeout(60):
            while not (config.data_dir / "secrets" / "rater.key").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        child.terminate()
        async with asyncio.timeout(5):
            code = await child.wait()
    assert code == 0


async def test_the_real_process_says_what_is_wrong_and_exits_with_2(settings: MakeConfig) -> None:
    async with process(settings(), "server.host=0.0.0.0") as child:
        _, complaint = await child.communicate()
        assert child.returncode == 2
        assert "without keys and TLS" in complaint.decode()
        assert "Traceback" not in complaint.decode()


async def test_one_connection_can_fill_the_server(settings: MakeConfig, run_server: Any) -> None:
    """As that of a web server with all its users: at gRPC's limit streams are refused, not kept waiting."""
    config = settings()
    many = config.server.max_sequences + config.server.max_queue
    async with run_server(config, ScriptedEngine(token_seconds=0.01)) as server:

        async def user() -> None:
            for _ in range(4):
                answer = (await server.chat.Chat(chat_pb2.ChatRequest(input=ask(4)))).answers[0].receipt.response_id
                vote = feedback_pb2.RateRequest(response_id=answer, idempotency_key=answer, thumb=record_pb2.THUMB_UP)
                await server.feedback.Rate(vote)

        await asyncio.gather(*(user() for _ in range(many)))
