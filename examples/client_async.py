"""Asks many things at once and rates what comes: python examples/client_async.py [HOST:PORT]"""

from __future__ import annotations

import asyncio
import sys

from thumbwheel_client import DEFAULT_TARGET, AsyncClient, ThumbwheelError

SUBJECTS = ("the sea", "bread", "a bicycle", "rain")


async def describe(client: AsyncClient, subject: str) -> str:
    """An answer piece by piece. Leaving a long one ends its sampling; the others get a thumb."""
    text = ""
    async with client.stream(f"Describe {subject} in a few words.", max_tokens=60) as stream:
        async for piece in stream:
            text += piece.text
            if len(text) > 40:
                return f"{subject}: {text}…"
    await client.rate(stream.answer, "up")
    return f"{subject}: {text}"


async def main(target: str) -> None:
    async with AsyncClient(target, user="ada") as client:
        for line in await asyncio.gather(*(describe(client, subject) for subject in SUBJECTS)):
            print(line)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:] or [DEFAULT_TARGET]))
    except ThumbwheelError as error:
        sys.exit(f"{type(error).__name__}: {error}")
