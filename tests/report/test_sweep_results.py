"""The report of a sweep shows trials, importance of settings and the Pareto front from trials.csv."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.report.page import Page
from trainer.report.sections.setting_importance import setting_importance
from trainer.report.sections.sweep_results import add_sweep_results
from trainer.report.trials_csv import Trial, read_trials
from trainer.runs import Run

HEADER = (
    "trial,state,accuracy,latency_ms,pareto,attempts,best_epoch,epochs,seconds,host,directory,reason,"
    "learning_rate,optimizer,batch_size,model_name"
)


def write(folder: Path, count: int, *, latency: bool = False) -> Run:
    """Write a sweep in which learning rate matters most, optimizer little and batch size not at all."""
    generator = random.Random(0)
    lines = [HEADER]
    for number in range(count):
        rate, optimizer = 10 ** generator.uniform(-4, -1), generator.choice(["sgd", "adamw"])
        value = 0.9 - 0.2 * abs(rate - 0.03) / 0.03 + (0.02 if optimizer == "adamw" else 0)
        values = f"{value},{100 - number},{number % 3 == 0}" if latency else f"{value},,False"
        batch = generator.choice([4, 8, 16])
        lines.append(f"{number},complete,{values},1,2,3,12.5,host,,,{rate},{optimizer},{batch},resnet18")
    lines.append(f"{count},failed,,,False,2,,,,host,,memory ran out,0.1,sgd,4,resnet18")
    (folder / "trials.csv").write_text("\n".join(lines) + "\n")
    return Run(folder)


def page_of(run: Run, best: int = 0) -> Page:
    page = Page("sweep")
    add_sweep_results(page, run, "accuracy", best)
    return page


def charts(page: Page) -> Sequence[str]:
    return [chart.name for chart in page.charts]


def test_importance_ranks_the_setting_that_matters_first(tmp_path: Path) -> None:
    found = setting_importance(read_trials(write(tmp_path, 40).directory / "trials.csv", "accuracy"))
    assert isinstance(found, dict)
    assert next(iter(found)) == "learning_rate"
    assert found["learning_rate"] > 0.7
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == {"learning_rate", "optimizer", "batch_size"}, "the model never varies"


def test_importance_needs_ten_trials(tmp_path: Path) -> None:
    run = write(tmp_path, 9)
    page = page_of(run)
    assert "importance" not in charts(page)
    assert "at least 10 complete trials; there are 9" in page.render()


def test_page_of_a_sweep_shows_trials_and_importance(tmp_path: Path) -> None:
    run = write(tmp_path, 12)
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    page = page_of(run)
    assert charts(page) == ["trial-values", "parallel-coordinates", "importance"]
    text = page.render()
    assert "13: 12 complete, 1 failed" in text
    assert "memory ran out" in text
    parallel = next(chart for chart in page.charts if chart.name == "parallel-coordinates")
    assert "learning_rate, optimizer, batch_size, accuracy" in parallel.description
    assert "The best is trial 0" in parallel.description


def test_pareto_front_is_highlighted(tmp_path: Path) -> None:
    page = page_of(write(tmp_path, 12, latency=True))
    front = next(chart for chart in page.charts if chart.name == "pareto")
    assert "12 points; highlighted: trial 9, trial 6, trial 3, trial 0" in front.description


def test_importance_pools_all_sub_spaces() -> None:
    """The model is a setting like others; settings that some trials lack are left out."""
    trials = [
        Trial(n, "complete", 0.5 + (n % 2) * 0.4, None, False, 1.0, "", "",
              {"model_name": ("a", "b")[n % 2], **({"depth": n} if n % 2 else {})})
        for n in range(20)
    ]  # fmt: skip
    found = setting_importance(trials)
    assert isinstance(found, dict)
    assert list(found) == ["model_name"]
    same = [Trial(n, "complete", 0.5, None, False, 1.0, "", "", {"x": n}) for n in range(12)]
    assert setting_importance(same) == "All trials have the same metric."


def test_trials_of_a_minimised_metric_are_ranked_by_the_lowest(tmp_path: Path) -> None:
    run = write(tmp_path, 9)
    table = tmp_path / "trials.csv"
    table.write_text(table.read_text("utf-8").replace("accuracy", "log_loss"), "utf-8")
    trials = [trial for trial in read_trials(table, "log_loss") if trial.value is not None]
    for trial in trials:
        folder = tmp_path / "trials" / f"{trial.number:04}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"epoch,log_loss\n1,{trial.value}\n", "utf-8")
    lines = table.read_text("utf-8").splitlines()
    header = lines[0].split(",")
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[header.index("directory")] = f"trials/{int(row[0]):04}"
    table.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n", "utf-8")
    page = Page("sweep")
    add_sweep_results(page, run, "log_loss", 0)
    by_epoch = next(chart for chart in page.charts if chart.name == "trials-by-epoch")
    ranked = [f"trial {trial.number}" for trial in sorted(trials, key=lambda trial: trial.value or 0.0)]
    assert all(name in str(by_epoch.html()) for name in ranked[:7])
    assert not any(name in str(by_epoch.html()) for name in ranked[7:])
    assert "the lower its log_loss, the stronger the line" in page.render()
