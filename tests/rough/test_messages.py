"""Messages that nobody should send."""

from __future__ import annotations

import pytest

from server.access import SCOPES
from tests.rough import messages
from tests.rough.attackers import Attackers
from tests.rough.target import Target, unharmed


def test_every_method_has_a_request_to_mutate() -> None:
    assert set(SCOPES) < set(messages.requests("t-0"))


@pytest.mark.parametrize(("count", "visits"), [(2_000, 20), pytest.param(100_000, 300, marks=pytest.mark.slow)])
async def test_mutated_messages(server: Target, attackers: Attackers, count: int, visits: int) -> None:
    async with unharmed(server, visits):
        replies = await attackers.run(messages.send, server.address, server.admin, count, 1)
        print(replies.codes, f"{replies.undecodable=}")
        assert not replies.unexpected, replies.unexpected[:5]
    assert replies.codes.total() == count
    assert replies.undecodable > count / 5


@pytest.mark.parametrize(("count", "visits"), [(110, 20), pytest.param(3_300, 300, marks=pytest.mark.slow)])
async def test_giant_prompts(server: Target, attackers: Attackers, count: int, visits: int) -> None:
    async with unharmed(server, visits):
        codes = await attackers.run(messages.overwhelm, server.address, count)
        print(codes)
    too_large_for_grpc = 2 * count // len(messages.giants())
    assert codes == {"INVALID_ARGUMENT": count - too_large_for_grpc, "RESOURCE_EXHAUSTED": too_large_for_grpc}
