"""`thumbwheel versions`, `promote` and `rollback` against a server that loads real adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel


async def test_promote_list_and_roll_back(served: Served, thumbwheel: Thumbwheel) -> None:
    server = ("--server", served.addresses.admin)
    await served.publish("v1")

    promoted = await thumbwheel("promote", "v1", "--reason", "it is better", *server)
    assert (promoted.code, promoted.out) == (0, "v1 is live, base was\n"), promoted.err
    assert (await served.registry.live()).name == "v1"

    listed = await thumbwheel("versions", *server)
    heading, v1, base, *reasons = [line.split() for line in listed.out.splitlines()]
    assert heading[:3] == ["version", "state", "parent"]
    assert v1[:8] == ["●", "v1", "live", "base", "1.23", "0.70", "61%", "50%"]
    assert base[:2] == ["base", "retired"]
    assert reasons[0] == ["v1:", "it", "is", "better"]

    back = await thumbwheel("rollback", "--reason", "worse after all", *server)
    assert (back.code, back.out) == (0, "base is live again, v1 was taken back\n"), back.err
    assert (await served.registry.live()).name == "base"
    assert (await served.registry.get("v1")).state == pb.VERSION_STATE_ROLLED_BACK
    listed = await thumbwheel("versions", *server)
    assert "v1" in listed.out
    assert "rolled back" in listed.out
    assert "worse after all" in listed.out


async def test_all_pages_are_listed(served: Served, thumbwheel: Thumbwheel) -> None:
    for number in range(205):
        await served.registry.register(pb.VersionRecord(name=f"old-{number}", state=pb.VERSION_STATE_REJECTED))
    await served.registry.register(pb.VersionRecord(name="under-way", state=pb.VERSION_STATE_TRAINING))

    listed = await thumbwheel("versions", "--server", served.addresses.admin)
    assert listed.out.count(" rejected ") == 205
    assert "base" in listed.out
    assert "under-way" not in listed.out
    everything = await thumbwheel("versions", "--training", "--server", served.addresses.admin)
    assert everything.out.count(" rejected ") == 205
    assert everything.out.count("under-way") == 1


async def test_refusals_are_one_line(served: Served, thumbwheel: Thumbwheel) -> None:
    server = ("--server", served.addresses.admin)
    for arguments, part in ((("promote", "v9"), "v9"), (("rollback",), "thumbwheel: ")):
        refused = await thumbwheel(*arguments, *server)
        assert refused.code == 1
        assert part in refused.err
        assert refused.err.count("\n") == 1, refused.err


async def test_nobody_there(thumbwheel: Thumbwheel) -> None:
    for command in (("versions",), ("promote", "v1"), ("rollback",), ("export",), ("simulate", "--ratings", "1")):
        done = await thumbwheel(*command, "--server", "127.0.0.1:1")
        assert done.code == 1
        assert done.err == "thumbwheel: nothing answers at 127.0.0.1:1: start it with make run\n"
