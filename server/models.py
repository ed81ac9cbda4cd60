"""ModelService: versions, and who is live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from grpc import aio

from server.versions import Versions
from thumbwheel.errors import Conflict, InvalidInput, NotReady
from thumbwheel.registry import Registry
from thumbwheel_client.v1 import models_pb2, models_pb2_grpc, record_pb2

MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_REASON_CHARS = 2000
FOLLOW_SECONDS = 20.0
"""How long a call waits for this server to follow the pointer it has moved."""

if TYPE_CHECKING:  # generic only for the type checker
    Context = aio.ServicerContext[Any, Any]


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """Promote and Rollback answer once this server itself has moved; the others follow the registry."""

    def __init__(self, registry: Registry, versions: Versions) -> None:
        self._registry = registry
        self._versions = versions
        self._stopping = asyncio.Event()

    def stop_watches(self) -> None:
        """Ends the calls that would never end by themselves."""
        self._stopping.set()

    async def ListVersions(
        self, request: models_pb2.ListVersionsRequest, context: Context
    ) -> models_pb2.ListVersionsResponse:
        if request.page_size > MAX_PAGE:
            raise InvalidInput("page_size", f"{request.page_size}; at most {MAX_PAGE}")
        records, token = await self._registry.page(
            request.page_size or DEFAULT_PAGE, request.page_token, include_training=request.include_training
        )
        live = await self._registry.live()
        return models_pb2.ListVersionsResponse(versions=records, live=live.name, next_page_token=token)

    async def GetVersion(
        self, request: models_pb2.GetVersionRequest, context: Context
    ) -> models_pb2.GetVersionResponse:
        return models_pb2.GetVersionResponse(version=await self._registry.get(_name(request.name)))

    async def Promote(self, request: models_pb2.PromoteRequest, context: Context) -> models_pb2.PromoteResponse:
        _check_reason(request.reason)
        name = _name(request.name)
        # Verified and loaded first: what this server would refuse never becomes live, not even for a moment.
        async with self._versions.hold(name):
            live, previous = await self._registry.promote(name, request.reason)
            await self._followed(live)
        return models_pb2.PromoteResponse(live=live, previous=previous)

    async def Rollback(self, request: models_pb2.RollbackRequest, context: Context) -> models_pb2.RollbackResponse:
        _check_reason(request.reason)
        try:
            live, previous = await self._registry.roll_back(request.reason)
        except Conflict as error:  # another version went live in the same moment, and was not what the caller saw
            raise NotReady(str(error)) from error
        await self._followed(live)
        return models_pb2.RollbackResponse(live=live, previous=previous)

    async def WatchVersions(
        self, request: models_pb2.WatchVersionsRequest, context: Context
    ) -> AsyncGenerator[models_pb2.WatchVersionsResponse, None]:
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            async with aclosing(self._registry.changes()) as changes:
                while True:
                    change = asyncio.ensure_future(anext(changes))
                    try:
                        await asyncio.wait((change, stopping), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        if not change.done():
                            change.cancel()
                            await asyncio.gather(change, return_exceptions=True)
                    if change.cancelled():
                        return
                    record, live = change.result()
                    yield models_pb2.WatchVersionsResponse(version=record, live=live)
        finally:
            stopping.cancel()

    async def _followed(self, live: record_pb2.VersionRecord) -> None:
        try:
            await self._versions.wait_live(live.name, FOLLOW_SECONDS)
        except TimeoutError:
            raise NotReady(
                f"{live.name} is live in the registry, but this server did not follow within {FOLLOW_SECONDS:g} s:"
                " it still loads it, has refused it, or somebody moved the pointer again; WatchVersions tells"
            ) from None


def _name(name: str) -> str:
    if not 0 < len(name) <= 128:
        raise InvalidInput("name", "must be 1 to 128 characters")
    return name


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidInput("reason", f"{len(reason)} characters; at most {MAX_REASON_CHARS}")
