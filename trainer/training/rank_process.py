"""The process of a rank that another process started: `python -m trainer.training.rank_process`.

It reads its orders from standard input. When the input ends, the process that started it is gone.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from trainer.errors import BrokenOffError, NoMemoryError, TrainerError, TrainingError
from trainer.training.devices import Devices
from trainer.training.memory import NO_MEMORY

LOST = 3
"""Exit status of a rank that lost contact with another rank, which is to blame."""
REFUSED = 5
"""Exit status of a rank whose standard error ends with the error that the user should see."""


class LostContactError(BrokenOffError):
    """Another rank stopped responding."""


def packed(function: Callable[..., object], devices: Devices, *arguments: Any) -> bytes:
    """Orders for `main` to call function(devices, ready, *arguments), which calls ready() when it is.

    Raises:
        TrainingError: an argument cannot be pickled, such as a lambda or an open file.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    try:
        return pickle.dumps(spec.name if spec else "") + pickle.dumps((function, devices, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"the callbacks cannot be sent to the processes of the other devices: {error}; make them of what "
            "pickle accepts, or train on one device"
        ) from error


@contextmanager
def silenced(devices: Devices) -> Iterator[None]:
    """Hide everything that a rank other than 0 would print or log, except the error that ends it."""
    sys.stdout.flush()
    stdout = os.dup(1)
    _discard_stdout()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LostContactError:
        raise
    except TrainerError as error:
        kind = NoMemoryError if isinstance(error, NoMemoryError) else TrainingError
        raise kind(f"rank {devices.rank}: {error}") from error
    finally:
        logging.disable(disabled)
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _discard_stdout() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class _Unpickler(pickle.Unpickler):
    """Finds what the starting process defined in its main module, if that has a name to import it by."""

    def __init__(self, file: IO[bytes], main: str) -> None:
        super().__init__(file)
        self.main = main

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__" and self.main:
            return getattr(importlib.import_module(self.main), name)
        return super().find_class(module, name)


def main() -> None:
    """Carry out the orders, then exit with a status that says who is to blame for a failure."""
    ready = os.dup(1)
    _discard_stdout()
    orders = os.fdopen(os.dup(0), "rb")
    function, devices, arguments = _Unpickler(orders, pickle.load(orders)).load()
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    try:
        function(devices, lambda: os.write(ready, b"r"), *arguments)
    except LostContactError as error:
        _exit(LOST, f"\nerror: {error}")
    except NoMemoryError as error:
        _exit(NO_MEMORY, f"\nerror: {error}")
    except TrainerError as error:
        _exit(REFUSED, f"\nerror: {error}")
    except KeyboardInterrupt:
        _exit(130, "interrupted")


def _exit_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _exit(status: int, message: str) -> None:
    """Exit at once, without waiting for other ranks: the starting process waits for the message."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
