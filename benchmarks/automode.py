"""Compares AutoMode with simpler ways to spend the same time.

    make real-weights                                                     # once
    python benchmarks/automode.py --data-root ../shared/data              # resumes if it was interrupted
    python benchmarks/automode.py --data-root ../shared/data --table      # prints the results so far

All contenders fine-tune the same network from the same weights on the sets of few_images.py, and choose by
the accuracy on a fifth of the training images, the same fifth for all. The accuracy in the table is that of
the chosen checkpoint on the set's own validation images, which none of them saw.

- one run: the modern recipe as it is; takes a fraction of the time
- long run: the modern recipe with three times its epochs
- presets: the three settings of PRESETS, one after the other
- random: settings drawn at random from AutoMode's search space
- automode: its first trials, then what its sampler proposes; its policy prunes

Time is the CPU time of one thread that training and evaluating take. It does not depend on the machine's
load, so trials run in this process, with the sampler and the policy of the product: starting processes and
packaging are not counted. A trial that would end after `--seconds` does not count, except the first.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages

import optuna
import torch
from lightning import Callback, Trainer

import trainer as product
from benchmarks import few_images, measuring
from benchmarks.accuracy import Results, judgement, shown
from benchmarks.measuring import say
from trainer.automode import plan as auto
from trainer.automode.data_statistics import measure_data
from trainer.data.training_data import Data
from trainer.files import write_atomically
from trainer.runs import Run
from trainer.sweep.execution.inputs import read_data
from trainer.sweep.search import prepare_search
from trainer.training.fit import fit
from trainer.training.packaging import package

PRESETS: tuple[dict[str, Any], ...] = (
    {"recipe": "modern"},
    {"recipe": "modern", "learning_rate": 3e-4},
    {"recipe": "modern", "probe_first": True},
)
SETS = ("few", "imbalanced", "noisy", "fridge")
METRIC = "accuracy"
MAX_TRIALS = 10


@dataclass
class Trial:
    """A run: the metric at each evaluation, the best, the CPU seconds, and the metric on the test set."""

    values: list[float] = field(default_factory=list)
    best: float = 0.0
    seconds: float = 0.0
    test: float = 0.0
    pruned: bool = False


class _Watch(Callback):
    """Hands each evaluation to `should_stop`, as the sweep's trials report to their study."""

    def __init__(self, values: list[float], should_stop: Callable[[int, float], bool]) -> None:
        self.values, self.should_stop, self.stopped = values, should_stop, False

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if module.evaluated_epoch != trainer.current_epoch:
            return
        self.values.append(module.metrics[METRIC])
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        self.stopped = self.should_stop(len(self.values), self.values[-1]) and not is_last
        trainer.should_stop = trainer.should_stop or self.stopped


class Bench:
    """One set and one seed; a run that several contenders need is trained once."""

    def __init__(self, train: Path, test: Path, task: Any, seed: int, scratch: Path, arguments: Any) -> None:
        size = arguments.image_size
        self.job = product.Job(
            task=task, training_data=(str(train),), model=arguments.model,
            weights=str(arguments.weights.resolve()), gpus=0, tracking_uri="none",
            settings={
                "training_crop_size": size, "validation_crop_size": size, "number_of_workers": 0,
                "random_seed": seed,
            },
        )  # fmt: skip
        self.data: Data = read_data(self.job)
        self.test, self.seconds, self.scratch = test, arguments.seconds, scratch
        self.cache: Path = arguments.trials
        self.key = f"{train.stem} {arguments.model} {size}px seed {seed}"

    def train(
        self, settings: dict[str, Any], should_stop: Callable[[int, float], bool] = lambda *_: False
    ) -> Trial:
        """Train with these settings, or replay a run that had them."""
        known = json.loads(self.cache.read_text()) if self.cache.is_file() else {}
        job = self.job.changed("", settings={**self.job.settings, **settings})
        resolved = job.for_images(len(self.data.train)).resolve_settings()
        key = f"{self.key} {resolved.model_dump_json()}"
        if key in known:
            return _replayed(Trial(**known[key]), should_stop)
        trial, began = Trial(), time.process_time()
        watch = _Watch(trial.values, should_stop)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            job = job.changed("", output=Path(folder) / "run")
            run = fit(job, callbacks=[watch], packages=False)
            trial.seconds, trial.pruned = time.process_time() - began, watch.stopped
            if not trial.pruned:
                trial.best = run.read_result().value  # of a probe, too, which has no epochs
                trial.test = self._tested(run)
                write_atomically(self.cache, json.dumps({**known, key: vars(trial)}, indent=1))
        return trial

    def _tested(self, run: Run) -> float:
        package(run, self.data, into=run, on_gpu=False)
        evaluation = product.evaluate(run, data=str(self.test), resamples=0)
        return float(evaluation.metrics[METRIC])

    def best_of(self, trials: Iterator[Trial]) -> tuple[float, int, float]:
        """Return the test metric of the best trial that ended in time, the trials' number and their time."""
        ended: list[Trial] = []
        spent = 0.0
        for trial in trials:
            if ended and spent + trial.seconds > self.seconds:
                break
            spent += trial.seconds
            ended.append(trial)
        best = max((trial for trial in ended if not trial.pruned), key=lambda trial: trial.best)
        return best.test, len(ended), spent

    def presets(self, *presets: dict[str, Any]) -> Iterator[Trial]:
        for settings in presets:
            yield self.train(settings)

    def long_run(self) -> Iterator[Trial]:
        job = self.job.changed("", settings={**self.job.settings, "recipe": "modern"})
        epochs = job.for_images(len(self.data.train)).resolve_settings().number_of_epochs
        yield self.train({"recipe": "modern", "number_of_epochs": 3 * epochs})

    def automode(self, *, random: bool = False) -> Iterator[Trial]:
        """The trials that AutoMode proposes, or random ones from its search space."""
        minutes = max(1, round(self.seconds / 60))
        limits = {"max_trials": MAX_TRIALS, "timeout_minutes": minutes}
        chosen = auto.plan(self.job.changed("", limits=limits), measure_data(self.data), gpus=0)
        job = chosen.job
        if random:
            job = job.changed("", sweep={"sampling_algorithm": "random"})
        search = prepare_search(job)
        study = optuna.create_study(direction="maximize", sampler=search.sampler, pruner=search.pruner)
        if not random:
            chosen.first_trials.enqueue_missing(study, search.space, MAX_TRIALS)
        for _ in range(MAX_TRIALS):
            asked = study.ask()

            def should_stop(step: int, value: float, asked: optuna.Trial = asked) -> bool:
                asked.report(value, step)
                return asked.should_prune()

            proposed = job.for_trial(search.space.suggest(asked)).settings
            trial = self.train(dict(proposed), should_stop)
            state = optuna.trial.TrialState.PRUNED if trial.pruned else optuna.trial.TrialState.COMPLETE
            study.tell(asked, None if trial.pruned else trial.best, state)
            yield trial


def _replayed(trial: Trial, should_stop: Callable[[int, float], bool]) -> Trial:
    for step, value in enumerate(trial.values, start=1):
        if should_stop(step, value) and step < len(trial.values):
            seconds = trial.seconds * step / len(trial.values)
            return Trial(trial.values[:step], seconds=seconds, pruned=True)
    return trial


CONTENDERS: dict[str, Callable[[Bench], Iterator[Trial]]] = {
    "one run": lambda bench: bench.presets(PRESETS[0]),
    "automode": Bench.automode,
    "presets": lambda bench: bench.presets(*PRESETS),
    "random": lambda bench: bench.automode(random=True),
    "long run": Bench.long_run,
}


def key_of(name: str, contender: str, arguments: Any) -> str:
    return f"{name} {arguments.model} {arguments.image_size}px {arguments.seconds:g}s {contender}"


def row(name: str, results: Results, arguments: Any) -> list[str]:
    values = {each: results.of(key_of(name, each, arguments), arguments.seeds) for each in CONTENDERS}
    wanted = len(arguments.seeds or range(arguments.rounds))
    others = [each for each in CONTENDERS if each != "automode"]
    return [
        name,
        *(shown(values[each], wanted) for each in CONTENDERS),
        *(judgement(values["automode"], values[each]) for each in others),
    ]


def mean_row(results: Results, arguments: Any) -> list[str]:
    """The means over sets, of contenders that are measured on all of them."""
    cells = []
    for each in CONTENDERS:
        found = [results.of(key_of(name, each, arguments), arguments.seeds) for name in arguments.only]
        whole = all(len(values) >= len(arguments.seeds or range(arguments.rounds)) for values in found)
        cells.append(f"{statistics.mean(map(statistics.mean, found)):.3f}" if whole else "–")
    return ["mean", *cells, *("" for _ in range(len(CONTENDERS) - 1))]


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=3, seeds=True)
    few_images.add_arguments(parser, __file__, image_size=96, sets=SETS, contenders=CONTENDERS)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="CPU time of each contender [default: 60]"
    )
    trials = Path(__file__).with_name("automode-trials.json")
    parser.add_argument("--trials", type=Path, default=trials, help="trained runs, to be reused")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.rounds, arguments.seconds, arguments.image_size, arguments.only = 1, 1.0, 32, SETS[:1]
    results = Results(arguments.results)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        benches: dict[tuple[str, int], Bench] = {}
        for key, name, contender, seed in few_images.pending(results, arguments, key_of):
            say(key)
            if (name, seed) not in benches:
                files = few_images.files_of(name, seed, arguments.data_root.resolve(), scratch)
                benches = {(name, seed): Bench(*files, seed, scratch, arguments)}
            commit = measuring.commit()
            bench = benches[name, seed]
            value, count, spent = bench.best_of(CONTENDERS[contender](bench))
            results.add(key, value, commit)
            say(f"  {value:.3f}; {count} trials, {spent:.0f} s")
    print(measuring.heading("AutoMode", "torch", "lightning", "timm", "optuna"))
    others = [each for each in CONTENDERS if each != "automode"]
    headers = ("set", *CONTENDERS, *(f"automode − {each}" for each in others))
    rows = [row(name, results, arguments) for name in arguments.only]
    print(measuring.table(headers, [*rows, mean_row(results, arguments)]))
    print(f"\nTrained at commits: {', '.join(results.commits(arguments.only)) or 'none yet'}.")


if __name__ == "__main__":
    main()
