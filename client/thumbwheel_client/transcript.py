"""What has come of a streamed turn so far."""

from __future__ import annotations

from dataclasses import dataclass

from thumbwheel_client.answer import Answer, Finish, Receipt, finish_of, receipt_of
from thumbwheel_client.errors import NotReady
from thumbwheel_client.v1 import chat_pb2


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of the answer with this index. Never splits a character."""

    text: str
    index: int = 0


class Transcript:
    """Reads the events of a turn. The singular properties are about its first answer, often its only one.

    Properties raise NotReady before the stream has come so far.
    """

    def __init__(self) -> None:
        self._receipts: dict[int, Receipt] = {}
        self._texts: dict[int, list[str]] = {}
        self._finishes: dict[int, Finish] = {}

    def add(self, event: chat_pb2.StreamChatResponse) -> Piece | None:
        """Takes the next event; what it adds to a text, if it does."""
        match event.WhichOneof("event"):
            case "receipt":
                self._receipts[event.index] = receipt_of(event.receipt)
                self._texts[event.index] = []
            case "delta":
                self._texts[event.index].append(event.delta)
                return Piece(event.delta, event.index)
            case "finish":
                self._finishes[event.index] = finish_of(event.finish)
        return None

    @property
    def receipt(self) -> Receipt:
        """What answers. There from the first piece on, and what to rate an answer by that was not read to its end."""
        return self.receipts[0]

    @property
    def receipts(self) -> list[Receipt]:
        """What answers, by index."""
        if not self._receipts:
            raise NotReady("nothing has come of this stream yet")
        return [receipt for _, receipt in sorted(self._receipts.items())]

    @property
    def finish(self) -> Finish:
        """How it ended."""
        return self.answer.finish

    @property
    def answer(self) -> Answer:
        """The whole answer."""
        return self._answer(0)

    @property
    def answers(self) -> list[Answer]:
        """All whole answers, by index."""
        return [self._answer(index) for index, _ in enumerate(self.receipts)]

    def _answer(self, index: int) -> Answer:
        if index not in self._finishes:
            raise NotReady("this answer has not been read to its end")
        return Answer("".join(self._texts[index]), self._receipts[index], self._finishes[index])
