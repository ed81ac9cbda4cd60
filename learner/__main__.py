"""``python -m learner``: the learner alone, as `thumbwheel up` runs it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from thumbwheel import config, logs
from thumbwheel.errors import SetupError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m learner", description="Turns votes into better versions.")
    parser.add_argument("--config", type=Path, help="TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--once", action="store_true", help="run one cycle and stop")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config, arguments.set)
        logs.configure(settings.log, "learner")
        # Not before the configuration is known to be good: torch takes seconds to import.
        from learner import app

        record = asyncio.run(app.run_once(settings) if arguments.once else app.run(settings))
    except SetupError as error:
        print(f"learner: {error}", file=sys.stderr)
        return 2
    if record is not None:
        print(f"{record.batch.cycle_id}: {record.outcome} {record.version} {'; '.join(record.reasons)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
