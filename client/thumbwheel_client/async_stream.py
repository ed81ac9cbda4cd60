"""A streamed turn, for code that runs on an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from thumbwheel_client.errors import ThumbwheelError
from thumbwheel_client.transcript import Piece, Transcript
from thumbwheel_client.translation import translated

if TYPE_CHECKING:  # generic only for the type checker
    from grpc.aio import UnaryStreamCall

    from thumbwheel_client.v1.chat_pb2 import StreamChatRequest, StreamChatResponse

    Call = UnaryStreamCall[StreamChatRequest, StreamChatResponse]


class AsyncStream(Transcript):
    """Iterates over pieces of text as they are sampled. Use it in an `async with`: leaving that ends the sampling, too.

    Iterating raises whatever goes wrong on the way. After `aclose` it just ends.
    """

    def __init__(self, call: Call, closed: Callable[[], bool]) -> None:
        """
        Args:
            closed: whether the client has been closed.
        """
        super().__init__()
        self._call = call
        self._events = aiter(call)
        self._client_closed = closed
        self._left = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        while True:
            try:
                with translated(lambda: self._left or self._client_closed()):
                    event = await anext(self._events, None)
            except ThumbwheelError:
                if self._left:
                    raise StopAsyncIteration from None
                raise
            if event is None:
                raise StopAsyncIteration
            if (piece := self.add(event)) is not None:
                return piece

    async def aclose(self) -> None:
        """Cancels what is left of it, at the server too."""
        self._left = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
