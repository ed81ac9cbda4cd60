"""What a vote says of an answer, where only good or not good is asked for."""

from __future__ import annotations

from typing import Final

from thumbwheel_client.v1 import record_pb2 as pb

GOOD_STARS: Final = 4
"""This many and more are a vote for the answer, fewer against it."""


def verdict(event: pb.VoteEvent) -> bool | None:
    """Whether a vote says that the answer was good; None where it does not say, or was not cast here."""
    if event.retracted or event.imported:
        return None
    match event.WhichOneof("value"):
        case "thumb":
            return event.thumb == pb.THUMB_UP
        case "stars":
            return event.stars >= GOOD_STARS
    return None
