"""A real Prometheus looks at a real thumbwheel: it is let in, and every panel and rule finds what it asks for."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.engine_scripted import ScriptedEngine
from tests.certificates import Authority
from tests.deploy import monitoring
from tests.deploy.prometheus_process import plain, prometheus, shipped
from tests.faults.world import world
from tests.pictures import panels
from tests.processes import eventually
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials, scrapers
from thumbwheel.metrics_http import MetricsHttp
from thumbwheel.perimeter import CertificateFiles
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import SCOPE_METRICS

UNSEEN = {"thumbwheel_refused_adapters_total"}
"""Series that begin with the first thing that goes wrong."""


async def test_it_is_let_in_by_key_and_certificate(
    tmp_path: Path, settings: Callable[..., Config], run_server: Any, certificates: Authority
) -> None:
    certificate = certificates("server")
    security = {"auth": "keys", "tls_certificate": certificate.chain, "tls_key": certificate.key}
    config = Config.model_validate(settings().model_dump() | {"security": security})
    store = await Store.open(config.redis.url, config.redis.namespace)
    key, _ = await Credentials(store).make("prometheus", [SCOPE_METRICS])
    (tmp_path / "metrics.key").write_text(f"{key}\n")
    learner = MetricsHttp(
        "127.0.0.1",
        0,
        alive=lambda: True,
        ready=lambda: True,
        certificate=CertificateFiles.of(config.security),
        authorize=scrapers(store, config.security),
    )
    async with run_server(config, ScriptedEngine()) as server:
        here = {"server:9401": server.addresses.http, "learner:9402": f"127.0.0.1:{learner.port}"}
        scraping = shipped()
        for job in scraping["scrape_configs"]:
            assert job["authorization"] == {"credentials_file": "/keys/metrics.key"}
            assert job["tls_config"] == {"ca_file": "/tls/ca.crt", "server_name": "thumbwheel"}
            job["authorization"] = {"credentials_file": str(tmp_path / "metrics.key")}
            job["tls_config"] = {"ca_file": certificate.ca, "server_name": "localhost"}
            job["static_configs"] = [{"targets": [here[target]]} for target in job["static_configs"][0]["targets"]]
        stranger = {**scraping["scrape_configs"][0], "job_name": "stranger"}
        del stranger["authorization"]
        scraping["scrape_configs"].append(stranger)
        with learner:
            async with prometheus(tmp_path, scraping) as watcher:
                expected = {"thumbwheel-server": "up", "thumbwheel-learner": "up", "stranger": "down"}

                async def look() -> bool:
                    found = await asyncio.to_thread(watcher.targets)
                    return {job: health for job, (health, _) in found.items()} == expected

                await eventually(look, 30)
                assert "401" in watcher.targets()["stranger"][1]
    await store.close()


async def test_every_panel_shows_something(tmp_path: Path, tiny_model: Path) -> None:
    async with world(tmp_path, tiny_model) as here, here.people.about():
        scraping = plain(
            [f"127.0.0.1:{server.http_port}" for server in here.servers], [f"127.0.0.1:{here.learner.http_port}"]
        )
        async with prometheus(tmp_path, scraping) as watcher:

            async def learned() -> bool:
                return await here.cycles() > 0

            await eventually(learned, 180)
            lacking = {
                query.place: query.expr.replace("$__rate_interval", "30s") for query in monitoring.panel_queries()
            }
            names = {name for query in monitoring.rule_queries() for name in monitoring.metrics(query.expr)}
            lacking |= {name: f"count({name})" for name in names - UNSEEN}

            async def seen() -> bool:
                for place, expr in list(lacking.items()):
                    if await asyncio.to_thread(watcher.query, expr):
                        del lacking[place]
                return not lacking

            try:
                await eventually(seen, 60)
            except AssertionError:
                pytest.fail(f"nothing is shown by {lacking}")
            drawn = await asyncio.to_thread(panels.page, watcher, time.time() - 60)
            assert drawn.count("<section>") == len(panels.TITLES)
            curves = [re.findall(r'<path stroke="[^"]+" d="M', section) for section in drawn.split("<section>")[1:]]
            assert all(curves), "a panel has no curve"
            found = [rule for group in watcher.get("/api/v1/rules")["groups"] for rule in group["rules"]]
            assert len(found) == len(monitoring.rules())
            assert {rule["name"]: rule["lastError"] for rule in found if rule["health"] != "ok"} == {}
            assert [
                alert["labels"] for alert in watcher.get("/api/v1/alerts")["alerts"] if alert["state"] == "firing"
            ] == []
