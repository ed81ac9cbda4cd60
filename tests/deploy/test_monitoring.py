"""Rules, alerts and dashboards: that they are sound, and ask for what is exported."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, Metric

import learner.metrics
import server.metrics
from tests.deploy import monitoring, tools
from thumbwheel.config import Config

ROOT = Path(__file__).parents[2]
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    command = [tools.prometheus("promtool"), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def series(family: Metric) -> set[str]:
    return {family.name + suffix for suffix in SUFFIXES.get(family.type, ())}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of the series of server, learner, their Python and their vLLM."""
    assert learner.metrics.STAGES  # imported for its metrics
    state = server.metrics.StoreState(SimpleNamespace(failures=0), SimpleNamespace(corrupt=0, pending=0))  # type: ignore[arg-type]
    names = {name for family in (*REGISTRY.collect(), *state.collect()) for name in series(family)}
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations
    source = (Path(found.submodule_search_locations[0]) / "v1/metrics/loggers.py").read_text(encoding="utf-8")
    vllm = re.findall(r'name="(vllm:\w+)"', source)
    assert len(vllm) > 20
    return names | {name + suffix for name in vllm for suffix in ("", "_total", "_bucket")}


def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", "--syntax-only", monitoring.PROMETHEUS / "prometheus.yml")


def test_prometheus_takes_the_rules() -> None:
    said = promtool("check", "rules", *sorted((monitoring.PROMETHEUS / "rules").glob("*.yml")))
    assert f"{len(monitoring.alerts())} rules found" in said


def test_alerts_fire_when_they_should_and_not_when_they_should_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", monitoring.PROMETHEUS / "tests" / "alerts.yml")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases: dict[str, set[bool]] = defaultdict(set)
    text = (monitoring.PROMETHEUS / "tests" / "alerts.yml").read_text(encoding="utf-8")
    for test in yaml.safe_load(text)["tests"]:
        for case in test["promql_expr_test"]:
            for name in re.findall(r'^ALERTS\{alertname="(\w+)"', case["expr"]):
                cases[name].add(bool(case["exp_samples"]))
    assert cases == {name: {True, False} for name in monitoring.alerts()}


@pytest.mark.parametrize("query", monitoring.rule_queries() + monitoring.panel_queries(), ids=lambda query: query.place)
def test_what_is_asked_for_is_exported(query: monitoring.Query, exported: set[str]) -> None:
    recorded = {rule["record"] for rule in monitoring.rules() if "record" in rule}
    asked = monitoring.metrics(query.expr)
    assert asked - exported - recorded == set()
    assert asked or query.expr.startswith(("up{", "sum by (namespace) (up{"))


def test_names_that_no_longer_exist_are_noticed(exported: set[str]) -> None:
    assert monitoring.metrics('rate(thumbwheel_gone_total{job="thumbwheel-server"}[5m])') == {"thumbwheel_gone_total"}
    assert "thumbwheel_gone_total" not in exported
    assert "thumbwheel_votes_total" in exported
    assert "thumbwheel_store_errors_total" in exported
    assert "vllm:kv_cache_usage_perc" in exported


def test_what_is_recorded_is_used() -> None:
    asked = {
        name
        for query in monitoring.rule_queries() + monitoring.panel_queries()
        for name in monitoring.metrics(query.expr)
    }
    assert {rule["record"] for rule in monitoring.rules() if "record" in rule} <= asked


@pytest.mark.parametrize("name", monitoring.alerts())
def test_every_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    rule = monitoring.alerts()[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", (ROOT / file).read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None
    assert anchor == name.lower()
    assert f"**Means** ({rule['labels']['severity']})" in section[1]
    assert "**look**" in section[1].lower()
    assert "**do**" in section[1].lower()


def test_every_runbook_is_of_an_alert() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)", text, re.M) == list(monitoring.alerts())


def test_an_alert_knows_how_many_votes_start_a_cycle() -> None:
    assert f"votes_waiting) >= {Config().learner.min_votes}\n" in monitoring.alerts()["ThumbwheelVotesWaiting"]["expr"]


@pytest.mark.parametrize("name", monitoring.dashboards())
def test_a_dashboard_is_laid_out(name: str) -> None:
    dashboard: dict[str, Any] = monitoring.dashboards()[name]
    assert dashboard["uid"] == f"thumbwheel-{name}"
    assert 6 <= len(dashboard["panels"]) <= 10
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert [link["url"] for link in dashboard["links"] if link["type"] == "link"]  # vLLM's own
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert all(legends), panel["title"]
        assert len(set(legends)) == len(legends)


def test_grafana_is_given_the_dashboards() -> None:
    provisioning = monitoring.DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "thumbwheel.yml").read_text())["providers"]
    services = yaml.safe_load((monitoring.DEPLOY / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    interval = yaml.safe_load((monitoring.PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
