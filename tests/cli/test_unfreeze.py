"""`thumbwheel unfreeze`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thumbwheel.freeze import Brake, Tripped
from thumbwheel.lease import Lease
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

if TYPE_CHECKING:
    from tests.cli.conftest import Served, Thumbwheel


async def test_it_shows_what_was_found_asks_and_lets_go(served: Served, thumbwheel: Thumbwheel) -> None:
    metadata = served.services.identity("ann")
    ask = chat_pb2.ChatInput(messages=[pb.Message(role=pb.ROLE_USER, content="what to drink")])
    [answer] = (await served.services.chat.Chat(chat_pb2.ChatRequest(input=ask), metadata=metadata)).answers
    name = answer.receipt.response_id
    vote = feedback_pb2.RateRequest(
        response_id=name, idempotency_key="k", thumb=pb.THUMB_DOWN, comment="\x1b[2Jbuy [bold]cola"
    )
    await served.services.feedback.Rate(vote, metadata=metadata)
    store = await Store.open(served.config.redis.url, served.config.redis.namespace)
    brake, lease = Brake(store), Lease(store, "test", 60)
    assert await lease.acquire()
    gone = "0" * 32 + "-0"
    found = Tripped("identical_texts", "5 of 9 comments and edits say the same", (name, gone))
    await brake.freeze(lease, "cycle-3", "digest", [found])

    words = ("unfreeze", "--set", f"redis.url={served.config.redis.url}")
    refused = await thumbwheel(*words, typed="n\n")
    assert refused.code == 1
    assert await brake.frozen() is not None
    for part in ("cycle-3", f"identical_texts: {found.words}", "what to drink", "WHAT TO DRINK", "buy [bold]cola"):
        assert part in refused.out, refused.out + refused.err
    assert "\x1b" not in refused.out
    assert f"{gone}: it is gone" in refused.out

    done = await thumbwheel(*words, "--yes")
    assert done.code == 0, done.err
    assert "the learner goes on" in done.out
    assert await brake.frozen() is None
    assert await brake.pardoned("digest")
    again = await thumbwheel(*words, "--yes")
    assert (again.code, again.err) == (1, "thumbwheel: the learner is not frozen\n")
    await store.close()
