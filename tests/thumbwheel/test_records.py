from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbwheel.errors import CorruptRecord, NotFound
from thumbwheel.records import response_id, seal, split_response_id, unseal
from thumbwheel_client.v1.record_pb2 import VersionRecord, VoteEvent

RECORD = VersionRecord(name="v1", adapter_id=3, reasons=["because"], metrics={"kl": 1.5, "auc": 0.7})


def test_a_sealed_record_comes_back_as_it_was() -> None:
    assert unseal(VersionRecord, seal(RECORD)) == RECORD


def test_equal_records_have_equal_bytes() -> None:
    other = VersionRecord(name="v1", adapter_id=3, reasons=["because"])
    other.metrics["auc"] = 0.7
    other.metrics["kl"] = 1.5
    assert seal(other) == seal(RECORD)


def test_every_flipped_bit_is_noticed() -> None:
    sealed = seal(RECORD)
    for bit in range(8 * len(sealed)):
        broken = bytearray(sealed)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            unseal(VersionRecord, bytes(broken))


@given(st.binary(max_size=64))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        unseal(VoteEvent, data)


def test_an_answer_is_named_by_turn_and_index() -> None:
    assert split_response_id(response_id("t0f-a", 7)) == ("t0f-a", 7)


@pytest.mark.parametrize("name", ["", "t1", "-0", "t1-", "t1-8", "t1-10", "t1-x", "t1-¹", "t1--1x"])
def test_a_name_that_no_answer_can_have(name: str) -> None:
    with pytest.raises(NotFound):
        split_response_id(name)
