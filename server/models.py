"""ModelService: versions, and who is live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from grpc import aio

from server.releases import Releases, check_name
from thumbwheel.errors import InvalidInput
from thumbwheel.registry import Registry
from thumbwheel_client.v1 import models_pb2, models_pb2_grpc

MAX_PAGE = 1000
DEFAULT_PAGE = 100

if TYPE_CHECKING:  # generic only for the type checker
    Context = aio.ServicerContext[Any, Any]


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """For operators and the learner."""

    def __init__(self, registry: Registry, releases: Releases) -> None:
        self._registry = registry
        self._releases = releases
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
        check_name(request.name)
        return models_pb2.GetVersionResponse(version=await self._registry.get(request.name))

    async def Promote(self, request: models_pb2.PromoteRequest, context: Context) -> models_pb2.PromoteResponse:
        live, previous = await self._releases.promote(request.name, request.reason)
        return models_pb2.PromoteResponse(live=live, previous=previous)

    async def Rollback(self, request: models_pb2.RollbackRequest, context: Context) -> models_pb2.RollbackResponse:
        live, previous = await self._releases.take_back(request.reason)
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
