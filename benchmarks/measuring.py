"""Measures contenders in alternation and prints medians, ratios and machine facts as Markdown.

A contender is a function that measures once and returns measurements by name. Most contenders start a
process of their own (`run`), so that one library's imports, threads and caches do not affect the next.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from trainer.cores import available_cores

ROOT = Path(__file__).resolve().parent.parent
Measurements = dict[str, float]
NOT_MEASURED = "not measured yet"


class Absent(Exception):  # noqa: N818 (reported, not an error)
    """A peer is not installed; its row in the table says so."""


def need(module: str, install: str | None = None) -> None:
    """Check that a peer is installed.

    Raises:
        Absent: the module cannot be imported.
    """
    if find_spec(module) is None:
        raise Absent(f"not installed: pip install {install or module}")


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    timeout: float = 3600,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> tuple[str, Measurements]:
    """Run a command and return its standard output, `wall_seconds` and `peak_mb`.

    `peak_mb` is the peak of the summed proportional set sizes of the process and its descendants, sampled at
    least once per second: memory that forked workers share counts once.

    Raises:
        RuntimeError: the command failed; the message contains the end of its output.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=errors, env=environment, cwd=directory
        )
        peak = _Peak(process.pid)
        try:
            process.wait(timeout)
        finally:
            seconds = time.perf_counter() - began
            peak.stop()
            if process.poll() is None:
                process.kill()
                process.wait()
        for stream in (out, errors):
            stream.seek(0)
        text, complaint = out.read(), errors.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))[:300]} failed:\n{(text + complaint)[-3000:]}")
    return text, {"wall_seconds": seconds, "peak_mb": peak.bytes / 1e6}


def run_python(module: str, options: Mapping[str, Any], **others: Any) -> Measurements:
    """Run `python -m MODULE OPTIONS-AS-JSON`; return the measurements in its last line and those of `run`.

    Raises:
        Absent: the last line is {"absent": "…"}.
    """
    text, costs = run([sys.executable, "-m", module, json.dumps(options)], **others)
    answer = json.loads(text.strip().splitlines()[-1])
    if "absent" in answer:
        raise Absent(answer["absent"])
    return {**costs, **answer}


class _Peak:
    """Samples the memory of a process and its descendants in a thread."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._process = psutil.Process(pid)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = 0.05  # short enough for short commands; it grows, so that long ones are not disturbed
        while True:
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                return
            self.bytes = max(self.bytes, sum(map(_memory, family)))
            if self._ended.wait(pause):
                return
            pause = min(1.0, 1.5 * pause)


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.Error:
        return 0


def alternate(
    contenders: Mapping[str, Callable[[], Measurements]], rounds: int
) -> tuple[dict[str, list[Measurements]], dict[str, str]]:
    """Measure each contender once per round; each round starts with the next contender.

    Returns:
        The measurements of each contender by round, and the reasons why others could not be measured.
    """
    names = list(contenders)
    found: dict[str, list[Measurements]] = {name: [] for name in names}
    absent: dict[str, str] = {}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in absent:
                continue
            say(f"round {number + 1}/{rounds}: {name}")
            try:
                found[name].append(contenders[name]())
            except Absent as error:
                absent[name] = str(error)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                say(str(error))
                last = (str(error).strip() or type(error).__name__).splitlines()[-1]
                absent[name] = f"failed in round {number + 1}: {last[:120]}"
    return {name: measurements for name, measurements in found.items() if name not in absent}, absent


def median(found: Sequence[Measurements], name: str) -> float:
    """Return the median of a measurement over the rounds."""
    return statistics.median(measurements[name] for measurements in found)


def spread(values: Sequence[float]) -> str:
    """Format the median with the smallest and the largest value; a dash if there are no values."""
    if not values:
        return "–"
    middle = statistics.median(values)
    return f"{number(middle)} ({number(min(values))}–{number(max(values))})"


def ratios(
    ours: Sequence[Measurements], peers: Sequence[Measurements], name: str, *, less_is_better: bool = False
) -> list[float]:
    """Return how many times better ours is than the peer's, by round; noise shared by a round cancels out."""
    pairs = [(a[name], b[name]) for a, b in zip(ours, peers, strict=False)]
    better = [(b, a) if less_is_better else (a, b) for a, b in pairs]
    return [figure / by for figure, by in better if by]


def verdict(values: Sequence[float], goal: float | None) -> str:
    """Format a goal for the median of ratios and whether it is met."""
    if goal is None or not values:
        return "–"
    return f"≥ {goal:g}: " + ("met" if statistics.median(values) >= goal else "**missed**")


def number(value: float) -> str:
    """Format a number with three significant digits and without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a Markdown table with the first column left-aligned and the others right-aligned."""
    cells = [[str(cell).replace("|", r"\|") for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = [
        "| " + " | ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ) + " |"
        for row in cells
    ]  # fmt: skip
    rule = "|" + "|".join(
        "-" * (width + 2) if not column else "-" * (width + 1) + ":" for column, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"{rule}|", *lines[1:]])


def heading(title: str, *packages: str) -> str:
    """Format a section's title, followed by a line with date, machine, versions and command."""
    at = commit()
    facts = f"{date.today().isoformat()}{at and f', commit {at}'}; {machine()}; {versions(*packages)}"
    return f"## {title}\n\n{facts}; `{command()}`\n"


def commit() -> str:
    """Return the git commit, such as "0123abc" or "0123abc-dirty"; empty outside a git repository."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7", "--exclude", "*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def command() -> str:
    """Return the command line of this script."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    return " ".join(["python", str(shown), *sys.argv[1:]])


def machine() -> str:
    """Describe the machine: usable cores, architecture, memory, system, GPUs and load."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{available_cores()} cores of {platform.machine()}, {memory:.0f} GiB, {platform.system()}, "
        f"{', '.join(gpus) or 'no GPU'}, load {os.getloadavg()[0]:.1f} at the start"
    )


def versions(*packages: str) -> str:
    """List the versions of Python and packages."""
    found = [f"Python {platform.python_version()}"]
    for name in packages:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def hide_gpus(device: str) -> None:
    """If `device` is "cpu", hide GPUs from processes started later: some libraries use one unasked."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def say(text: str) -> None:
    """Print progress to standard error; standard output is for the tables."""
    print(text, file=sys.stderr, flush=True)


def arguments(
    description: str | None,
    *,
    rounds: int | None = 3,
    device: bool = False,
    tiny: bool = True,
    seeds: bool = False,
) -> argparse.ArgumentParser:
    """Make a parser with the flags that benchmarks share.

    Args:
        description: of the script.
        rounds: default number of rounds; None for a script that measures once.
        device: whether the script supports GPUs.
        tiny: whether the script can run as a smoke test, whose measurements mean nothing.
        seeds: whether each round trains with a seed, by default the round's number.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if device:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="[default: cpu]")
    if rounds is not None:
        number = parser.add_mutually_exclusive_group()
        number.add_argument("--rounds", type=int, default=rounds, help=f"[default: {rounds}]")
        if seeds:
            number.add_argument(
                "--seeds",
                type=int,
                nargs="+",
                help="a round for each, and only these in the table [default: 0 to ROUNDS - 1]",
            )
    if tiny:
        parser.add_argument(
            "--tiny", action="store_true", help="smoke test with sizes at which measurements mean nothing"
        )
    return parser
