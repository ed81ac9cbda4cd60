"""`thumbwheel erase`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thumbwheel.erasure import Erasure
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel


async def test_it_asks_removes_and_says_what_has_learned(served: Served, thumbwheel: Thumbwheel) -> None:
    metadata = served.services.identity("ann")
    ask = chat_pb2.ChatInput(messages=[pb.Message(role=pb.ROLE_USER, content="hi")])
    [answer] = (await served.services.chat.Chat(chat_pb2.ChatRequest(input=ask), metadata=metadata)).answers
    vote = feedback_pb2.RateRequest(response_id=answer.receipt.response_id, idempotency_key="k", thumb=pb.THUMB_UP)
    await served.services.feedback.Rate(vote, metadata=metadata)
    [kept] = (await served.services.feedback.ListVotes(feedback_pb2.ListVotesRequest(), metadata=metadata)).votes
    await served.publish("v1")
    store = await Store.open(served.config.redis.url, served.config.redis.namespace)
    await Erasure(store).note_learned("v1", [kept.event.rater])
    await store.close()

    words = ("erase", "--user", "ann", "--server", served.addresses.admin)
    assert (await thumbwheel(*words, typed="n\n")).code == 1
    assert (await served.services.feedback.ListVotes(feedback_pb2.ListVotesRequest(), metadata=metadata)).votes
    done = await thumbwheel(*words, "--yes")
    assert done.code == 0, done.err
    assert "1 turns and 1 votes of 'ann' are removed" in done.out
    assert "v1" in done.out
    assert not (await served.services.feedback.ListVotes(feedback_pb2.ListVotesRequest(), metadata=metadata)).votes
