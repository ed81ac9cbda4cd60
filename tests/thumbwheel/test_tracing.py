from __future__ import annotations

import importlib.util
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.otlp import Receiver, receiving
from thumbwheel import config, tracing
from thumbwheel.errors import SetupError
from thumbwheel.logs import LineFormatter

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found
        tracing.close()


def begin(receiver: Receiver, share: float = 1.0) -> None:
    tracing.configure(config.Tracing(endpoint=receiver.endpoint, share=share), "server")


def test_while_it_is_off_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys\n"
        "from thumbwheel import config, tracing\n"
        "tracing.configure(config.Tracing(), 'server')\n"
        "with tracing.request('a', [('traceparent', 'x')], {}) as step, tracing.span('b'):\n"
        "    step.tell(n=1); step.link(['x']); step.fail('x'); tracing.begin('c').end()\n"
        "    assert tracing.traceparent() == tracing.trace_id() == ''\n"
        "tracing.close()\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("parents", [True, False])
def test_without_the_package_a_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch, parents: bool) -> None:
    def find(name: str) -> None:
        assert name == "opentelemetry.exporter.otlp.proto.http"
        if not parents:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    tracing.require(config.Tracing())
    with pytest.raises(SetupError, match=r"pip install 'thumbwheel\[tracing\]'"):
        tracing.require(config.Tracing(endpoint="http://127.0.0.1:4318/v1/traces"))


def test_an_endpoint_is_an_address() -> None:
    with pytest.raises(SetupError, match=r"tracing\.endpoint = 'localhost:4317'"):
        tracing.require(config.Tracing(endpoint="localhost:4317"))


def test_steps_go_on_with_the_callers_trace(receiver: Receiver) -> None:
    begin(receiver)
    with tracing.request("Chat", [("x-user", "u"), ("traceparent", CALLER)], {"rpc.method": "Chat"}) as step:
        with tracing.span("queue"):
            tracing.begin("decode", {"tokens": 3}).end()
        step.tell(rpc__response__status_code="OK")
    tracing.close()
    chat, queue, decode = receiver.one("Chat"), receiver.one("queue"), receiver.one("decode")
    assert {span.trace_id for span in receiver.spans} == {TRACE}
    assert (chat.parent, queue.parent, decode.parent) == (SPAN, chat.span_id, queue.span_id)
    assert (chat.service, chat.kind, queue.kind) == ("thumbwheel-server", 2, 1)
    assert chat.facts == {"rpc.method": "Chat", "rpc.response.status_code": "OK"}
    assert decode.facts == {"tokens": 3}
    assert not chat.failed


@pytest.mark.parametrize(
    "sent",
    [
        [], ["nonsense"], [CALLER, CALLER], [f"00-{'0' * 32}-{SPAN}-01"], [f"00-{TRACE}-{'0' * 16}-01"],
        [f"ff-{TRACE}-{SPAN}-01"], [CALLER.upper()], [CALLER + "\n"], [b"\xff"],
    ],
)  # fmt: skip
def test_what_is_no_traceparent_begins_a_trace_of_its_own(receiver: Receiver, sent: list[str | bytes]) -> None:
    begin(receiver)
    with tracing.request("Chat", [("traceparent", value) for value in sent], {}):
        pass
    tracing.close()
    assert receiver.one("Chat").parent == ""
    assert receiver.one("Chat").trace_id != TRACE


def test_a_share_of_requests_is_traced_and_all_that_is_rare(receiver: Receiver) -> None:
    begin(receiver, share=0)
    with tracing.request("Chat", [], {}), tracing.span("queue"):
        assert tracing.traceparent() == ""  # nothing would be found under it
    with tracing.request("Asked", [("traceparent", CALLER)], {}):
        assert tracing.trace_id() == TRACE
    with tracing.request("Declined", [("traceparent", CALLER[:-1] + "0")], {}):
        pass
    with tracing.span("cycle"):
        pass
    tracing.close()
    assert {span.name for span in receiver.spans} == {"Asked", "cycle"}


def test_a_failure_is_told_without_its_words(receiver: Receiver) -> None:
    begin(receiver)
    with pytest.raises(ValueError, match="my secret"), tracing.span("queue"):
        raise ValueError("my secret")
    tracing.close()
    assert receiver.one("queue").failed
    assert receiver.one("queue").facts == {"error.type": "ValueError"}
    assert not any(b"my secret" in body for body in receiver.raw)


def test_links_are_bounded_and_none_comes_twice(receiver: Receiver) -> None:
    begin(receiver)
    with tracing.span("cycle") as step:
        step.link(["", "nonsense", CALLER, CALLER])
        step.link(f"00-{number:032x}-{SPAN}-01" for number in range(1, 1000))
    tracing.close()
    links = receiver.one("cycle").links
    assert links == (TRACE, *(f"{number:032x}" for number in range(1, tracing.MAX_LINKS)))


def test_logs_tell_the_trace(receiver: Receiver) -> None:
    begin(receiver)
    record = logging.makeLogRecord({"msg": "event"})
    with tracing.request("Chat", [("traceparent", CALLER)], {}):
        assert f" trace_id={TRACE}" in LineFormatter("logfmt", "server").format(record)
    assert "trace_id" not in LineFormatter("logfmt", "server").format(record)


def test_a_receiver_that_takes_nothing_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing.configure(config.Tracing(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"), "server")
        began = time.monotonic()
        for _ in range(10_000):  # more than the queue holds
            tracing.begin("decode").end()
        assert time.monotonic() - began < 5
        began = time.monotonic()
        tracing.close()
        assert time.monotonic() - began < 5
    assert tracing.traceparent() == ""
