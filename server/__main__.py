"""``python -m server``: the serving half alone. ``thumbwheel up`` starts it with everything it needs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import uvloop

from server.app import serve
from thumbwheel import config, logs
from thumbwheel.errors import SetupError, ThumbwheelError


def main() -> int:
    """0: stopped by a signal; 1: a part failed, start it anew; 2: the set-up is wrong."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("--config", type=Path, help="a TOML file; default: thumbwheel.toml if there is one")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="overrides one value")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config, arguments.set)
        logs.configure(settings.log, "server")
        uvloop.run(serve(settings))
    except SetupError as error:
        print(f"thumbwheel server: {error}", file=sys.stderr)
        return 2
    except ThumbwheelError as error:
        logging.getLogger("thumbwheel.server").error("stopped", extra={"reason": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # Everything that must be closed is. Python's own taking apart of torch and vllm would only add seconds.
    os._exit(code)
