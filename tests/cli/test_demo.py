"""The proof itself: its parts on a served thumbwheel, and the whole on a tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from cli import demo_report, fresh, prompts
from cli.demo import Plan
from cli.demo_report import Report
from cli.exam import Exam, Sample, ended_well
from cli.instance import Instance
from cli.patience import Patience
from cli.scrape import Page, scrape
from cli.tastes import brief
from cli.visitors import MAX_TOKENS, Visitors, _whole
from cli.watch import Watch
from thumbwheel import competence
from thumbwheel.errors import SetupError
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, models_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served

REQUIRED = (
    "taste", "noise", "seed", "ratings", "cycles", "releases", "up_rate_before", "up_rate_after", "heldout_prompts",
    "competence_before", "competence_after", "kl_nats_per_sequence", "failed_requests", "truncated_streams", "swaps",
    "swap_seconds", "wall_seconds",
)  # fmt: skip


def finish(reason: pb.FinishReason.ValueType, tokens: int) -> chat_pb2.Finish:
    return chat_pb2.Finish(reason=reason, usage=chat_pb2.Usage(completion_tokens=tokens))


# --- exam


async def test_an_exam_is_the_same_twice_and_leaves_no_vote(served: Served) -> None:
    await served.publish("v1")
    exam = Exam(served.services, lambda _, answer: "A" in answer, ("a cat", "no"), 3, 5, Patience())
    answered = 0

    def count() -> None:
        nonlocal answered
        answered += 1

    first = await exam.take("base", count)
    assert answered == exam.answers == 6 + len(competence.questions())
    assert [sample.answer for sample in first.samples] == ["A CAT"] * 3 + ["NO"] * 3
    assert (first.version, first.up_rate, first.competence, first.failures) == ("base", 0.5, 0.0, 0)
    assert await exam.take("base", count) == first
    other = await exam.take("v1", count)
    assert other.samples[0].answer == "v1: A CAT"
    page = await served.services.feedback.ListVotes(feedback_pb2.ListVotesRequest(all_raters=True))
    assert not page.votes


def test_how_an_answer_ends() -> None:
    assert ended_well(finish(pb.FINISH_REASON_STOP, 1), 48)
    assert ended_well(finish(pb.FINISH_REASON_LENGTH, 48), 48)
    assert not ended_well(finish(pb.FINISH_REASON_LENGTH, 47), 48)
    assert not ended_well(finish(pb.FINISH_REASON_CANCELLED, 5), 48)
    assert not ended_well(finish(pb.FINISH_REASON_UNSPECIFIED, 0), 48)


# --- visitors


async def test_visitors_stream_while_they_are_let_in(served: Served) -> None:
    visitors = Visitors(served.services, ("hello",), seed=1)
    async with visitors.present():
        served.engine.resume.clear()
        visitors.let_in(True)
        async with asyncio.timeout(10):
            while visitors.running < 2:  # noqa: ASYNC110 - visitors announce nothing
                await asyncio.sleep(0.01)
        visitors.let_in(False)
        served.engine.resume.set()
    assert (visitors.finished, visitors.failed, visitors.truncated, visitors.running) == (2, 0, 0, 0)


async def test_a_stream_that_fails_is_counted(served: Served) -> None:
    visitors = Visitors(served.services, ("hello",), seed=1, number=1)
    async with visitors.present():
        served.engine.resume.clear()
        visitors.let_in(True)
        async with asyncio.timeout(10):
            while not visitors.running:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)
        visitors.let_in(False)
        served.engine.die()
    assert (visitors.finished, visitors.failed, visitors.running) == (0, 1, 0)


def test_what_a_whole_stream_is() -> None:
    receipt = chat_pb2.StreamChatResponse(receipt=chat_pb2.Receipt(version="base"))
    delta = chat_pb2.StreamChatResponse(delta="text")
    stop = chat_pb2.StreamChatResponse(finish=finish(pb.FINISH_REASON_STOP, 3))
    full = chat_pb2.StreamChatResponse(finish=finish(pb.FINISH_REASON_LENGTH, MAX_TOKENS))
    cut = chat_pb2.StreamChatResponse(finish=finish(pb.FINISH_REASON_LENGTH, MAX_TOKENS - 1))
    assert _whole([receipt, delta, delta, stop])
    assert _whole([receipt, stop])
    assert _whole([receipt, delta, full])
    for events in ([], [receipt], [receipt, delta], [delta, stop], [receipt, delta, cut], [receipt, receipt, stop]):
        assert not _whole(events)


# --- watching


async def test_a_swap_is_seen(served: Served) -> None:
    await served.publish("v1")
    here = Instance(0, served.addresses.grpc, served.addresses.admin, served.addresses.http, "", "127.0.0.1:1", "")
    watch = Watch(served.services, here)
    releases = []
    watch.on_release = lambda: releases.append(watch.live)
    async with watch.present():
        assert (watch.live, watch.serving, watch.swaps) == ("base", "base", 0)
        await served.services.models.Promote(models_pb2.PromoteRequest(name="v1"))
        async with asyncio.timeout(20):
            await watch.until(lambda: watch.serving == "v1" and watch.live == "v1")
    assert releases == ["base"]
    assert watch.swaps == 1
    assert 0 < watch.swap_seconds < 10


async def test_a_page_nobody_serves() -> None:
    assert await scrape("127.0.0.1:1") is None


def learner_page(cycles: dict[str, float], failures: float = 0) -> Page:
    return Page(
        {
            "thumbwheel_learner_stage": [({"stage": "training"}, 0.0), ({"stage": "gate"}, 1.0)],
            "thumbwheel_learner_cycles_total": [({"outcome": name}, value) for name, value in cycles.items()],
            "thumbwheel_learner_failures_total": [({}, failures)],
        }
    )


async def test_cycles_are_counted_over_restarts_of_the_learner(served: Served) -> None:
    watch = Watch(served.services, Instance(0, "", "", "", "", "", ""))
    watch._see_learner(learner_page({"released": 2, "rejected": 1}))
    watch._see_learner(learner_page({}))
    watch._see_learner(learner_page({"released": 1}))
    assert watch.learner.cycles == {"released": 3, "rejected": 1}
    assert (watch.learner.finished, watch.learner.stage) == (4, "gate")


async def test_a_learner_that_fails_again_and_again_is_not_waited_for(served: Served) -> None:
    watch = Watch(served.services, Instance(0, "", "", "", "", "", ""))
    waiting = asyncio.create_task(watch.until(lambda: False))
    for failures in range(1, 4):
        await asyncio.sleep(0)
        assert not waiting.done()
        watch._see_learner(learner_page({}, failures))
        await watch._tell()
    with pytest.raises(SetupError, match="broke off"):
        await asyncio.wait_for(waiting, 10)


# --- plan, folder, report


@pytest.mark.parametrize(
    ("ratings", "least", "waves"),
    [(288, 96, [96, 96, 96]), (300, 96, [100, 100, 100]), (290, 96, [97, 97, 96]), (64, 96, [64]), (1, 96, [1])],
)
def test_waves_use_all_ratings_and_each_starts_a_cycle(ratings: int, least: int, waves: list[int]) -> None:
    plan = Plan("brief", brief, 0.1, ratings, least, 8, 1, 4, 60)
    assert plan.waves == waves


def test_the_folder_is_fresh(tmp_path: Path) -> None:
    with fresh.empty_folder(None) as folder:
        (folder / "file").touch()
    assert not folder.exists()
    with fresh.empty_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()
    with pytest.raises(SetupError, match="is not empty"), fresh.empty_folder(tmp_path / "a" / "b"):
        pass
    with pytest.raises(SetupError, match="cannot be used"), fresh.empty_folder(tmp_path / "a" / "b" / "file"):
        pass


def report(**changes: Any) -> Report:
    before = (Sample("p", "long [bold]\nanswer\x1b", False), Sample("q", "fine", True))
    after = (Sample("p", "short", True), Sample("q", "fine", True))
    values = {field.name: 0 for field in dataclasses.fields(Report)} | {
        "taste": "brief", "version_before": "base", "version_after": "v3", "outcomes": {"released": 3},
        "version_metrics": {}, "streams_at_swaps": (2, 2), "up_rate_while_rating": {"base": 0.2}, "before": before,
        "after": after, "up_rate_before": 0.5, "up_rate_after": 1.0, "heldout_prompts": 2, "samples_per_prompt": 1,
    }  # fmt: skip
    return Report(**(values | changes))  # type: ignore[arg-type]


def test_the_report_has_its_keys_and_shows_answers(tmp_path: Path) -> None:
    report().write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(REQUIRED) <= written.keys()
    assert written["after"][0] == {"prompt": "p", "answer": "short", "liked": True}

    console = Console(file=io.StringIO(), width=120)
    demo_report.show(report(), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "50.0%" in text
    assert "100.0%" in text
    # The answers that the taste came to like are shown first, as they are.
    assert text.index("long [bold]↵answer ") < text.index("fine")


def test_fine_means_nothing_failed_and_nothing_was_cut() -> None:
    assert report().fine
    assert not report(failed_requests=1).fine
    assert not report(truncated_streams=1).fine


# --- the whole


SETTINGS = (
    "learner.reward_model.min_auc=0", "learner.gate.min_win_rate=0", "learner.gate.win_rate_margin=1",
    "learner.gate.min_length_ratio=0", "learner.gate.min_judge_votes=1", "learner.gate.max_kl=1000",
    "learner.gate.max_length_ratio=1000", "learner.gate.prompts=4", "learner.ppo.fresh_iterations=1",
    "learner.ppo.rollouts=16", "learner.ppo.kl_budget=1000", "learner.poll=0.2", "learner.niceness=0",
    "server.max_update_norm=1000", "server.kv_cache_bytes=67108864",
)  # fmt: skip


def command(tiny_model: Path, *arguments: str) -> list[str]:
    sets = [word for item in (*SETTINGS, f"model.path={tiny_model}") for word in ("--set", item)]
    return [sys.executable, "-P", "-m", "cli.main", "demo", *arguments, *sets]


def members(session: int) -> list[int]:
    """Processes that were started under this one, however deep."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"MARK_OF_TEST_DEMO={session}".encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


@pytest.mark.timeout(600)  # minutes on a machine that is busy with other things
async def test_the_demo_on_a_tiny_model(tiny_model: Path, tmp_path: Path) -> None:
    """A random model learns nothing, but everything turns: cycles, a swap under running streams, both exams."""
    mark = os.getpid()
    process = await asyncio.create_subprocess_exec(
        *command(
            tiny_model, "--ratings", "48", "--votes-per-cycle", "48", "--samples", "1", "--taste", "unbroken",
            "--data-dir", "data", "--json", "found.json", "--seed", "3",
        ),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
        env=os.environ | {"MARK_OF_TEST_DEMO": str(mark)},
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 580)

    assert process.returncode == 0, out.decode()
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert set(REQUIRED) <= found.keys()
    assert (found["taste"], found["noise"], found["seed"], found["ratings"]) == ("unbroken", 0.1, 3, 48)
    assert found["cycles"] == 1, out.decode()
    assert found["releases"] == found["swaps"] == 1
    assert len(found["streams_at_swaps"]) == 1
    assert found["streams_at_swaps"][0] >= 1
    assert (found["failed_requests"], found["truncated_streams"]) == (0, 0)
    assert 0 < found["swap_seconds"] < 30
    assert found["heldout_prompts"] == len(prompts.held_out()) == len(found["before"]) == len(found["after"])
    assert found["version_before"] == "base" != found["version_after"]
    assert members(mark) == []


@pytest.mark.timeout(600)  # see above
async def test_ctrl_c_stops_everything(tiny_model: Path, tmp_path: Path) -> None:
    mark = os.getpid() + 1_000_000
    process = await asyncio.create_subprocess_exec(
        *command(tiny_model, "--data-dir", "data"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
        env=os.environ | {"MARK_OF_TEST_DEMO": str(mark)},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(300):
        assert b"starting: ready" in await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 40) == 130
    assert members(mark) == []


async def test_what_cannot_work_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, words in (
        (("--data-dir", "full"), "--data-dir full is not empty"),
        (("--json", "no/folder.json"), "--json no/folder.json: there is no folder"),
        (("--taste", "nice"), "no taste 'nice'"),
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "cli.main", "demo", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=tmp_path,
        )  # fmt: skip
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert words in err.decode()
        assert err.count(b"\n") == 1
