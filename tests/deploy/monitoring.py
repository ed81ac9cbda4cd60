"""What deploy/ asks Prometheus for, and what there is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
OURS = re.compile(r"thumbwheel|^vllm:|^process_")


@dataclass(frozen=True)
class Query:
    """One expression and where it stands."""

    place: str
    expr: str


def rules() -> list[dict[str, Any]]:
    """Recording and alert rules."""
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboards() -> dict[str, dict[str, Any]]:
    files = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def panel_queries() -> list[Query]:
    return [
        Query(f"{name}: {panel['title']} ({target['refId']})", target["expr"])
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def rule_queries() -> list[Query]:
    return [Query(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def metrics(expr: str) -> set[str]:
    """The series that an expression reads, recorded ones included."""
    bare = re.sub(r'"[^"]*"', "", expr)
    return {name for name in re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare) if OURS.search(name)}
