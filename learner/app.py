"""The learner's process: one leader at a time watches the votes and turns the wheel.

waiting for votes ──min_votes──► cycle ──committed──► waiting
     ▲                              │
     ├────── backoff ◄── failed ────┤   (the batch stays frozen and is taken again)
     └── frozen ◄─── a wire tripped ┘   (until a person lets it go on)
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import torch
from transformers import AutoTokenizer

from learner import metrics
from learner.anchor import Anchor
from learner.canary import Judge
from learner.competence import Competence
from learner.cycle import Wheel
from learner.features import FeatureCache
from learner.policy import Policy
from learner.publish import Publisher
from learner.report_words import splitter
from learner.reporter import Reporter
from learner.rollouts import Rollouts
from learner.safety import Safety
from thumbwheel import artifacts, config, pulse, tracing
from thumbwheel.config import Config
from thumbwheel.credentials import scrapers
from thumbwheel.erasure import Erasure
from thumbwheel.errors import LearnerFrozen, LeaseLost, SetupError, StoreUnavailable, ThumbwheelError
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.freeze import Brake
from thumbwheel.lease import Lease
from thumbwheel.metrics_http import MetricsHttp
from thumbwheel.perimeter import CertificateFiles, reachable, require_closed
from thumbwheel.pulse import Pulse
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

log = logging.getLogger("thumbwheel.learner")

BACKOFF = 60.0
"""Longest wait, in seconds, before a broken-off cycle is tried again."""


async def run(settings: Config) -> None:
    """Learns until SIGTERM.

    `settings.model.path` is a prepared model folder and `settings.redis.url` is set.

    Raises:
        SetupError: store, model or port cannot be used.
    """
    async with _wheel(settings) as (wheel, store):
        await _forever(wheel, store)


async def run_once(settings: Config) -> pb.CycleRecord:
    """Runs one cycle.

    Raises:
        SetupError: as `run`; or there are too few votes, another learner leads, or a tripwire holds.
    """
    async with _wheel(settings) as (wheel, store):
        if await wheel.brake.frozen():
            raise SetupError("a tripwire has frozen the learner: `thumbwheel unfreeze` shows why, and lets it go on")
        waiting = await wheel.stream.waiting()
        if waiting < wheel.settings.min_votes:
            raise SetupError(
                f"{waiting} new votes, learner.min_votes is {wheel.settings.min_votes}: rate more answers first"
            )
        if (canary := await wheel.registry.canary()) is not None:
            raise SetupError(
                f"{canary.name} is on trial: promote it or roll it back first, or let the learner judge it"
            )
        if not await wheel.lease.acquire():
            raise SetupError("another learner leads: stop it first, or let it learn")
        async with _holding(wheel.lease), _heard(store, wheel.settings):
            try:
                return await wheel.turn()
            except LearnerFrozen as error:
                raise SetupError(str(error)) from error


@contextlib.asynccontextmanager
async def _wheel(settings: Config) -> AsyncIterator[tuple[Wheel, Store]]:
    _check_setup(settings)
    _yield_to_the_engine(settings)
    _stop_on_sigterm()
    async with contextlib.AsyncExitStack() as stack:
        tracing.configure(settings.tracing, "learner")
        stack.callback(tracing.close)
        store = await Store.open(settings.redis.url, settings.redis.namespace, settings.redis.password_file)
        stack.push_async_callback(store.close)
        built = threading.Event()
        host, port = settings.learner.http_host, settings.learner.http_port
        http = stack.enter_context(
            MetricsHttp(
                host,
                port,
                alive=lambda: True,
                ready=built.is_set,
                certificate=CertificateFiles.of(settings.security),
                authorize=scrapers(store, settings.security),
            )
        )
        rollouts = await stack.enter_async_context(Rollouts(_server(settings), settings.client))
        lease = Lease(store, f"{socket.gethostname()}:{os.getpid()}", settings.learner.lease)
        wheel = await asyncio.to_thread(_build, settings, store, lease, rollouts)
        if wheel.reporter:
            follower = asyncio.create_task(wheel.reporter.follow(wheel.erasure, settings.learner.poll))
            stack.callback(follower.cancel)
        built.set()
        metrics.stage("waiting")
        log.info("ready", extra={"http": f"{host}:{http.port}", "server": _server(settings)})
        yield wheel, store


def _check_setup(settings: Config) -> None:
    """
    Raises:
        SetupError: what would end a cycle in its middle, or open a door to everybody.
    """
    require_closed(settings.learner.http_host, settings.security, "learner.http_host")
    if settings.learner.algorithm in ("dpo", "kto") and importlib.util.find_spec("trl") is None:
        raise SetupError(
            f'learner.algorithm = "{settings.learner.algorithm}" needs TRL, which is not installed\n'
            "  pip install 'thumbwheel[direct]'"
        )
    if settings.security.auth != "off" and not settings.client.key_file:
        raise SetupError(
            "client.key_file is empty, and the server asks for keys: name a file with one that has the scope learner\n"
            "  thumbwheel keys add learner --scope learner > learner.key; chmod 600 learner.key"
        )


def _build(settings: Config, store: Store, lease: Lease, rollouts: Rollouts) -> Wheel:
    folder = settings.model.adapted
    tokenizer = AutoTokenizer.from_pretrained(settings.model.path)
    registry = Registry(store)
    turns, policy = TurnLog(store, settings.turn_log), Policy(folder, settings.learner.lora, settings.learner.seed)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def render(text: str) -> list[int]:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        return list(rendered["input_ids"])

    return Wheel(
        settings=settings.learner,
        release=settings.release,
        stream=VoteStream(store),
        turns=turns,
        feedback=FeedbackLog(store, settings.feedback),
        registry=registry,
        erasure=Erasure(store),
        brake=Brake(store),
        lease=lease,
        policy=policy,
        features=FeatureCache(),
        rollouts=rollouts,
        publisher=Publisher(registry, settings.artifact_root, artifacts.model_digest(folder)),
        competence=Competence(rollouts, render),
        safety=Safety(rollouts, render),
        anchor=Anchor(rollouts, render),
        encode=lambda text: [*tokenizer(text, add_special_tokens=False)["input_ids"], *end],
        reporter=Reporter(
            settings.report_root, settings.learner.reports.keep, registry, turns, policy, splitter(tokenizer)
        ),
    )


async def _forever(wheel: Wheel, store: Store) -> NoReturn:
    while True:
        try:
            if await wheel.lease.acquire():
                log.info("leading", extra={"token": wheel.lease.token})
                async with _holding(wheel.lease), _heard(store, wheel.settings):
                    await _lead(wheel)
        except (LeaseLost, StoreUnavailable) as error:
            log.warning("not_leading", extra={"reason": str(error)})
        metrics.leader.set(0)
        await asyncio.sleep(wheel.settings.poll)


async def _lead(wheel: Wheel) -> NoReturn:
    metrics.leader.set(1)
    judge = Judge(wheel.registry, wheel.stream, wheel.turns, wheel.feedback, wheel.release)
    failures = 0
    while True:
        waiting = await wheel.stream.waiting()
        metrics.votes_waiting.set(waiting)
        frozen = await wheel.brake.frozen()
        metrics.frozen([each.wire for each in frozen.tripped] if frozen else [])
        if frozen:
            metrics.stage("frozen")
            await asyncio.sleep(wheel.settings.poll)
            continue
        metrics.stage("waiting")
        # While a canary is on trial the votes wait: the next version starts from the one that stays.
        if await judge.look() or waiting < wheel.settings.min_votes:
            await asyncio.sleep(wheel.settings.poll)
            continue
        try:
            await wheel.turn()
            failures = 0
        except (LeaseLost, StoreUnavailable):
            raise
        except LearnerFrozen:
            continue  # what froze it is in the log; the mark is found above
        # The loop's boundary: whatever broke a cycle, the batch stays frozen and is retried.
        except Exception as error:
            failures += 1
            metrics.failures.inc()
            wait = min(BACKOFF, 2.0**failures)
            expected = isinstance(error, ThumbwheelError)
            log.error("cycle_failed", extra={"reason": str(error), "retry_in": wait}, exc_info=not expected)
            await asyncio.sleep(wait)
        finally:
            metrics.stage("waiting")


@contextlib.asynccontextmanager
async def _holding(lease: Lease) -> AsyncIterator[None]:
    """Renews the lease beside the body; a lost lease cancels the body, for its commit would be refused anyway."""
    body = asyncio.current_task()
    assert body is not None
    lost: list[BaseException] = []

    async def hold() -> None:
        try:
            await lease.hold()
        except (LeaseLost, StoreUnavailable) as error:
            lost.append(error)
            body.cancel()

    holder = asyncio.create_task(hold())
    try:
        yield
    except asyncio.CancelledError:
        if not lost:
            raise
        body.uncancel()
        raise lost[0] from None
    finally:
        holder.cancel()
        with contextlib.suppress(asyncio.CancelledError, StoreUnavailable, LeaseLost):
            await holder
            await lease.release()


@contextlib.asynccontextmanager
async def _heard(store: Store, settings: config.Learner) -> AsyncIterator[None]:
    """Lets others know what this learner, the leader, is doing."""

    async def live() -> None:
        while True:
            stage, since, progress = metrics.standing()
            with contextlib.suppress(StoreUnavailable):  # whoever looks sees that nothing is heard
                await pulse.beat(store, Pulse(stage, progress, since, settings.min_votes))
            await asyncio.sleep(pulse.BEAT_SECONDS)

    beating = asyncio.create_task(live())
    try:
        yield
    finally:
        beating.cancel()


def _server(settings: Config) -> str:
    return settings.learner.server or f"{reachable(settings.server.host)}:{settings.server.admin_port}"


def _yield_to_the_engine(settings: Config) -> None:
    """On a shared machine people's tokens come first."""
    if settings.learner.niceness:
        os.nice(settings.learner.niceness)
        # Where Linux schedules sessions as groups, a nice value counts only among the processes of its own session,
        # and the engine is in another: there it is the group that must stand back. Absent elsewhere.
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(settings.learner.niceness), encoding="utf-8")
    torch.set_num_threads(settings.learner.threads or os.cpu_count() or 1)


def _stop_on_sigterm() -> None:
    """Ends the process at once: every step of a cycle is safe to kill, and a forward pass cannot be cancelled."""

    def leave() -> None:
        log.info("stopped")
        tracing.close()
        logging.shutdown()
        os._exit(0)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, leave)
