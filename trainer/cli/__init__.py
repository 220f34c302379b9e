"""The commands: arguments in, calls out, nothing else. What a command needs is imported when it runs.

A command is a typed function in one of these modules; its signature and docstring are its flags and help.
"""

from __future__ import annotations

import io
import logging
import os
import sys

# they bring the commands
from trainer.cli import catalog, data, evaluating, reporting, scoring, training  # noqa: F401
from trainer.cli.application import app
from trainer.errors import TrainerError

__all__ = ["app", "main"]


def main() -> None:
    """The program `trainer`: exit 1 with the error's text for a user's mistake, 130 after Ctrl-C."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is reported to anybody
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # class names may not fit a terminal's encoding
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.INFO)
    log = logging.getLogger("trainer")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
    try:
        sys.exit(app())
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; Python itself would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
