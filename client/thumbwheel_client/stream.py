"""A streamed turn, for code that waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from thumbwheel_client.errors import ThumbwheelError
from thumbwheel_client.transcript import Piece, Transcript
from thumbwheel_client.translation import translated

if TYPE_CHECKING:  # known to the type checker only
    from grpc import _CallIterator

    from thumbwheel_client.v1.chat_pb2 import StreamChatResponse

    Call = _CallIterator[StreamChatResponse]


class Stream(Transcript):
    """Iterates over pieces of text as they are sampled. Use it in a `with`: leaving that ends the sampling, too.

    Iterating raises whatever goes wrong on the way. After `close` it just ends.
    """

    def __init__(self, call: Call, closed: Callable[[], bool]) -> None:
        """
        Args:
            closed: whether the client has been closed.
        """
        super().__init__()
        self._call = call
        self._client_closed = closed
        self._left = False

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while True:
            try:
                with translated(self._client_closed):
                    event = next(self._call, None)
            except ThumbwheelError:
                if self._left:
                    raise StopIteration from None
                raise
            if event is None:
                raise StopIteration
            if (piece := self.add(event)) is not None:
                return piece

    def close(self) -> None:
        """Cancels what is left of it, at the server too. Any thread may call this."""
        self._left = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
