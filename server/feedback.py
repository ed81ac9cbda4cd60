"""FeedbackService: votes in, current votes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from grpc import aio

from server.access import caller
from server.limits import Budgets
from server.votes import Votes
from thumbwheel.errors import InvalidInput
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel_client.v1 import feedback_pb2, feedback_pb2_grpc, record_pb2

MAX_PAGE = 500
DEFAULT_PAGE = 100
STRIDE = 20
"""Turns read from the store at a time."""
FULL_PAGE_BYTES = 1 << 20
"""A page ends early beyond this, so that with its turns it stays under the 4 MiB that gRPC clients receive."""

if TYPE_CHECKING:  # generic only for the type checker
    Context = aio.ServicerContext[Any, Any]


class FeedbackService(feedback_pb2_grpc.FeedbackServiceServicer):
    """OK means that the vote is on disk."""

    def __init__(self, votes: Votes, kept: FeedbackLog, turns: TurnLog, budgets: Budgets) -> None:
        self._votes = votes
        self._kept = kept
        self._turns = turns
        self._budgets = budgets

    async def Rate(self, request: feedback_pb2.RateRequest, context: Context) -> feedback_pb2.RateResponse:
        return feedback_pb2.RateResponse(event_id=await self._votes.rate(request, caller()))

    async def Retract(self, request: feedback_pb2.RetractRequest, context: Context) -> feedback_pb2.RetractResponse:
        return feedback_pb2.RetractResponse(event_id=await self._votes.retract(request, caller()))

    async def ListVotes(
        self, request: feedback_pb2.ListVotesRequest, context: Context
    ) -> feedback_pb2.ListVotesResponse:
        if request.page_size > MAX_PAGE:
            raise InvalidInput("page_size", f"{request.page_size}; at most {MAX_PAGE}")
        if request.all_raters:
            caller().require(record_pb2.SCOPE_ADMIN)
        await self._budgets.request(caller())
        rater = None if request.all_raters else caller().rater
        answer = feedback_pb2.ListVotesResponse(next_page_token=request.page_token)
        if not request.page_token:
            answer.total_turns = await self._kept.rated_count(rater=rater, turn_id=request.turn_id or None)
        left, size = request.page_size or DEFAULT_PAGE, 0
        while left and size < FULL_PAGE_BYTES:
            stride = min(left, STRIDE)
            found, token = await self._kept.page(
                rater=rater, turn_id=request.turn_id or None, size=stride, token=answer.next_page_token
            )
            votes = await self._with_turns(found, request.include_turns)
            answer.votes.extend(votes)
            answer.next_page_token = token
            left -= stride
            size += sum(vote.ByteSize() for vote in votes)
            if not token:
                break
        return answer

    async def _with_turns(
        self, found: list[tuple[str, record_pb2.VoteEvent]], include_turns: bool
    ) -> list[feedback_pb2.Vote]:
        ids = list(dict.fromkeys(event.turn_id for _, event in found))
        turns = dict(zip(ids, await self._turns.get_many(ids), strict=True)) if ids else {}
        votes = []
        for event_id, event in found:
            vote = feedback_pb2.Vote(event=event, event_id=event_id)
            turn = turns[event.turn_id]
            if turn is not None:
                rated = list(_rated(event, turn))
                vote.answered_at.CopyFrom(rated[0].finished_at if rated else turn.record.created_at)
                if include_turns:
                    vote.messages.extend(turn.record.messages)
                    vote.responses.extend(rated)
            votes.append(vote)
        return votes


def _rated(event: record_pb2.VoteEvent, turn: Turn) -> Iterable[record_pb2.ResponseRecord]:
    """The answers that a vote speaks of; all of the turn's for a ranking."""
    for _, response in sorted(turn.responses.items()):
        if event.kind == record_pb2.VOTE_KIND_RANKING or response.response_id == event.response_id:
            yield response
