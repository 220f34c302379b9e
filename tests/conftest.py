"""What all tests share: the real image sets, system parts, and libraries that keep to themselves."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.browser import chromium, open_page  # noqa: F401 (fixtures for all tests)
from trainer.errors import JobError
from trainer.models import libraries

ROOT = Path(__file__).resolve().parent.parent


def in_ci() -> bool:
    """Whether a test that needs something that is not installed fails instead of being skipped."""
    return os.environ.get("CI", "").lower() == "true"


def needs_library(name: str) -> None:
    """Skip a test, or a file of tests, whose model library is an extra that this machine lacks."""
    if not in_ci() and find_spec(name) is None:
        pytest.skip(f"{name}, an extra, is not installed", allow_module_level=True)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Skip a test that asks for a model whose library is an extra that this machine lacks."""
    with _skipped_without_extra():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Skip the tests of a fixture that asks for such a model."""
    with _skipped_without_extra():
        return (yield)


@contextmanager
def _skipped_without_extra() -> Iterator[None]:
    try:
        yield
    except JobError as error:
        is_missing = any("which is not installed" in problem.rule for problem in error.problems)
        if is_missing and not in_ci():
            pytest.skip(str(error))
        raise


def pytest_configure(config: pytest.Config) -> None:
    """Keep third-party libraries off the network and out of the home directory.

    This happens before any test module, and with it such a library, is imported; processes that tests start
    inherit it.
    """
    # Cache the tests' modules, whatever the environment says: rewriting their assertions takes ten seconds.
    sys.dont_write_bytecode = False
    # A shell starts background jobs with Ctrl-C ignored; tests that send it would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scratch = Path(tempfile.mkdtemp(prefix="trainer-tests-"))
    # leftovers of a server that is still closing its files must not fail the suite
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    (scratch / "ultralytics").mkdir()
    os.environ.update(
        YOLO_CONFIG_DIR=str(scratch / "ultralytics"),
        YOLO_OFFLINE="true",
        YOLO_AUTOINSTALL="false",
        MLFLOW_TRACKING_URI=f"sqlite:///{scratch}/mlflow.db",
        MLFLOW_DISABLE_TELEMETRY="true",
        DO_NOT_TRACK="true",
    )
    # what a developer has set for real work must not reach the tests
    for name in ("TRAINER_WEIGHTS", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)


_SLOW = tuple(
    f"tests/{name}"
    for name in (
        *("conformance/", "sweep/execution/", "training/", "benchmarks/"),
        *("serving/", "models/", "job/test_configs.py", "test_docs.py"),
    )
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What one test process takes as a whole: a file, and of the conformance suite the tests of one model.

    Tests that share what is slow to make stay together so.
    """
    for item in items:
        case = getattr(item, "callspec", None)
        group = item.nodeid.split("::")[0]
        if case is not None and "case" in case.params and "conformance" in group:
            group = str(case.params["case"])
        item.add_marker(pytest.mark.xdist_group(group))
    # Groups are taken in this order. The longest come first, so that the processes end together.
    items.sort(key=lambda item: not item.nodeid.startswith(_SLOW))


@pytest.fixture(autouse=True)
def _own_modules_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packaged model that is loaded puts the code it carries on sys.path, for good.

    Processes started later would find this project's modules there, of which a model carries only some.
    """
    carried = [
        path for path in sys.path if Path(path, "serving", "scorer.py").is_file() and path != str(ROOT)
    ]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in carried])


def pytest_collection_finish() -> None:
    """Exempt imported objects from garbage collection: they stay, and scanning them takes a second."""
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))  # as the environment says again
    gc.collect()
    gc.freeze()


_MAY_GROW_BYTES = 2**29


@pytest.fixture(scope="session")
def _resident_after_collection() -> list[int]:
    """The process's resident memory after each collection, in bytes."""
    return [2**30]


@pytest.fixture(autouse=True)
def _freed_memory_returned(_resident_after_collection: list[int]) -> Iterator[None]:
    """After tests that took much memory, give back to the system what the C library keeps for reuse.

    A collection takes seconds once all libraries are loaded, so it has to be worth it.
    """
    yield
    if sys.platform == "linux" and _resident_bytes() > _resident_after_collection[-1] + _MAY_GROW_BYTES:
        gc.collect()
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # of GNU's library
            library.malloc_trim(0)
        _resident_after_collection.append(_resident_bytes())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def warm_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python processes are forked from one that has imported the slow libraries (see tests/warm.py).

    Not in tests marked with `fresh_processes`: they are about what a process imports, or how.
    """
    if sys.platform == "linux" and not request.node.get_closest_marker("fresh_processes"):
        monkeypatch.setattr(subprocess, "Popen", warm.Popen)


@pytest.fixture
def hide_libraries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """hide_libraries("ultralytics") → its models are as if it were not installed."""

    def hide(*names: str) -> None:
        there = libraries.find_spec
        monkeypatch.setattr(libraries, "find_spec", lambda name: None if name in names else there(name))

    return hide


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets next to the project; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real image sets are not at ../shared/data")
    return folder


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder of published weights; the test is skipped where there is none."""
    folder = ROOT / "weights"
    if not (folder / "tf_efficientnet_lite0.safetensors").is_file():
        pytest.skip("needs published weights: make real-weights")
    return folder


@pytest.fixture(scope="session")
def needs() -> Callable[[str, str], Path]:
    """needs("pg_ctl", "apt-get install postgresql") → the program's path.

    Where the program is missing the test is skipped and says how to install it; under CI=true it fails.
    """

    def find(program: str, install: str) -> Path:
        found = shutil.which(program)
        if found:
            return Path(found)
        message = f"needs {program}, which is not installed: {install}"
        if in_ci():
            pytest.fail(message)
        pytest.skip(message)

    return find
