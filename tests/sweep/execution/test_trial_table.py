"""The table of a sweep's trials."""

from __future__ import annotations

from rich.console import Console

from trainer.sweep.execution.messages import UNDEFINED_METRIC
from trainer.sweep.execution.trial_records import Record, best_of, pareto_front, render, why_none_is_best


def test_table_shows_reasons_with_brackets() -> None:
    reason = (
        "another rank does not answer any more ([/third_party/gloo/pair.cc:561] Connection closed by peer)"
    )
    failed = Record(0, "failed", {}, (), None, 1, {"reason": reason}, None)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(render([failed], "accuracy"))
    assert reason in captured.get()


def test_best_trial_has_the_highest_metric_or_the_lowest_loss() -> None:
    objectives = [(0.5, 30.0), (0.2, 20.0), (0.9, 10.0), (0.1, 90.0)]
    records = [Record(n, "complete", {}, values, None, 1, {}, None) for n, values in enumerate(objectives)]
    best = {metric: best_of(records, metric) for metric in ("recall", "log_loss")}
    assert {metric: record.number for metric, record in best.items() if record} == {
        "recall": 2,
        "log_loss": 3,
    }
    within = best_of(records, "log_loss", max_latency=50)
    assert within is not None
    assert within.number == 1
    assert pareto_front(records, "recall") == {2}
    assert pareto_front(records, "log_loss") == {1, 2, 3}


def test_a_metric_that_no_trial_could_compute_is_the_reason_for_no_best_one() -> None:
    undefined, crashed = ({"reason": reason} for reason in (UNDEFINED_METRIC, "memory ran out"))
    records = [Record(n, "failed", {}, (), None, 1, undefined, None) for n in range(2)]
    said = (
        "AUC_macro was undefined in {}, so none is the best: the validation data lack what it measures; "
        "add such images, or choose another --primary-metric"
    )
    assert why_none_is_best(records, "AUC_macro") == said.format("every trial")
    records.append(Record(2, "failed", {}, (), None, 1, crashed, None))
    assert why_none_is_best(records, "AUC_macro") == said.format("2 of 3 trials")
    assert why_none_is_best(records[2:], "AUC_macro", 3) == (
        "no trial finished within 3 ms; trials.csv has the reason for each"
    )
