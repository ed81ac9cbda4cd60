"""/metrics as Prometheus reads it."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.engine_scripted import ScriptedEngine
from tests.deploy import tools
from thumbwheel.config import Config
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, record_pb2

EXPECTED = {
    "thumbwheel_requests": "counter",
    "thumbwheel_time_to_first_token_seconds": "histogram",
    "thumbwheel_time_per_output_token_seconds": "histogram",
    "thumbwheel_tokens": "counter",
    "thumbwheel_queued_answers": "gauge",
    "thumbwheel_running_answers": "gauge",
    "thumbwheel_running_calls": "gauge",
    "thumbwheel_unread_streams": "counter",
    "thumbwheel_revoked_rollouts": "counter",
    "thumbwheel_limited_calls": "counter",
    "thumbwheel_refused_callers": "counter",
    "thumbwheel_live_version_info": "gauge",
    "thumbwheel_crossed_answers": "counter",
    "thumbwheel_swaps": "counter",
    "thumbwheel_swap_seconds": "histogram",
    "thumbwheel_refused_adapters": "counter",
    "thumbwheel_votes": "counter",
    "thumbwheel_imported_votes": "counter",
    "thumbwheel_vote_seconds": "histogram",
    "thumbwheel_logged_answers": "counter",
    "thumbwheel_turn_log_buffered_answers": "gauge",
    "thumbwheel_corrupt_turns": "counter",
    "thumbwheel_store_errors": "counter",
    "thumbwheel_store_durable": "gauge",
}


async def fetch(address: str, path: str) -> str:
    def get() -> str:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(get)


@pytest.fixture
async def page(settings: Callable[..., Config], run_server: Any) -> AsyncIterator[str]:
    """The page after a chat and a vote."""
    message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
    async with run_server(settings(), ScriptedEngine()) as server:
        answer = await server.chat.Chat(chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message])))
        await server.feedback.Rate(
            feedback_pb2.RateRequest(
                response_id=answer.answers[0].receipt.response_id, idempotency_key="k", thumb=record_pb2.THUMB_UP
            )
        )
        yield await fetch(server.addresses.http, "/metrics")


def ours(page: str) -> dict[str, Metric]:
    """The server's; in a run of all tests the learner's are in the same process."""
    return {
        family.name: family
        for family in text_string_to_metric_families(page)
        if re.match("thumbwheel_(?!learner_)", family.name)
    }


async def test_every_metric_is_there_with_its_type(page: str) -> None:
    assert {name: family.type for name, family in ours(page).items()} == EXPECTED


async def test_names_follow_the_conventions(page: str) -> None:
    for name, family in ours(page).items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert family.documentation.endswith("."), name
        assert not re.search(r"(_ms|_milliseconds|_bytes_total|_created|_count|_sum|_bucket)$", name)
        if family.type == "histogram":
            assert name.endswith("_seconds"), "a histogram names its base unit"
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert math.isfinite(sample.value)
            assert set(sample.labels) <= {"method", "code", "kind", "value", "version", "source", "status", "reason",
                                          "result", "le"}  # fmt: skip


async def test_what_happened_is_counted(page: str) -> None:
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in ours(page).values()
        for sample in family.samples
    }
    assert values["thumbwheel_requests_total", ("code", "OK"), ("method", "Chat")] >= 1
    assert values["thumbwheel_time_to_first_token_seconds_count",] >= 1
    assert values["thumbwheel_time_per_output_token_seconds_count",] >= 1
    assert values["thumbwheel_tokens_total", ("kind", "prompt")] >= 1
    assert values["thumbwheel_tokens_total", ("kind", "completion")] >= 1
    assert values["thumbwheel_votes_total", ("kind", "thumb"), ("value", "up"), ("version", "base")] >= 1
    assert values["thumbwheel_vote_seconds_count",] >= 1
    assert values["thumbwheel_logged_answers_total", ("status", "logged")] >= 1
    assert values["thumbwheel_live_version_info", ("version", "base")] == 1
    assert values["thumbwheel_running_answers", ("source", "chat")] == 0
    assert values["thumbwheel_store_durable",] == 1


async def test_promtool_finds_nothing(page: str) -> None:
    promtool = tools.prometheus("promtool")
    lines = [line for line in page.splitlines() if re.match(r"(# (HELP|TYPE) )?thumbwheel_", line)]
    check = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input="\n".join(lines) + "\n", capture_output=True, text=True
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")
