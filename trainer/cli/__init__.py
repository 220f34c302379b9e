"""The commands: each turns its arguments into a call and prints the result.

A command is a typed function in one of these modules; its signature and docstring are its flags and help.
What it needs is imported when it runs, so that help is fast.
"""

from __future__ import annotations

import io
import logging
import os
import sys

# These modules register the commands.
from trainer.cli import catalog, data, evaluating, preview, scoring, training  # noqa: F401
from trainer.cli.application import app
from trainer.errors import TrainerError
from trainer.full_disk import full_disk_told

__all__ = ["app", "main"]


def main() -> None:
    """Run the program `trainer`. It exits with 1 after a user's mistake and with 130 after Ctrl-C."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # libraries report nothing
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
    logging.raiseExceptions = False  # no traceback for each line that does not fit a full disk
    try:
        with full_disk_told(None, lambda: "repeat the command"):
            try:
                sys.exit(app())
            finally:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        sys.exit(1)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # Python itself would complain on exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
