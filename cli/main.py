"""The command ``thumbwheel``. Only the command that is asked for is imported: the others bring grpc, redis and more."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import typer

from thumbwheel.errors import SetupError, ThumbwheelError

COMMANDS = {
    "up": ("cli.up:up", "Starts everything here: Redis, the server and the learner."),
    "chat": ("cli.chat:chat", "Talks to it; + and - rate the last answer, e corrects it."),
    "versions": ("cli.versions:versions", "Lists the versions and shows who is live."),
    "promote": ("cli.versions:promote", "Makes a version live."),
    "rollback": ("cli.versions:rollback", "Takes the live version back."),
    "unfreeze": ("cli.unfreeze:unfreeze", "Shows which tripwire has frozen the learner, and lets it go on."),
    "keys": ("cli.keys:keys", "Makes, lists and revokes the keys that callers need."),
    "erase": ("cli.erase:erase", "Removes a person's turns and votes."),
    "doctor": ("cli.doctor:doctor", "Looks at everything that has to be right, and says what to mend."),
    "report": ("cli.report:report", "Prints where the page of the latest cycle lies."),
    "export": ("cli.export:export", "Writes the votes with what they are about, for TRL and everybody else."),
    "import": ("cli.importing:import_votes", "Brings votes from a file, for the learner to learn from."),
    "simulate": ("cli.simulate:simulate", "Lets simulated raters with a taste chat and vote."),
    "demo": ("cli.demo:demo", "Proves it: measures, lets raters vote while it learns, measures again."),
    "serve": ("cli.alone:serve", "Runs the server alone, for a Redis that is there already."),
    "learn": ("cli.alone:learn", "Runs the learner alone, for a Redis and a server that are there already."),
}


def main() -> None:
    """Exit codes: 0 done, 1 it did not work, 2 wrong use or set-up, 130 interrupted."""
    try:
        build(sys.argv[1:])(prog_name="thumbwheel")
    except ThumbwheelError as error:
        print(f"thumbwheel: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SetupError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def build(arguments: list[str]) -> typer.Typer:
    """The commands; the one that the arguments ask for as it is, the others as their names and summaries."""
    asked = next((word for word in arguments if not word.startswith("-")), None)
    app = typer.Typer(
        help="A chat model that gets better from its users' thumbs while it serves.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, (place, summary) in COMMANDS.items():
        function = _load(place) if name == asked else _placeholder
        if isinstance(function, typer.Typer):  # a command with commands of its own
            app.add_typer(function, name=name, short_help=summary)
            continue
        app.command(name, short_help=summary, help=summary if name != asked else None)(function)
    return app


def _load(place: str) -> Callable[..., Any] | typer.Typer:
    module, _, function = place.partition(":")
    loaded: Callable[..., Any] | typer.Typer = getattr(importlib.import_module(module), function)
    return loaded


def _placeholder() -> None:
    raise AssertionError("only the command that is asked for runs")


if __name__ == "__main__":
    main()
