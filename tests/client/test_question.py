"""Questions as they are sent."""

from __future__ import annotations

import pytest

from thumbwheel_client import InvalidInput, Message
from thumbwheel_client.question import chat_input
from thumbwheel_client.v1 import chat_pb2, record_pb2


def test_a_string_is_the_users_first_message() -> None:
    said = [record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")]
    assert chat_input("Hi", None) == chat_pb2.ChatInput(messages=said, sampling=record_pb2.Sampling())


def test_everything_that_is_given_is_sent() -> None:
    conversation = [Message("system", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d")]
    sent = chat_input(
        conversation,
        3,
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        stop=["x", "y"],
        seed=0,
        conversation_id="c",
        version="v1",
    )
    roles = (record_pb2.ROLE_SYSTEM, record_pb2.ROLE_USER, record_pb2.ROLE_ASSISTANT, record_pb2.ROLE_USER)
    assert sent == chat_pb2.ChatInput(
        messages=[record_pb2.Message(role=role, content=text) for role, text in zip(roles, "abcd", strict=True)],
        sampling=record_pb2.Sampling(max_tokens=7, temperature=0, top_p=0.5, stop=["x", "y"], seed=0),
        n=3,
        conversation_id="c",
        version="v1",
    )
    assert sent.sampling.HasField("temperature"), "0 is not the same as unset"
    assert sent.sampling.HasField("seed")


def test_a_message_may_come_as_json_has_it() -> None:
    said = [Message("system", "a"), Message("user", "b")]
    assert chat_input([{"role": "system", "content": "a"}, said[1]], None) == chat_input(said, None)


def test_one_stop_string_needs_no_list() -> None:
    assert list(chat_input("Hi", None, stop="END").sampling.stop) == ["END"]


def test_what_no_request_can_hold_is_named() -> None:
    for field, ask in {
        "input.n": lambda: chat_input("Hi", 0),
        "input.sampling": lambda: chat_input("Hi", None, max_tokens=-1),
        "input.messages[1].role": lambda: chat_input([Message("user", "a"), Message("robot", "b")], None),  # type: ignore[arg-type]
        "input.messages[0].role": lambda: chat_input([{"role": "robot", "content": "b"}], None),  # type: ignore[typeddict-item]
        "input.messages[0]": lambda: chat_input([{"role": "user"}], None),  # type: ignore[typeddict-item]
        "input.messages[1]": lambda: chat_input(
            [Message("user", "a"), {"role": "user", "content": "b", "name": "c"}], None
        ),  # type: ignore[list-item, typeddict-unknown-key]
        "input.messages[0].content": lambda: chat_input("\ud800", None),
        "input": lambda: chat_input("Hi", 1 << 32),
    }.items():
        with pytest.raises(InvalidInput) as refused:
            ask()
        assert refused.value.field == field


def test_an_option_that_is_none_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="temprature"):
        chat_input("Hi", None, temprature=1)  # type: ignore[call-arg]
