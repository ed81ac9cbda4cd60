"""What it costs a cycle to collect its votes, as the history grows.

    history  10,000 to 1,000,000 rated turns that have trained already, with the same new votes
    new      the same history, with more new votes

Time is to follow the new votes and the window of latest ones that the reward model is fitted on, not the history;
memory neither. Turns and votes are written as servers write them; each collection runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop
from rich.console import Console

from bench import figures
from bench.figures import Spread
from cli import redis_server
from thumbwheel.config import Config
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.records import now, response_id
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import GROUP, VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

TOKENS = 48
"""Of a prompt, and of an answer."""
AT_ONCE = 256
FULL = ((10_000, 512), (100_000, 512), (1_000_000, 512), (1_000_000, 2_048))
QUICK = ((1_000, 128), (10_000, 128))
RUNS = 3


@contextmanager
def store(folder: Path) -> Iterator[str]:
    """URL of a server without a file: what is measured only reads, and a million votes are written sooner."""
    command = redis_server.command(redis_server.find_binary(), folder)
    server = subprocess.Popen([*command, "--appendonly", "no"], stdout=subprocess.DEVNULL)
    try:
        while not redis_server.socket_path(folder).exists():
            assert server.poll() is None, "the store did not start"
            time.sleep(0.05)
        yield redis_server.url(folder)
    finally:
        server.terminate()
        server.wait()


async def rate(opened: Store, first: int, count: int) -> None:
    """Turns of one answer each, and a thumb on each; numbered from `first`."""
    turns, votes = TurnLog(opened, Config().turn_log), FeedbackLog(opened, Config().feedback)

    async def one(number: int) -> None:
        dice = np.random.default_rng(number)
        prompt, answer = dice.integers(100, 40_000, (2, TOKENS)).tolist()
        name, rater = f"t{number:031d}", f"rater-{number % 997}"
        turn = pb.TurnRecord(
            turn_id=name, owner=rater, created_at=now(), prompt_token_ids=prompt,
            messages=[pb.Message(role=pb.ROLE_USER, content=f"Question {number}?")],
            sampling=pb.Sampling(max_tokens=TOKENS, temperature=1, top_p=1),
        )  # fmt: skip
        response = pb.ResponseRecord(
            response_id=response_id(name, 0), token_ids=answer, logprobs=[-1.5] * TOKENS, text="words " * TOKENS,
            finish_reason=pb.FINISH_REASON_STOP, spans=[pb.VersionSpan(version="base")],
        )  # fmt: skip
        await turns.append(turn, response)
        thumb = pb.THUMB_UP if number % 3 else pb.THUMB_DOWN
        await votes.append(
            pb.VoteEvent(
                turn_id=name, response_id=response.response_id, rater=rater, kind=pb.VOTE_KIND_THUMB, thumb=thumb,
                created_at=now(),
            ),
            name,
        )  # fmt: skip

    numbers = iter(range(first, first + count))

    async def hand() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(hand() for _ in range(AT_ONCE)))


async def have_trained(opened: Store) -> None:
    """All votes so far."""
    keys = opened.keys
    await VoteStream(opened).waiting()  # makes the group
    await opened.call("XGROUP", "DESTROY", keys.votes, GROUP)
    await opened.call("XGROUP", "CREATE", keys.votes, GROUP, "$")
    await opened.call("XTRIM", keys.votes, "MAXLEN", 0)


async def collect(url: str, new: int) -> dict[str, float]:
    """One collection in this process."""
    from learner.cycle import Wheel

    opened = await Store.open(url, "default")
    lease = Lease(opened, "bench", 60)
    assert await lease.acquire()
    nobody = cast(Any, None)
    wheel = Wheel(
        settings=Config().learner, stream=VoteStream(opened), turns=TurnLog(opened, Config().turn_log),
        feedback=FeedbackLog(opened, Config().feedback), registry=nobody, erasure=nobody, brake=nobody, lease=lease,
        policy=nobody, features=nobody, rollouts=nobody, publisher=nobody, competence=nobody, safety=nobody,
        anchor=nobody, encode=nobody,
    )  # fmt: skip
    _forget_peak()
    before, began = _memory("VmRSS"), time.perf_counter()
    batch = await wheel.stream.freeze(lease, "cycle-1", "base", 0, new)
    data, fresh = await wheel._collect(batch)
    measured = {"seconds": time.perf_counter() - began, "mib": _memory("VmHWM") - before}
    assert len(fresh) == new
    await wheel.stream.thaw(lease)
    await lease.release()
    await opened.close()
    return measured | {"answers": len(data.answers)}


def _forget_peak() -> None:
    """That of the imports."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _memory(field: str) -> float:
    """MiB, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


async def run(quick: bool, console: Console) -> dict[str, Any]:
    found: dict[str, dict[str, Spread]] = {}
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch, store(Path(scratch)) as url:
        opened = await Store.open(url, "default")
        rated = trained = 0
        for history, new in QUICK if quick else FULL:
            if history > trained:
                await rate(opened, rated, history - rated)
                await have_trained(opened)
                rated = trained = history
            await rate(opened, rated, trained + new - rated)
            rated = trained + new
            runs = [await asyncio.to_thread(_elsewhere, url, new) for _ in range(1 if quick else RUNS)]
            title = f"{history} votes, {new} new"
            found[title] = {key: Spread.of([each[key] for each in runs]) for key in runs[0]}
            console.print(title, {key: str(value) for key, value in found[title].items()})
        await opened.close()
    return found


def _elsewhere(url: str, new: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.dataset", "--collect", url, str(new)]
    measured: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return measured


def main() -> None:
    if sys.argv[1:2] == ["--collect"]:
        print(json.dumps(uvloop.run(collect(sys.argv[2], int(sys.argv[3])))))
        return
    asked = figures.options("dataset", __doc__.splitlines()[0])
    results = uvloop.run(run(asked.quick, Console(highlight=False)))
    figures.write(asked.json, "dataset", asked.quick, results)


if __name__ == "__main__":
    main()
