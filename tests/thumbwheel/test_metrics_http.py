"""The page for Prometheus and for probes."""

from __future__ import annotations

import http.client
import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from thumbwheel.errors import SetupError
from thumbwheel.metrics_http import MetricsHttp


def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_pages_follow_the_checks() -> None:
    registry = CollectorRegistry()
    Counter("things_total", "Things.", registry=registry).inc(3)
    state = {"alive": True, "ready": False}
    with MetricsHttp("127.0.0.1", 0, lambda: state["alive"], lambda: state["ready"], registry) as page:
        assert get(page.port, "/healthz")[0] == 200
        assert get(page.port, "/readyz")[0] == 503
        state.update(alive=False, ready=True)
        assert get(page.port, "/healthz")[0] == 503
        assert get(page.port, "/readyz")[0] == 200
        status, body = get(page.port, "/metrics")
        assert status == 200
        assert "things_total 3.0" in body
        assert get(page.port, "/metrics?name[]=other")[1].strip() == ""
        assert get(page.port, "/nothing")[0] == 404
        assert get(page.port, "/metrics", "POST")[0] == 405
    with pytest.raises(ConnectionRefusedError):
        get(page.port, "/healthz")


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.5",
    ],
)
def test_every_prometheus_reads_the_same_names(accept: str) -> None:
    """prometheus_client's OpenMetrics has `vllm_things_total`, which is no name that vLLM's dashboards know."""
    registry = CollectorRegistry()
    Counter("vllm:things_total", "Things.", registry=registry).inc(3)
    with MetricsHttp("127.0.0.1", 0, lambda: True, lambda: True, registry) as page:
        asked = urllib.request.Request(f"http://127.0.0.1:{page.port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(asked, timeout=10) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert "vllm:things_total 3.0\n" in reply.read().decode()


def test_a_silent_connection_holds_up_nobody() -> None:
    with (
        MetricsHttp("127.0.0.1", 0, lambda: True, lambda: True, CollectorRegistry()) as page,
        socket.create_connection(("127.0.0.1", page.port)),
    ):
        assert get(page.port, "/healthz") == (200, "ok\n")


def test_a_taken_port_is_a_setup_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"127.0.0.1:{port}"):
            MetricsHttp("127.0.0.1", port, lambda: True, lambda: True)
