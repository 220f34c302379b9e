"""What the benchmarks' tables rest on: alternation, ratios, verdicts, memory, absent peers."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from benchmarks import measuring
from benchmarks.contenders import common
from benchmarks.measuring import Measurements


def test_contenders_alternate_and_the_order_turns() -> None:
    asked: list[str] = []

    def contender(name: str) -> Callable[[], Measurements]:
        def measure() -> Measurements:
            asked.append(name)
            return {"speed": float(len(asked))}

        return measure

    found, absent = measuring.alternate({name: contender(name) for name in "abc"}, 3)
    assert asked == list("abcbcacab")
    assert [measurements["speed"] for measurements in found["a"]] == [1, 6, 8]
    assert absent == {}


def test_peers_that_are_absent_or_fail_are_named_and_the_others_measured() -> None:
    def is_absent() -> Measurements:
        measuring.need("no_such_module_at_all", "such-a-package")
        return {}

    def fails() -> Measurements:
        measuring.run([sys.executable, "-c", "raise SystemExit('no luck')"])
        return {}

    found, absent = measuring.alternate({"ours": lambda: {"speed": 2.0}, "a": is_absent, "b": fails}, 2)
    assert found == {"ours": [{"speed": 2.0}] * 2}
    assert absent == {"a": "not installed: pip install such-a-package", "b": "failed in round 1: no luck"}


def test_ratios_are_of_the_same_round_and_above_one_where_ours_is_better() -> None:
    ours, peers = [{"s": 2.0}, {"s": 4.0}, {"s": 9.0}], [{"s": 4.0}, {"s": 8.0}, {"s": 9.0}]
    assert measuring.ratios(ours, peers, "s", less_is_better=True) == [2, 2, 1]
    assert measuring.ratios(ours, peers, "s") == [0.5, 0.5, 1]
    nothing = measuring.ratios([{"s": 0.0}, {"s": 1.0}], [{"s": 2.0}, {"s": 0.0}], "s")
    assert nothing == [0], "what ours failed to do counts"
    assert measuring.verdict([0.5, 1.2, 1.3], 1.2) == "≥ 1.2: met"
    assert measuring.verdict([0.5, 1.1, 1.3], 1.2) == "≥ 1.2: **missed**"
    assert measuring.spread([3.0, 1.0, 2.0]) == "2 (1–3)"
    assert measuring.spread([]) == "–", "a contender that is absent"


def test_peak_memory_is_of_the_process_and_its_children() -> None:
    child = "import time; held = b'x' * 150_000_000; time.sleep(2.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    _, costs = measuring.run([sys.executable, "-c", code])
    assert 150 < costs["peak_mb"] < 250
    assert costs["wall_seconds"] > 2.5


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="No module named nothing_at_all"):
        measuring.run_python("nothing_at_all", {})


def test_tables_are_markdown() -> None:
    assert measuring.table(("what", "s"), [("a | b", 1.5)]).splitlines() == [
        "| what   |   s |",
        "|--------|----:|",
        r"| a \| b | 1.5 |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.01234, "0.0123"), (0.00012, "0.00012")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert measuring.number(value) == text


def test_the_clock_counts_epochs_after_the_first_and_leaves_out_what_lies_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(common.time, "perf_counter", lambda: now)

    def trained(clock: common.Clock) -> Measurements:
        nonlocal now
        for seconds in (9.0, 2.0, 4.0, 1.0):
            clock.start()
            for images in (16, 16, 8):
                now += seconds / 3
                clock.step(images)
            clock.stop()
            now += 50.0  # an evaluation
        return clock.measurements()

    measurements = trained(common.Clock("cpu"))
    assert measurements["epoch_seconds"] == pytest.approx(2)
    assert measurements["images_per_second"] == pytest.approx(20)
    assert 0 < measurements["first_step_seconds"] < 24 * 3600
    assert trained(common.Clock("cpu", counted=2))["epoch_seconds"] == pytest.approx(3)
