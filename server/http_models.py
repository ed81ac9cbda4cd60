"""``/v1/models``: the live version under a name that stays, and every version by its own."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from server.access import caller
from server.http_boundary import Call
from server.http_errors import ModelNotFound
from server.versions import Reach, Versions
from thumbwheel.errors import NotFound
from thumbwheel.registry import BASE, Registry
from thumbwheel_client.v1.record_pb2 import VersionRecord, VersionState

LIVE: Final = "thumbwheel"
PAGE: Final = 1000


class HttpModels:
    """Which versions there are to ask.

    Args:
        model: `model.path`; clients may ask for the live version by its name too.
    """

    def __init__(self, registry: Registry, versions: Versions, model: str) -> None:
        self._registry = registry
        self._versions = versions
        path = PurePath(model)
        # A model from the hub lies in a folder OWNER/NAME.
        self._names = frozenset({"", LIVE, "default", model, path.name, "/".join(path.parts[-2:])} - {BASE})

    def version(self, model: str | None) -> str:
        """The version that a request's `model` names; "" for the live one."""
        return "" if model is None or model in self._names else model

    async def list(self, call: Call) -> ASGIApp:
        """All that this caller may ask, newest first after the live one."""
        reach, token, found = Reach.of(caller().scopes), "", list[VersionRecord]()
        while True:
            records, token = await self._registry.page(PAGE, token)
            found += [record for record in records if self._versions.answers(record, reach)]
            if not token:
                break
        live = await self._registry.live()
        data = [_model(LIVE, live), *(_model(record.name, record) for record in found)]
        return JSONResponse({"object": "list", "data": data})

    async def get(self, call: Call) -> ASGIApp:
        """One of them."""
        name = call.path["model"]
        version = self.version(name)
        try:
            record = await self._registry.get(version) if version else await self._registry.live()
        except NotFound as error:
            raise ModelNotFound(f"there is no model {name!r}") from error
        if version and not self._versions.answers(record, Reach.of(caller().scopes)):
            raise ModelNotFound(f"the model {name!r} answers nobody")
        return JSONResponse(_model(name, record))


def _model(name: str, record: VersionRecord) -> dict[str, Any]:
    state = VersionState.Name(record.state).removeprefix("VERSION_STATE_").lower()
    return {
        "id": name,
        "object": "model",
        "created": record.created_at.seconds,
        "owned_by": "thumbwheel",
        "thumbwheel": {"version": record.name, "state": state, "parent": record.parent},
    }
