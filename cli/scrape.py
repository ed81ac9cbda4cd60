"""Reads a process' /metrics page."""

from __future__ import annotations

import asyncio
import http.client
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Page:
    """Samples by name: the labels and value of each."""

    samples: dict[str, list[tuple[dict[str, str], float]]]

    def value(self, name: str) -> float:
        """The sum over all labels; 0 if there is no such sample."""
        return sum(value for _, value in self.samples.get(name, ()))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Value by label."""
        return {labels.get(label, ""): value for labels, value in self.samples.get(name, ())}


async def scrape(address: str) -> Page | None:
    """The page of host:port, or None if nobody answers there now."""
    try:
        text = await asyncio.to_thread(_get, f"http://{address}/metrics")
    except (OSError, http.client.HTTPException):
        return None
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Page(samples)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        return str(response.read().decode())
