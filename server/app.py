"""The serving half, put together.

serve:  checks that cost nothing ─► store ─► engine ─► versions ─► gRPC and HTTP ─► ready
        ... until stop, or until a part that must not end has ended ...
        not ready ─► no new calls ─► running answers end ─► records ─► engine ─► store
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY
from starlette.routing import BaseRoute

from server import metrics
from server.access import Access, KeyAccess, OpenAccess
from server.admission import Admission
from server.calls import Calls
from server.chat import ChatService
from server.engine import Engine
from server.feedback import FeedbackService
from server.health import Health
from server.http_app import application
from server.http_boundary import HttpBoundary
from server.http_chat import HttpChat
from server.http_door import HttpDoor
from server.http_feedback import HttpFeedback
from server.http_models import HttpModels
from server.http_page import page
from server.http_wheel import HttpWheel
from server.identity import Identity, rater_secret
from server.imports import ImportService
from server.intake import Intake
from server.limits import Budgets
from server.models import ModelService
from server.privacy import PrivacyService, forget_with
from server.question import Questions
from server.releases import Releases
from server.rollout import RolloutService
from server.rpc_errors import Boundary
from server.tls import server_credentials
from server.turns import Turns
from server.versions import Versions
from server.votes import Votes
from thumbwheel import tracing
from thumbwheel.config import Config
from thumbwheel.config import Server as ServerSettings
from thumbwheel.credentials import scrapers
from thumbwheel.erasure import Erasure
from thumbwheel.errors import EngineDead, SetupError
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.metrics_http import MetricsHttp
from thumbwheel.perimeter import CertificateFiles, require_closed
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import (
    chat_pb2_grpc,
    feedback_pb2_grpc,
    import_pb2_grpc,
    models_pb2_grpc,
    privacy_pb2_grpc,
    rollout_pb2_grpc,
)
from thumbwheel_client.v1.record_pb2 import SCOPE_ADMIN, SCOPE_CHAT, SCOPE_RATE

log = logging.getLogger("thumbwheel.server")

PUBLIC_SERVICES = ("thumbwheel.v1.ChatService", "thumbwheel.v1.FeedbackService")
ADMIN_SERVICES = (
    "thumbwheel.v1.ModelService",
    "thumbwheel.v1.RolloutService",
    "thumbwheel.v1.PrivacyService",
    "thumbwheel.v1.ImportService",
)
SERVICES = PUBLIC_SERVICES + ADMIN_SERVICES

OPTIONS = [
    ("grpc.so_reuseport", 0),  # else a second server on the port would silently take half of the calls
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.keepalive_time_ms", 60_000),  # finds callers whose machine is gone
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 5 * 60_000),
]

SHORT_CALLS = 64
"""Streams of a connection for calls that take no place of the engine, such as votes."""
LINGER = 0.2
"""Seconds in which callers whose answers have just ended learn that there are no more. Who comes while grpc closes its
listener is told CANCELLED, which nobody takes for a reason to go elsewhere."""
LAST_WORDS = 0.5
"""Seconds for the final bytes of calls that have ended, before connections are cut."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens, as host:port."""

    grpc: str
    admin: str
    http: str
    web: str


StartEngine = Callable[[Config], Awaitable[Engine]]


async def serve(
    config: Config,
    stop: asyncio.Event | None = None,
    on_ready: Callable[[Addresses], None] | None = None,
    start_engine: StartEngine | None = None,
) -> None:
    """Serves until `stop` is set, then drains.

    Args:
        stop: None means SIGTERM and SIGINT.
        on_ready: called once, when calls are answered.
        start_engine: None means vLLM.

    Raises:
        SetupError: it cannot start; nothing is left running.
        EngineDead: the engine died under it; the process should be started anew.
    """
    identity = _check_setup(config)
    signals = _Signals() if stop is None else None
    async with AsyncExitStack() as stack:
        store = await Store.open(_redis_url(config), config.redis.namespace, config.redis.password_file)
        stack.push_async_callback(store.close)
        await _report_durability(store)
        # Before gRPC and its threads: on a CPU the engine is a fork of this process.
        engine = await (start_engine or _start_vllm)(config)
        stack.push_async_callback(engine.close)
        tracing.configure(config.tracing, "server")
        stack.push_async_callback(asyncio.to_thread, tracing.close)
        server = Server(config, store, engine, identity)
        addresses = await server.start(stack)
        # What was loaded to start stays: collections need not walk through torch and vLLM in the middle of calls.
        gc.collect()
        gc.freeze()
        log.info("ready", extra=dataclasses.asdict(addresses) | {"version": server.versions.live})
        if signals is not None:
            stop = signals.ready()
        if on_ready is not None:
            on_ready(addresses)
        assert stop is not None
        await server.run(stop)


class Server:
    """The parts of one server and the order in which they start and stop."""

    def __init__(self, config: Config, store: Store, engine: Engine, identity: Identity) -> None:
        security = config.security
        access: Access = OpenAccess(identity) if security.auth == "off" else KeyAccess(store, identity, security)
        registry = Registry(store)
        self._config = config
        self._store = store
        self._engine = engine
        self._turn_log = TurnLog(store, config.turn_log)
        self._erasure = Erasure(store)
        self.versions = Versions(engine, registry, config)
        self._health = Health(SERVICES)
        self._calls = Calls()
        boundary = Boundary(config.server.default_deadline, access, self._calls)
        budgets = Budgets(store, config.server.default_deadline)
        admission = Admission(config.server)
        self._turns = Turns(engine, self.versions, admission, budgets, self._turn_log)
        questions = Questions(engine, config.server)
        releases = Releases(registry, self.versions)
        self._models = ModelService(registry, releases)
        kept = FeedbackLog(store, config.feedback)
        votes = Votes(kept, self._turns, budgets, config.feedback)
        options = [*OPTIONS, ("grpc.max_concurrent_streams", _streams(config.server))]
        self._public = aio.server(interceptors=[boundary], options=options)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(ChatService(questions, self._turns), self._public)
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(
            FeedbackService(votes, kept, self._turn_log, budgets), self._public
        )
        self._admin = aio.server(interceptors=[boundary], options=options)
        models_pb2_grpc.add_ModelServiceServicer_to_server(self._models, self._admin)
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(
            RolloutService(engine, self.versions, admission, config.server), self._admin
        )
        privacy_pb2_grpc.add_PrivacyServiceServicer_to_server(PrivacyService(self._erasure, identity), self._admin)
        import_pb2_grpc.add_ImportServiceServicer_to_server(
            ImportService(Intake(engine, identity, config), self._turn_log, kept, self._erasure, budgets), self._admin
        )
        models = HttpModels(registry, self.versions, config.model.path)
        self._web = self._door(
            HttpBoundary(config.server.default_deadline, access, self._calls),
            HttpChat(questions, self._turns, engine, models),
            models,
            HttpFeedback(votes),
            HttpWheel(store, registry, releases, kept),
        )
        for grpc_server, services in ((self._public, PUBLIC_SERVICES), (self._admin, ADMIN_SERVICES)):
            health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, grpc_server)
            if config.server.reflection and security.auth == "off":
                names = (*services, "grpc.health.v1.Health", reflection.SERVICE_NAME)
                reflection.enable_server_reflection(names, grpc_server)

    def _door(
        self, boundary: HttpBoundary, chat: HttpChat, models: HttpModels, feedback: HttpFeedback, wheel: HttpWheel
    ) -> HttpDoor:
        """The page, and what it and OpenAI's clients call. Who may chat may also see what there is to chat with."""
        routes: list[BaseRoute] = [
            boundary.route("POST", "/v1/chat/completions", SCOPE_CHAT, chat.complete),
            boundary.route("GET", "/v1/models", SCOPE_CHAT, models.list),
            boundary.route("GET", "/v1/models/{model:path}", SCOPE_CHAT, models.get),
            boundary.route("POST", "/v1/feedback", SCOPE_RATE, feedback.rate),
            boundary.route("DELETE", "/v1/feedback", SCOPE_RATE, feedback.retract),
            *page(),
        ]
        if self._config.security.auth == "off" or self._config.security.web_admin:
            routes += [
                boundary.route("GET", "/v1/wheel", SCOPE_ADMIN, wheel.show),
                boundary.route("POST", "/v1/models/{model}/promote", SCOPE_ADMIN, wheel.promote),
                boundary.route("POST", "/v1/models/{model}/rollback", SCOPE_ADMIN, wheel.roll_back),
            ]
        app = application(routes, everybody=self._config.security.auth != "off")
        certificate = CertificateFiles.of(self._config.security, mutual=True)
        return HttpDoor(app, certificate, self._config.server.default_deadline)

    async def start(self, stack: AsyncExitStack) -> Addresses:
        """Loads the live version and listens.

        Raises:
            SetupError: a port is taken.
        """
        host = self._config.server.host
        collector = metrics.StoreState(self._store, self._turn_log)
        REGISTRY.register(collector)
        stack.callback(REGISTRY.unregister, collector)
        http = MetricsHttp(
            host,
            self._config.server.http_port,
            alive=lambda: self._health.alive,
            ready=lambda: self._health.ready,
            certificate=CertificateFiles.of(self._config.security),
            authorize=scrapers(self._store, self._config.security),
        )
        stack.enter_context(http)
        await self._health.drain()
        await self.versions.start()
        ports = [
            await self._listen(stack, server, _join(host, port))
            for server, port in (
                (self._public, self._config.server.grpc_port),
                (self._admin, self._config.server.admin_port),
            )
        ]
        stack.push_async_callback(self._web.close, LAST_WORDS)
        web = await self._web.open(host, self._config.server.web_port)
        await self._health.serve()
        return Addresses(*(_join(host, port) for port in (*ports, http.port, web)))

    async def _listen(self, stack: AsyncExitStack, server: aio.Server, address: str) -> int:
        """Returns the port.

        Raises:
            SetupError: it is taken.
        """
        try:
            certificate = CertificateFiles.of(self._config.security)
            if certificate is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, server_credentials(certificate))
        except RuntimeError as error:
            raise SetupError(f"cannot listen on {address}: {error}") from error
        await server.start()
        stack.push_async_callback(server.stop, None)
        return port

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` or until a background task has failed, then drains; raises what failed."""
        background = [
            asyncio.create_task(self.versions.follow(), name="follow-versions"),
            asyncio.create_task(self._turn_log.run(), name="turn-log"),
            asyncio.create_task(self._health.watch(self._engine), name="watch-engine"),
            asyncio.create_task(forget_with(self._erasure, self._engine), name="forget"),
        ]
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait((stopped, *background), return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                log.error("part_failed", exc_info=task.exception(), extra={"part": task.get_name()})
            await self._drain()
        finally:
            for task in (stopped, *background):
                task.cancel()
            results = await asyncio.gather(*background, return_exceptions=True)
        await self._flush()
        if any(isinstance(result, EngineDead) for result in results):
            await self.versions.engine_died()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _drain(self) -> None:
        log.info("draining", extra={"seconds": self._config.server.drain})
        await self._health.drain()
        self._models.stop_watches()
        self._calls.close()
        if self._calls.busy:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.server.drain):
                    await self._calls.idle()
            await asyncio.sleep(LINGER)
        # Rollouts and health watches end here.
        await asyncio.gather(self._public.stop(LAST_WORDS), self._admin.stop(LAST_WORDS), self._web.close(LAST_WORDS))
        await self._calls.gone()
        await self._turns.settle()
        log.info("drained")

    async def _flush(self) -> None:
        """A last try for answers that wait for the store; only now, because `TurnLog.run` must not flush beside it."""
        if not await self._turn_log.flush():
            log.error("answers_not_logged", extra={"answers": self._turn_log.pending})


class _Signals:
    """SIGTERM and SIGINT. Before `ready` they end the process where it stands: nothing has been promised to anybody,
    and an engine that is starting listens to nobody. Its processes end with this one."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._ready = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def ready(self) -> asyncio.Event:
        """From now on a signal sets the event."""
        self._ready = True
        return self._stop

    def _on_signal(self) -> None:
        if not self._ready:
            log.info("stopped_while_starting")
            logging.shutdown()
            os._exit(0)
        self._stop.set()


async def _start_vllm(config: Config) -> Engine:
    from server.engine_vllm import start_engine

    return await start_engine(config)


def _check_setup(config: Config) -> Identity:
    """Whatever can be known in milliseconds, before an engine takes half a minute to start."""
    server = config.server
    require_closed(server.host, config.security, "server.host")
    for port in (server.grpc_port, server.admin_port, server.http_port, server.web_port):
        _require_free(server.host, port)
    CertificateFiles.of(config.security)
    tracing.require(config.tracing)
    _redis_url(config)
    return Identity(rater_secret(config.data_dir / "secrets"))


def _redis_url(config: Config) -> str:
    url = config.redis.url or os.environ.get("REDIS_URL", "")
    if not url:
        raise SetupError(
            "redis.url and REDIS_URL are empty: name a store, or start with `thumbwheel up`, which brings one"
        )
    return url


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise SetupError(f"cannot listen on {_join(host, port)}: {error.strerror}") from error


def _streams(settings: ServerSettings) -> int:
    """How many calls a connection may have.

    At the limit gRPC does not only let callers wait: a stream that has ended counts until it is put away, and the next
    one is refused as UNAVAILABLE. So one caller, say a web server with all its users on a connection, must be able to
    fill the server; what is more would find no place anyway. Much more is a gift to floods of streams that are reset.
    """
    return settings.max_sequences + settings.max_queue + SHORT_CALLS


def _join(host: str, port: int) -> str:
    return f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"


async def _report_durability(store: Store) -> None:
    durability = await store.durability()
    metrics.STORE_DURABLE.set(durability.durable)
    if not durability.durable:
        facts: dict[str, Any] = {
            "fsync": durability.fsync, "persistent": durability.persistent, "evicts": durability.evicts,
        }  # fmt: skip
        log.warning("store_not_durable", extra={**facts, "meaning": "a vote's OK may be lost when the machine fails"})
