"""How a server is reached: where it is, who calls, how long a call may take, and which calls are repeated."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import ip_address

import grpc
from grpc import aio

from thumbwheel_client.errors import InvalidInput
from thumbwheel_client.tls import TLS

DEFAULT_TARGET = "127.0.0.1:50051"
CHAT_SECONDS = 110.0
"""Deadline of a question; the server allows up to 120 s."""
VOTE_SECONDS = 30.0
"""Deadline of a vote, all its repetitions together."""

SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": "thumbwheel.v1.FeedbackService", "method": "Rate"},
                    {"service": "thumbwheel.v1.FeedbackService", "method": "Retract"},
                    {"service": "thumbwheel.v1.ChatService", "method": "StreamChat"},
                ],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.3s",
                    "maxBackoff": "5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
"""Which calls gRPC repeats by itself, over about 4 s, when nobody is there or the server or its store is away.

Rate and Retract: all attempts carry one idempotency key, so the vote counts once.
StreamChat: gRPC repeats nothing of which it has seen a first message, and the receipt comes before the first token. So
what is repeated has not been sampled, and neither does a question that kills the engine go on to the next server.
Chat is not repeated: its first message is its last, so nobody can tell whether the lost answer had been sampled.
"""

_ADDRESS = re.compile(r"(?:dns:(?:///)?|ipv4:|ipv6:)?(?:\[(?P<bracketed>[^]]+)\]|(?P<host>[^][:/,]+))(?::\d+)?")
"""One host, with or without a port."""

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", SERVICE_CONFIG),
    # Else a server that was away for long is looked for minutes later, and its votes are repeated to nobody.
    ("grpc.initial_reconnect_backoff_ms", 300),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """A server as a caller reaches it.

    Raises:
        InvalidInput: a key and a name; something that cannot be sent; or a key that everybody on its way could read.
    """

    target: str
    key: str
    user: str
    tls: TLS | None
    chat_seconds: float
    vote_seconds: float

    def __post_init__(self) -> None:
        if self.key and self.user:
            raise InvalidInput("user", "who calls is known from the key alone; leave this out")
        for field, value in (("key", self.key), ("user", self.user)):
            if not (value.isascii() and value.isprintable()):
                raise InvalidInput(field, "must be printable ASCII")
        if self.key and self.tls is None and not on_this_machine(self.target):
            raise InvalidInput("key", f"{self.target} is another machine, and a key goes there over TLS only: give tls")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What tells the server who calls: the key, or a name where it asks for none."""
        if self.key:
            return (("authorization", f"Bearer {self.key}"),)
        return (("x-thumbwheel-user", self.user),) if self.user else ()

    def channel(self) -> grpc.Channel:
        """For code that waits. Nothing is sent before the first call.

        Raises:
            OSError: a file of `tls` cannot be read.
        """
        if self.tls is None:
            return grpc.insecure_channel(self.target, self._options)
        return grpc.secure_channel(self.target, self.tls.credentials(), self._options)

    def async_channel(self) -> aio.Channel:
        """For the event loop that runs.

        Raises:
            OSError: a file of `tls` cannot be read.
        """
        if self.tls is None:
            return aio.insecure_channel(self.target, self._options)
        return aio.secure_channel(self.target, self.tls.credentials(), self._options)

    @property
    def _options(self) -> list[tuple[str, str | int]]:
        options = list(OPTIONS)
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        if on_this_machine(self.target):
            # Else a proxy that http_proxy names is asked for this machine too, and what is sent leaves it after all.
            options.append(("grpc.enable_http_proxy", 0))
        return options


def on_this_machine(target: str) -> bool:
    """Whether what is sent to this target stays here. False for whatever is not plainly so."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    plain = _ADDRESS.fullmatch(target)
    if plain is None:
        return False
    host = plain["bracketed"] or plain["host"]
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
