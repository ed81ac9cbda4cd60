"""Asks, streams, compares and rates: python examples/client_sync.py [HOST:PORT]"""

from __future__ import annotations

import sys

from thumbwheel_client import DEFAULT_TARGET, Client, Message, ThumbwheelError


def main(target: str) -> None:
    with Client(target, user="ada") as client:
        question = Message("user", "What is the capital of France?")
        answer = client.chat([question], max_tokens=60)
        print(f"{answer.text}\n— {answer.receipt.version}, {answer.finish.usage.completion_tokens} tokens")
        client.rate(answer, "up", reasons=["short"])

        conversation = [question, Message("assistant", answer.text or "…"), Message("user", "And of Italy?")]
        with client.stream(conversation, max_tokens=60) as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)
        print(f"\n— {stream.receipt.version}, {stream.finish.reason}")
        client.correct(stream.answer, "Rome.")

        one, other = client.chat("Name a fruit.", n=2, max_tokens=10)
        client.rank(sorted([one, other], key=lambda answer: len(answer.text)))
        print("rated three times")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:] or [DEFAULT_TARGET])
    except ThumbwheelError as error:
        sys.exit(f"{type(error).__name__}: {error}")
