"""Votes from elsewhere, checked and made into the records that chat and feedback would have left here.

An imported answer has tokens, so that the reward model can learn from what was said of it, but no version and no
log-probabilities: nobody knows how likely it was. The policy never trains on it as on a sample of its own.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from server.engine import Engine
from server.identity import MAX_USER_CHARS, Identity
from server.question import BYTES_PER_TOKEN, Question, question_of
from server.sampling import sampling_message
from server.vote_input import vote_of
from thumbwheel.config import Config
from thumbwheel.errors import InvalidInput
from thumbwheel.records import MAX_ANSWERS, now, response_id
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1.import_pb2 import ImportedVote
from thumbwheel_client.v1.record_pb2 import (
    FINISH_REASON_STOP,
    RankedResponse,
    Ranking,
    ResponseRecord,
    TurnRecord,
    VoteEvent,
)

CLOCK_SKEW_MS = 86_400_000
"""How far another system's clock may be ahead."""
TURN_ID = re.compile(r"[A-Za-z0-9_]{1,60}")
RATER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A vote, and its turn with the answers that it speaks of."""

    turn: TurnRecord
    responses: tuple[ResponseRecord, ...]
    event: VoteEvent
    asked: int
    """When the rater asked, milliseconds since 1970; 0: before anything that is known here."""


class Intake:
    """Reads votes with the model's tokenizer, which takes milliseconds for a long one."""

    def __init__(self, engine: Engine, identity: Identity, settings: Config) -> None:
        self._engine = engine
        self._identity = identity
        self._settings = settings

    def read(self, vote: ImportedVote, caller: str) -> Arrival:
        """
        Args:
            caller: the rater who imports.

        Raises:
            InvalidInput: names the field and what is wrong with it, and quotes nothing.
        """
        arrived = now()
        owner = self._owner(vote, caller)
        answered = _time(vote, "answered_at", arrived) or _time(vote, "rated_at", arrived)
        rated = _time(vote, "rated_at", arrived)
        question = question_of(chat_pb2.ChatInput(messages=vote.messages), self._engine, self._settings.server)
        turn = TurnRecord(
            turn_id=_turn_id(vote, owner),
            owner=owner,
            created_at=answered or arrived,
            messages=question.messages,
            prompt_token_ids=question.prompt_token_ids,
            sampling=sampling_message(question.sampling),
        )
        responses = self._responses(vote, turn, question)
        event = vote_of(_request(vote, responses), owner, self._settings.feedback)
        event.created_at.CopyFrom(rated or arrived)
        event.imported = True
        # Who is named without a time may have been erased since: only what the importer says now is surely new.
        asked = turn.created_at.ToMilliseconds() if answered or owner == caller else 0
        return Arrival(turn, responses, event, asked)

    def _owner(self, vote: ImportedVote, caller: str) -> str:
        match vote.WhichOneof("who"):
            case "user":
                if not 0 < len(vote.user) <= MAX_USER_CHARS or not vote.user.isprintable():
                    raise InvalidInput("user", f"must be 1 to {MAX_USER_CHARS} printable characters")
                return self._identity.rater(vote.user)
            case "rater":
                if not RATER.fullmatch(vote.rater):
                    raise InvalidInput("rater", "must be 32 hex digits, as an export has them")
                return vote.rater
        return caller

    def _responses(self, vote: ImportedVote, turn: TurnRecord, question: Question) -> tuple[ResponseRecord, ...]:
        if not 1 <= len(vote.answers) <= MAX_ANSWERS:
            raise InvalidInput("answers", f"{len(vote.answers)}; must be 1 to {MAX_ANSWERS}")
        if len({answer.index for answer in vote.answers}) < len(vote.answers):
            raise InvalidInput("answers", "two have the same index")
        room = self._engine.max_context - len(question.prompt_token_ids)
        responses = []
        for place, answer in enumerate(vote.answers):
            field = f"answers[{place}]"
            if answer.index >= MAX_ANSWERS:
                raise InvalidInput(f"{field}.index", f"{answer.index}; at most {MAX_ANSWERS - 1}")
            if not answer.text.strip():
                raise InvalidInput(f"{field}.text", "empty")
            # The length first: to tokenize what cannot fit would be in vain.
            fits = len(answer.text.encode()) <= BYTES_PER_TOKEN * room
            tokens = self._engine.encode_answer(answer.text) if fits else []
            if not fits or len(tokens) > room:
                raise InvalidInput(f"{field}.text", f"the model's context has room for {room} tokens after the prompt")
            responses.append(
                ResponseRecord(
                    response_id=response_id(turn.turn_id, answer.index),
                    index=answer.index,
                    text=answer.text,
                    token_ids=tokens,
                    finish_reason=FINISH_REASON_STOP,
                    finished_at=turn.created_at,
                )
            )
        return tuple(responses)


def content_of(event: VoteEvent) -> bytes:
    """What was said of what, whenever and however it came here; the same for equal votes."""
    said = VoteEvent()
    said.CopyFrom(event)
    said.ClearField("created_at")
    said.ClearField("imported")
    return said.SerializeToString(deterministic=True)


def _request(vote: ImportedVote, responses: tuple[ResponseRecord, ...]) -> feedback_pb2.RateRequest:
    """The call that would have cast it."""
    request = feedback_pb2.RateRequest(idempotency_key="import", reasons=vote.reasons, comment=vote.comment)
    which = vote.WhichOneof("vote")
    if which == "ranks":
        if len(vote.ranks.ranks) != len(responses):
            raise InvalidInput("ranks", f"{len(vote.ranks.ranks)} for {len(responses)} answers")
        ranked = zip(responses, vote.ranks.ranks, strict=True)
        items = [RankedResponse(response_id=response.response_id, rank=rank) for response, rank in ranked]
        request.ranking.CopyFrom(Ranking(items=items))
        return request
    request.response_id = responses[0].response_id
    match which:
        case "thumb":
            request.thumb = vote.thumb
        case "stars":
            request.stars = vote.stars
        case "edit":
            request.edit = vote.edit
    return request


def _turn_id(vote: ImportedVote, owner: str) -> str:
    """The turn's own name, or one made from what it says.

    A vote with a time can be changed by a later one on the same answers. One without is an observation by itself: no
    later row of the same file takes it back, so that the file can be read again.
    """
    if vote.turn_id:
        if not TURN_ID.fullmatch(vote.turn_id):
            raise InvalidInput("turn_id", "must be 1 to 60 letters, digits and underscores")
        return vote.turn_id
    content = ImportedVote(messages=vote.messages, answers=vote.answers)
    if not vote.HasField("rated_at"):
        content.CopyFrom(vote)
        content.ClearField("answered_at")
        content.ClearField("who")
    digest = hashlib.sha256(f"{owner}\0".encode() + content.SerializeToString(deterministic=True))
    return f"i{digest.hexdigest()[:32]}"


def _time(vote: ImportedVote, field: Literal["answered_at", "rated_at"], arrived: Timestamp) -> Timestamp | None:
    if not vote.HasField(field):
        return None
    stamp: Timestamp = getattr(vote, field)
    if not 0 < stamp.ToMilliseconds() <= arrived.ToMilliseconds() + CLOCK_SKEW_MS:
        raise InvalidInput(field, "must lie between 1970 and now")
    return stamp
