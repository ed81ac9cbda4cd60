"""A real Prometheus with what deploy/ tells it, looking every second."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import monitoring, tools
from tests.processes import eventually, free_port


@dataclass(frozen=True)
class Prometheus:
    """One that runs, by its HTTP API."""

    address: str

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expr: str) -> list[float]:
        """The values of an instant query, NaN left out."""
        found = self.get("/api/v1/query", query=expr)
        values = [float(each["value"][1]) for each in found["result"]]
        return [value for value in values if not math.isnan(value)]

    def series(self, expr: str, start: float, end: float, step: float) -> list[tuple[dict[str, str], list[list[Any]]]]:
        """Labels, and [time, figure] of each series of a range query; times are seconds."""
        found = self.get("/api/v1/query_range", query=expr, start=str(start), end=str(end), step=str(step))
        return [(each["metric"], each["values"]) for each in found["result"]]

    def targets(self) -> dict[str, tuple[str, str]]:
        """Health and last error by job."""
        found = self.get("/api/v1/targets")["activeTargets"]
        return {each["labels"]["job"]: (each["health"], each["lastError"]) for each in found}

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@asynccontextmanager
async def prometheus(folder: Path, config: dict[str, Any]) -> AsyncIterator[Prometheus]:
    """Debian's Prometheus with this configuration, looking every second."""
    binary = tools.prometheus()
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(monitoring.PROMETHEUS / file) for file in config["rule_files"]]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary, f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={address}", "--log.level=warn",
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        running = Prometheus(address)

        async def look() -> bool:
            assert process.returncode is None, (folder / "prometheus.log").read_text()
            return await asyncio.to_thread(running.ready)

        await eventually(look, 60)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def shipped() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((monitoring.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    return config


def plain(servers: list[str], learners: list[str]) -> dict[str, Any]:
    """The shipped configuration for addresses (host:port) that let everybody in."""
    config, targets = shipped(), {"thumbwheel-server": servers, "thumbwheel-learner": learners}
    config["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": targets[job["job_name"]]}]}
        for job in config["scrape_configs"]
    ]
    return config
