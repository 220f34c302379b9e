"""The table of a sweep's trials."""

from __future__ import annotations

from rich.console import Console

from trainer.sweep.execution.trial_records import Record, render


def test_table_shows_reasons_with_brackets() -> None:
    reason = (
        "another rank does not answer any more ([/third_party/gloo/pair.cc:561] Connection closed by peer)"
    )
    failed = Record(0, "failed", {}, (), None, 1, {"reason": reason}, None)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(render([failed], "accuracy"))
    assert reason in captured.get()
