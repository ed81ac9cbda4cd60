"""Whether this server can answer: for load balancers (grpc.health.v1), probes (HTTP) and the supervisor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from grpc_health.v1 import _async as health_async
from grpc_health.v1 import health_pb2

from server.engine import Engine
from thumbwheel.errors import EngineDead

log = logging.getLogger("thumbwheel.health")

INTERVAL = 2.0
"""Seconds between looks at the engine."""


class Health:
    """SERVING from `serve` on, NOT_SERVING from `drain` on or when the engine is dead. `alive` and `ready` may be read
    from any thread."""

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = health_async.HealthServicer()
        self.alive = True
        self.ready = False
        self._services = ("", *services)

    async def serve(self) -> None:
        await self._set(health_pb2.HealthCheckResponse.SERVING)
        self.ready = True

    async def drain(self) -> None:
        self.ready = False
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def watch(self, engine: Engine) -> None:
        """Looks at the engine until it is dead.

        Raises:
            EngineDead: nothing but a new process helps.
        """
        try:
            while True:
                await engine.check()
                await asyncio.sleep(INTERVAL)
        except EngineDead:
            self.alive = False
            await self.drain()
            raise

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in self._services:
            await self.servicer.set(service, status)
