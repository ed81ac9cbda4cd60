"""Valid requests of every method, and what becomes of them on a bad day."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError, Message
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.rough.attackers import crowd
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, import_pb2, models_pb2, privacy_pb2, rollout_pb2
from thumbwheel_client.v1 import record_pb2 as pb

AT_ONCE = 2
LONGEST_CALL = 5.0
ADMIN = tuple(
    f"/thumbwheel.v1.{service}/" for service in ("ModelService", "RolloutService", "PrivacyService", "ImportService")
)
CHAT = "/thumbwheel.v1.ChatService/Chat"
ENDLESS = ("/WatchVersions", "/Watch")
EXPECTED = frozenset(
    {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "ALREADY_EXISTS", "FAILED_PRECONDITION"}
    # A mutated request may well ask for more than there is, or for more than fits its deadline.
    | {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
)


def requests(response_id: str) -> dict[str, list[Message]]:
    """Of every method by its path; votes are on this answer."""
    sampling = pb.Sampling(max_tokens=4, temperature=1, top_p=0.9, stop=["stop"], seed=7)
    messages = [pb.Message(role=pb.ROLE_SYSTEM, content="Be kind."), pb.Message(role=pb.ROLE_USER, content="Grüß dich")]
    asked = chat_pb2.ChatInput(messages=messages, sampling=sampling, n=2, conversation_id="c", version="base")
    turn_id = response_id.rpartition("-")[0]
    vote = {"idempotency_key": "key", "reasons": ["wrong"], "comment": "Ääh."}
    items = [pb.RankedResponse(response_id=f"{turn_id}-{index}", rank=index + 1) for index in range(2)]
    v1 = "/thumbwheel.v1."
    return {
        CHAT: [chat_pb2.ChatRequest(input=asked)],
        f"{v1}ChatService/StreamChat": [chat_pb2.StreamChatRequest(input=asked)],
        f"{v1}FeedbackService/Rate": [
            feedback_pb2.RateRequest(response_id=response_id, thumb=pb.THUMB_UP, **vote),
            feedback_pb2.RateRequest(response_id=response_id, stars=4, **vote),
            feedback_pb2.RateRequest(response_id=response_id, edit="Better.", **vote),
            feedback_pb2.RateRequest(ranking=pb.Ranking(items=items), **vote),
        ],
        f"{v1}FeedbackService/Retract": [
            feedback_pb2.RetractRequest(response_id=response_id, kind=pb.VOTE_KIND_THUMB, idempotency_key="back"),
            feedback_pb2.RetractRequest(turn_id=turn_id, kind=pb.VOTE_KIND_RANKING, idempotency_key="back"),
        ],
        f"{v1}FeedbackService/ListVotes": [
            feedback_pb2.ListVotesRequest(turn_id=turn_id, all_raters=True, include_turns=True, page_size=5),
            feedback_pb2.ListVotesRequest(page_token="abc", page_size=5),
        ],
        f"{v1}ModelService/ListVersions": [
            models_pb2.ListVersionsRequest(page_size=3, page_token="base", include_training=True)
        ],
        f"{v1}ModelService/GetVersion": [models_pb2.GetVersionRequest(name="base")],
        f"{v1}ModelService/Promote": [models_pb2.PromoteRequest(name="base", reason="why not")],
        f"{v1}ModelService/Rollback": [models_pb2.RollbackRequest(reason="worse")],
        f"{v1}ModelService/WatchVersions": [models_pb2.WatchVersionsRequest()],
        f"{v1}RolloutService/Rollout": [
            rollout_pb2.RolloutRequest(
                version="base", prompts=[rollout_pb2.TokenPrompt(token_ids=[1, 2, 300])], sampling=sampling, n=2
            )
        ],
        f"{v1}PrivacyService/Erase": [privacy_pb2.EraseRequest(user="mallory", issuer="nobody")],
        f"{v1}ImportService/ImportVotes": [
            import_pb2.ImportVotesRequest(
                votes=[
                    import_pb2.ImportedVote(
                        messages=messages,
                        answers=[
                            import_pb2.ImportedAnswer(text="Hello"),
                            import_pb2.ImportedAnswer(index=1, text="Hi"),
                        ],
                        user="mallory",
                        ranks=import_pb2.ImportedRanks(ranks=[1, 2]),
                        reasons=["wrong"],
                    )
                ]
            )
        ],
        "/grpc.health.v1.Health/Check": [health_pb2.HealthCheckRequest(service="thumbwheel.v1.ChatService")],
        "/grpc.health.v1.Health/Watch": [health_pb2.HealthCheckRequest(service="thumbwheel.v1.ChatService")],
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": [
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="thumbwheel.v1.ChatService")
        ],
    }


HUGE = (b"\x80\x20", b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01")
"""Numbers of 13, 31, 32 and 64 bits."""


@dataclass(frozen=True)
class Place:
    """Where a field stands in serialized bytes."""

    tag: int
    value: int
    end: int


def places(raw: bytes, start: int = 0) -> Iterator[Place]:
    """The fields of a message and of the messages in it; text that happens to look like a message counts as one."""
    at = start
    while at < len(raw):
        tag = at
        kind = raw[at] & 7
        at += 1  # no field of ours has a number above 15
        if kind == 0:
            value = at
            while at < len(raw) and raw[at] & 0x80:
                at += 1
            at += 1
        elif kind == 2 and at < len(raw):
            value = at + 1  # no field of these requests is longer than 127 bytes
            at = value + raw[at]
            yield from (place for place in places(raw[:at], value) if place.end <= at)
        elif kind in (1, 5):
            value, at = at, at + (8 if kind == 1 else 4)
        else:
            return
        if at > len(raw):
            return
        yield Place(tag, value, at)


Mutation = Callable[[bytearray, random.Random], None]


def flip_bits(raw: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 2, 8))):
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)


def cut(raw: bytearray, dice: random.Random) -> None:
    del raw[dice.randrange(len(raw)) :]


def insert(raw: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(raw) + 1)
    raw[at:at] = dice.randbytes(dice.choice((1, 2, 10, 1000)))


def repeat(raw: bytearray, dice: random.Random) -> None:
    place = dice.choice(list(places(bytes(raw))))
    at = dice.randrange(len(raw) + 1)
    raw[at:at] = raw[place.tag : place.end] * dice.choice((1, 2, 300))


def swap_type(raw: bytearray, dice: random.Random) -> None:
    place = dice.choice(list(places(bytes(raw))))
    raw[place.tag] = raw[place.tag] & ~7 | dice.randrange(8)


def renumber(raw: bytearray, dice: random.Random) -> None:
    place = dice.choice(list(places(bytes(raw))))
    raw[place.tag] = raw[place.tag] & 7 | dice.randrange(16) << 3


def lie_about_length(raw: bytearray, dice: random.Random) -> None:
    place = dice.choice(list(places(bytes(raw))))
    raw[place.tag + 1 : place.value] = dice.choice(
        (b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01")
    )


def break_text(raw: bytearray, dice: random.Random) -> None:
    """Bytes that are no UTF-8: alone, cut short, overlong, a surrogate, beyond the last character."""
    texts = [place for place in places(bytes(raw)) if raw[place.tag] & 7 == 2 and place.end > place.value]
    if texts:
        place = dice.choice(texts)
        broken = dice.choice((b"\xff", b"\x80", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"))
        broken = broken[: place.end - place.value]
        at = dice.randrange(place.value, place.end - len(broken) + 1)
        raw[at : at + len(broken)] = broken


def respell(raw: bytearray, dice: random.Random) -> None:
    """Text of the same length that nobody expects."""
    texts = [place for place in places(bytes(raw)) if raw[place.tag] & 7 == 2 and place.end > place.value]
    if texts:
        place = dice.choice(texts)
        odd = dice.choice(
            (b"\0", b"\n", b" ", b"%s", b"{{", b"\x7f", b"\xc2\x80", b"\xe2\x80\xae", b"<|im_end|>", b"../")
        )
        times, rest = divmod(place.end - place.value, len(odd))
        raw[place.value : place.end] = odd * times + b"." * rest


def enlarge(raw: bytearray, dice: random.Random) -> None:
    """A number becomes a very large one."""
    numbers = [place for place in places(bytes(raw)) if raw[place.tag] & 7 == 0]
    if numbers:
        place = dice.choice(numbers)
        raw[place.value : place.end] = dice.choice(HUGE)


def scramble(raw: bytearray, dice: random.Random) -> None:
    raw[:] = dice.randbytes(dice.randrange(200))


MUTATIONS: list[Mutation] = [
    flip_bits, cut, insert, repeat, swap_type, renumber, lie_about_length, break_text, scramble,
    respell, respell, enlarge, enlarge,  # these two still make requests
]  # fmt: skip


def mutated(raw: bytes, dice: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(dice.choice((1, 1, 1, 1, 2, 3))):
        if damaged and any(True for _ in places(bytes(damaged))):
            dice.choice(MUTATIONS)(damaged, dice)
        else:
            scramble(damaged, dice)
    return bytes(damaged)


@dataclass
class Replies:
    """How calls ended."""

    codes: Counter[str] = field(default_factory=Counter)
    undecodable: int = 0
    unexpected: list[str] = field(default_factory=list)


async def send(public: str, admin: str, count: int, seed: int) -> Replies:
    """Sends mutated requests of all methods in turn, as bytes."""
    dice, replies = random.Random(seed), Replies()
    async with aio.insecure_channel(public) as people, aio.insecure_channel(admin) as operators:
        [asked] = requests("")[CHAT]
        reply = await people.unary_unary(
            CHAT, chat_pb2.ChatRequest.SerializeToString, chat_pb2.ChatResponse.FromString
        )(asked)
        known = requests(reply.answers[0].receipt.response_id)
        seeds = [(path, message) for path, variants in known.items() for message in variants]

        async def one(number: int) -> None:
            path, message = seeds[number % len(seeds)]
            raw = mutated(message.SerializeToString(), dice)
            code, details = await _call(operators if path.startswith(ADMIN) else people, path, raw)
            replies.codes[code] += 1
            decodes = _decodes(type(message), raw)
            replies.undecodable += not decodes
            if code not in EXPECTED if decodes else code != "INVALID_ARGUMENT":
                replies.unexpected.append(f"{path} {raw.hex()}: {code} {details}")

        await crowd(range(count), AT_ONCE, one)
    return replies


def _decodes(kind: type[Message], raw: bytes) -> bool:
    try:
        kind.FromString(raw)
    except DecodeError:
        return False
    return True


async def _call(channel: aio.Channel, path: str, raw: bytes) -> tuple[str, str]:
    """Code and details. A call without an end of its own is left after its first message."""
    call = channel.unary_stream(path)(raw, timeout=LONGEST_CALL)
    try:
        async for _ in call:
            if path.endswith(ENDLESS):
                return "OK", ""
        return "OK", ""
    except aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    finally:
        call.cancel()


def giants() -> list[bytes]:
    """Prompts that no context holds, as serialized calls, and how they must end."""
    texts = ["a" * 65_000, "é" * 65_000, "😀" * 65_000, "7" * 65_000, " " * 65_000, "hello " * 10_000, "a\n" * 32_000]
    talks = [[text] for text in texts] + [["x"] * 2_047, ["x" * 100] * 20_000, ["y" * 900_000], ["z" * 2_000_000]]
    return [
        chat_pb2.ChatRequest(
            input=chat_pb2.ChatInput(messages=[pb.Message(role=pb.ROLE_USER, content=text) for text in talk])
        ).SerializeToString()
        for talk in talks
    ]


async def overwhelm(public: str, count: int) -> Counter[str]:
    """Sends prompts that are far too long."""
    codes, calls = Counter[str](), giants()
    async with aio.insecure_channel(public) as channel:

        async def one(number: int) -> None:
            code, _ = await _call(channel, CHAT, calls[number % len(calls)])
            codes[code] += 1

        await crowd(range(count), AT_ONCE, one)
    return codes
