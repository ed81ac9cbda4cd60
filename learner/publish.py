"""From weights in memory to a version that servers can load."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thumbwheel import artifacts, tracing
from thumbwheel.errors import Conflict
from thumbwheel.registry import Registry
from thumbwheel_client.v1 import record_pb2 as pb

log = logging.getLogger("thumbwheel.learner.publish")


@dataclass(frozen=True, slots=True)
class Publisher:
    """Writes versions below `root` and makes them known."""

    registry: Registry
    root: Path
    base_digest: str

    async def stage(
        self, save: Callable[[Path], None], batch: pb.BatchManifest, iteration: int, facts: Mapping[str, Any]
    ) -> pb.VersionRecord:
        """Publishes what `save` writes into a folder, for the learner's own rollouts.

        The name carries the digest of the weights: a learner that is killed and repeats the cycle makes the same
        weights under the same name, and never other weights under a used one.
        """
        with tempfile.TemporaryDirectory(prefix="thumbwheel-") as scratch:
            folder = Path(scratch)
            await asyncio.to_thread(save, folder)
            weights = (folder / "adapter_model.safetensors").read_bytes()
            name = f"{batch.cycle_id.replace('cycle-', 'v')}.{iteration}-{hashlib.sha256(weights).hexdigest()[:6]}"
            manifest = {
                "base_digest": self.base_digest,
                "parent": batch.parent,
                "cycle_id": batch.cycle_id,
                "batch_digest": batch.digest,
                "votes": len(batch.event_ids),
                "seed": batch.seed,
                **facts,
            }
            path, digest = await asyncio.to_thread(
                artifacts.write_version, self.root, name, lambda target: _copy(folder, target), manifest
            )
        record = pb.VersionRecord(
            name=name,
            state=pb.VERSION_STATE_TRAINING,
            parent=batch.parent,
            cycle_id=batch.cycle_id,
            path=path,
            manifest_sha256=digest,
            traceparent=tracing.traceparent(),
        )
        try:
            return await self.registry.register(record)
        except Conflict:
            known = await self.registry.get(name)
            if known.manifest_sha256 != digest:
                raise
            return known

    async def sweep(self, cycle_id: str) -> None:
        """Removes the folders of a committed cycle's versions that nobody will serve."""
        token = ""
        while True:
            records, token = await self.registry.page(200, token, include_training=True)
            for record in records:
                if record.cycle_id == cycle_id and record.state == pb.VERSION_STATE_TRAINING:
                    await asyncio.to_thread(shutil.rmtree, self.root / record.path, ignore_errors=True)
            if not token or any(record.cycle_id != cycle_id for record in records if record.adapter_id):
                return


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
