"""`thumbwheel chat`: talk to the live version, and say what you think of its answers."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated

import grpc
import typer
from rich.console import Console

from cli.connection import CALL_SECONDS, CHAT_SECONDS, Door, Server, User, explain, fail, find
from cli.options import DataDir
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb
from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceStub
from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceStub

HELP = "+ or - rates the last answer · s 1-5 stars · e corrects it · r asks again · /new · /help · /quit"
REFUSALS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""Codes after which the same call may go well a little later."""
TICK_SECONDS = 0.1
"""How late a Ctrl-C at the prompt may be noticed."""


def chat(
    server: Server = "",
    data_dir: DataDir = None,
    user: User = "",
    version: Annotated[str, typer.Option("--version", help="Talk to this version, not the live one.")] = "",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 (always the likeliest) to 2.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes answers repeatable.")] = None,
) -> None:
    """Chat with the live version and rate its answers."""
    sampling = pb.Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    door = find(server, data_dir)
    with door.channel() as channel:
        session = Session(channel, door, user, version, sampling, Console(highlight=False))
        if not session.converse(_read_line):
            raise typer.Exit(1)


class Session:
    """One conversation on a terminal, or on a pipe: then lines in, answers out, and nothing decorates them."""

    def __init__(
        self, channel: grpc.Channel, door: Door, user: str, version: str, sampling: pb.Sampling, console: Console
    ) -> None:
        self._chat = ChatServiceStub(channel)
        self._feedback = FeedbackServiceStub(channel)
        self._server = door.public
        self._metadata = door.identity(user)
        self._version = version
        self._sampling = sampling
        self._console = console
        self._failed = False
        self._start_over()

    def converse(self, read: Callable[[str], str]) -> bool:
        """Until /quit, the end of the input, or Ctrl-C twice. Returns False if a call failed on a pipe."""
        if self._console.is_terminal:
            self._dim(HELP)
        interrupted = False
        while True:
            try:
                # Said in here because the second Ctrl-C may come as soon as this is read.
                if interrupted:
                    self._dim("\nCtrl-C again to leave")
                line = read("you › ").strip()
                interrupted = False
                if line == "/quit":
                    break
                if line:
                    self._obey(line, read)
            except EOFError:
                break
            except KeyboardInterrupt:
                if interrupted:
                    break
                interrupted = True
            except grpc.RpcError as error:
                self._failed = True
                fail(explain(error, self._server))
        return not self._failed or self._console.is_terminal

    def _start_over(self) -> None:
        self._conversation = f"chat-{uuid.uuid4().hex}"
        self._messages: list[pb.Message] = []
        self._receipt: chat_pb2.Receipt | None = None
        self._log_status: chat_pb2.LogStatus.ValueType = chat_pb2.LOG_STATUS_UNSPECIFIED

    def _obey(self, line: str, read: Callable[[str], str]) -> None:
        command, _, argument = line.partition(" ")
        match command, argument.strip():
            case "+" | "-", "":
                self._rate(feedback_pb2.RateRequest(thumb=pb.THUMB_UP if command == "+" else pb.THUMB_DOWN))
            case "s", ("1" | "2" | "3" | "4" | "5") as stars:
                self._rate(feedback_pb2.RateRequest(stars=int(stars)))
            case "e", "":
                self._correct(read)
            case "r", "":
                self._again()
            case "/new", "":
                self._start_over()
                self._dim("a new conversation")
            case "/help", "":
                self._dim(HELP)
            case _:
                self._ask(line)

    def _ask(self, text: str) -> None:
        self._answer([*self._messages, pb.Message(role=pb.ROLE_USER, content=text)])

    def _again(self) -> None:
        """Asks for another answer to the last message; the old one leaves the conversation, its votes stay."""
        if self._receipt is None:
            self._dim("there is no message to answer yet")
            return
        self._answer(self._messages[:-1])

    def _answer(self, messages: Sequence[pb.Message]) -> None:
        """Streams an answer. The conversation is these messages and it, or, if it is broken off, what it was before."""
        chat_input = chat_pb2.ChatInput(
            messages=messages,
            sampling=self._sampling,
            conversation_id=self._conversation,
            version=self._version,
        )
        request = chat_pb2.StreamChatRequest(input=chat_input)
        call = self._chat.StreamChat(request, timeout=CHAT_SECONDS, metadata=self._metadata)
        receipt, text = chat_pb2.Receipt(), ""
        status: chat_pb2.LogStatus.ValueType = chat_pb2.LOG_STATUS_UNSPECIFIED
        try:
            for event in call:
                match event.WhichOneof("event"):
                    case "receipt":
                        receipt = event.receipt
                    case "delta":
                        text += event.delta
                        self._console.out(event.delta, end="", highlight=False)
                        self._console.file.flush()
                    case "finish":
                        status = event.finish.log_status
        except KeyboardInterrupt:
            call.cancel()
            self._dim("\ncancelled")
            return
        # An answer that ended at once has no text, and an empty message must not go into the next request.
        self._messages = [*messages, pb.Message(role=pb.ROLE_ASSISTANT, content=text or "…")]
        self._receipt, self._log_status = receipt, status
        self._console.print()
        self._dim(f"— {receipt.version}" + _why_not_rated(status))

    def _correct(self, read: Callable[[str], str]) -> None:
        """Sends what the answer should have been, and goes on as if it had been that."""
        if self._receipt is None:
            self._dim("there is no answer to correct yet")
            return
        better = read("better › ").strip()
        if better and self._rate(feedback_pb2.RateRequest(edit=better)):
            self._messages[-1] = pb.Message(role=pb.ROLE_ASSISTANT, content=better)

    def _rate(self, request: feedback_pb2.RateRequest) -> bool:
        """Sends a vote on the last answer; False if there is none that can be rated."""
        if self._receipt is None:
            self._dim("there is no answer to rate yet")
            return False
        if self._log_status == chat_pb2.LOG_STATUS_NOT_LOGGED:
            self._dim("this answer was not kept and cannot be rated")
            return False
        request.response_id = self._receipt.response_id
        # The key makes the second try harmless: if the first one arrived after all, it counts once.
        request.idempotency_key = uuid.uuid4().hex
        try:
            self._feedback.Rate(request, timeout=CALL_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            if not (isinstance(error, grpc.Call) and error.code() in REFUSALS):
                raise
            self._feedback.Rate(request, timeout=CALL_SECONDS, metadata=self._metadata, wait_for_ready=True)
        self._dim("rated")
        return True

    def _dim(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)


def _why_not_rated(status: chat_pb2.LogStatus.ValueType) -> str:
    if status == chat_pb2.LOG_STATUS_PENDING:
        return " · the store is away, rate it a little later"
    if status == chat_pb2.LOG_STATUS_NOT_LOGGED:
        return " · not kept, cannot be rated"
    return ""


def _read_line(question: str) -> str:
    """A line from a person or a pipe; nobody is asked on a pipe."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  - line editing and history for input()

        # input() overlooks a Ctrl-C that comes just before it waits for a key (python/cpython#112585), and would then
        # wait for that key; a signal while it waits makes it look at all that came before.
        signal.signal(signal.SIGALRM, lambda *_: None)
        try:
            # In here, so that no Ctrl-C leaves it running: at exit its signal would kill.
            signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
            return input(question)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
