"""Compares a finished run of Azure AutoML with the same job file trained here.

    python benchmarks/azure.py --config job.yml --azure-run RUN_ID \\
        --tracking-uri azureml://REGION.api.azureml.ms/mlflow/v1.0/subscriptions/… \\
        [--endpoint https://NAME.REGION.inference.ml.azure.com/score --key-file key.txt] \\
        [--price-per-hour 3.06]

The run is read through MLflow; an azureml:// URL needs `pip install azureml-mlflow azure-identity` and a
login (`az login`). RUN_ID is the job's name in the studio. For a sweep, metrics are those of the best
trial, time is that of the whole job, and cost is that of all trials, each on a machine of its own. Flags
after `--` are passed to `trainer fit`:

    … --price-per-hour 3.06 -- --data-asset fridge-items=data/fridge --weights /models

With an endpoint, the validation images are sent to it and to `trainer serve` of the new model in turn, one
at a time. The key is read from a file, so that it does not end up in the shell history, and is never
printed.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ would shadow packages
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import httpx

from benchmarks import measuring
from benchmarks.measuring import number, say
from trainer.data.reading.fetching import local_path
from trainer.data.reading.jsonl import read
from trainer.errors import TrainerError
from trainer.job.job import Job
from trainer.metric_names import is_minimised
from trainer.report.trials_csv import TRIALS_FILE, read_trials
from trainer.runs import Run

BEST_CHILD_TAG = "automl_best_child_run_id"
PARENT_TAG = "mlflow.parentRunId"
_READY_SECONDS = 180


@dataclass(frozen=True)
class Side:
    """One side of the comparison.

    Attributes:
        metrics: of the best epoch, by the reference's names.
        seconds: duration of the whole job.
        best_seconds: duration of the trial that the metrics are from.
        machine_seconds: machine time that is paid for; parallel trials on Azure run on a machine each.
        epochs: number of trained epochs; None if unknown.
    """

    metrics: Mapping[str, float]
    seconds: float
    best_seconds: float
    machine_seconds: float
    epochs: int | None = None


def read_azure(tracking_uri: str, run_id: str, primary_metric: str) -> Side:
    """Read a finished run of Azure AutoML for Images at the epoch with its best primary metric.

    Raises:
        SystemExit: the run cannot be read, has not finished, or has no such metric; says what to do.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri)
        run = client.get_run(run_id)
    except (MlflowException, ModuleNotFoundError) as error:
        hint = "; pip install azureml-mlflow azure-identity" if tracking_uri.startswith("azureml:") else ""
        raise SystemExit(
            f"{tracking_uri}: the run {run_id} cannot be read: {str(error).splitlines()[0]}{hint}"
        ) from None
    if run.info.status != "FINISHED" or run.info.end_time is None:
        raise SystemExit(f"the run {run_id} is {run.info.status}; only a finished one can be compared")
    best = _best_of(client, run, primary_metric)
    history = {
        name: {metric.step: metric.value for metric in client.get_metric_history(best.info.run_id, name)}
        for name in best.data.metrics
    }
    if not history.get(primary_metric):
        raise SystemExit(
            f"the run {best.info.run_id} has no {primary_metric}, but "
            f"{', '.join(sorted(history)) or 'no metrics'}"
            "; is it of the same task as the job file?"
        )
    steps = history[primary_metric]
    sign = -1 if is_minimised(primary_metric) else 1
    at = max(steps, key=lambda step: (sign * steps[step], -step))
    # Metrics that were logged once, at the end, are those of the best epoch.
    metrics = {name: values.get(at, values[max(values)]) for name, values in history.items()}
    seconds = _seconds(run)
    trials = [_seconds(child) for child in _children(client, run)]
    epochs = len(steps) if len(steps) > 1 else None
    return Side(metrics, seconds, _seconds(best), sum(trials) or seconds, epochs)


def _children(client: Any, run: Any) -> list[Any]:
    """Return the trials of a job."""
    query = f"tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    return list(client.search_runs([run.info.experiment_id], query, max_results=1000))


def _seconds(run: Any) -> float:
    """Return the duration of a run; 0 if it never ended."""
    return (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else 0.0


def _best_of(client: Any, run: Any, primary_metric: str) -> Any:
    """Return the run that has the metrics: the best child of an AutoML job, else the run itself."""
    if BEST_CHILD_TAG in run.data.tags:
        return client.get_run(run.data.tags[BEST_CHILD_TAG])
    if primary_metric in run.data.metrics:
        return run
    scored = [child for child in _children(client, run) if primary_metric in child.data.metrics]
    best = min if is_minimised(primary_metric) else max
    return best(scored, key=lambda child: child.data.metrics[primary_metric], default=run)


def train(config: Path, output: Path, flags: Sequence[str]) -> Run:
    """Run `trainer fit` with the job file; an unfinished run is resumed, and a finished one used as it is."""
    if not (output / "result.json").is_file():
        resumes = (output / "checkpoints" / "last.ckpt").is_file()
        what = ["--resume", output] if resumes else ["--config", config, "--output", output, *flags]
        command = [sys.executable, "-m", "trainer", "fit", *map(str, what)]
        environment = {**os.environ, "PYTHONPATH": str(measuring.ROOT)}
        if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode:
            raise SystemExit("training failed; fix the error above and run this again")
    return Run.open(output, ("job.yaml", "result.json"))


def read_ours(run: Run) -> Side:
    """Read a finished run of ours."""
    result = run.read_result()
    total = best = result.durations.total  # its trials share this machine
    if result.best_trial is not None:
        trials = read_trials(run.directory / TRIALS_FILE, result.primary_metric)
        best = next((each.seconds for each in trials if each.number == result.best_trial), None) or total
    return Side(result.metrics, total, best, total, _trained_epochs(run))


def _trained_epochs(run: Run) -> int | None:
    if not run.metrics.is_file():
        return None
    with run.metrics.open(encoding="utf-8") as file:
        return sum(1 for _ in csv.DictReader(file))


def requests_of(job: Job, count: int) -> list[bytes]:
    """Make request bodies as clients of an Azure endpoint send them, each with one validation image."""
    data = read(job.validation_data or job.training_data, job.task, datastores=job.datastores).records
    bodies = []
    for index in range(min(count, len(data))):
        content = local_path(data.source(index)).read_bytes()
        rows = {"columns": ["image"], "index": [0], "data": [base64.encodebytes(content).decode()]}
        bodies.append(json.dumps({"input_data": rows}).encode())
    return bodies


class Endpoint:
    """A scoring URL that implements the documented contract; measures latencies."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.client = httpx.Client(headers=headers, timeout=120)
        self.milliseconds: list[float] = []

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def ask(self, body: bytes) -> None:
        """Send a request and record its latency.

        Raises:
            SystemExit: there is no answer, or it is not the documented one.
        """
        began = time.perf_counter()
        try:
            answer = self.client.post(self.url, content=body)
        except httpx.HTTPError as error:
            raise SystemExit(f"{self.url}: does not answer: {error}") from None
        seconds = time.perf_counter() - began
        if answer.status_code in (401, 403):
            raise SystemExit(f"{self.url}: rejects the key ({answer.status_code}); is it in --key-file?")
        if answer.is_error:
            raise SystemExit(f"{self.url}: {answer.status_code}: {answer.text[:300]}")
        found = answer.json()
        if not (isinstance(found, list) and len(found) == 1 and ("boxes" in found[0] or "probs" in found[0])):
            raise SystemExit(f"{self.url}: not the documented answer: {answer.text[:200]}")
        self.milliseconds.append(1000 * seconds)

    def percentile(self, fraction: float) -> float:
        """Return the latency that this fraction of requests does not exceed, in milliseconds."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


@contextmanager
def served(run: Run, *flags: str) -> Iterator[str]:
    """Run `trainer serve` for a run on a free port and yield its scoring URL."""
    command = [sys.executable, "-m", "trainer", "serve", str(run.directory), "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(measuring.ROOT), "PYTHONUNBUFFERED": "1"}
    with (
        # Files, as the service logs every request: a pipe that nobody reads would fill up.
        tempfile.NamedTemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=output, stderr=errors, text=True, env=environment) as server,
    ):
        try:
            yield _address_when_ready(server, Path(output.name), errors)
        finally:
            server.terminate()


def _address_when_ready(server: subprocess.Popen[str], output: Path, errors: IO[str]) -> str:
    """Wait until the server responds and return its scoring URL.

    Raises:
        SystemExit: the server has ended or has not responded after three minutes; has its output.
    """
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until and server.poll() is None:
        found = re.search(r"https?://\S+/score", output.read_text(encoding="utf-8"))
        try:
            if found is not None:
                httpx.get(found[0].removesuffix("/score") + "/ping", timeout=5)
                return found[0]
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    errors.seek(0)
    raise SystemExit(f"trainer serve did not start:\n{errors.read()[-2000:]}")


def compare_latency(job: Job, run: Run, endpoint: str, key: str, count: int) -> tuple[Endpoint, Endpoint]:
    """Measure both endpoints in turn with the same images; the first request to each is not counted."""
    bodies = requests_of(job, count)
    with served(run) as url, Endpoint(endpoint, key) as azure, Endpoint(url) as ours:
        for each in (azure, ours):
            each.ask(bodies[0])
            each.milliseconds.clear()
        for body in bodies:
            azure.ask(body)
            ours.ask(body)
    return azure, ours


def rows(
    azure: Side, ours: Side, primary_metric: str, prices: tuple[float | None, float | None]
) -> list[list[str]]:
    """Tabulate the metrics that both have, the primary one first; then epochs, time and cost."""
    shared = [primary_metric, *sorted((azure.metrics.keys() & ours.metrics.keys()) - {primary_metric})]
    table = [
        [
            name,
            f"{azure.metrics[name]:.4f}",
            f"{ours.metrics[name]:.4f}",
            f"{ours.metrics[name] - azure.metrics[name]:+.4f}",
        ]
        for name in shared
        if name in ours.metrics
    ]
    table.append(["epochs trained", str(azure.epochs or "–"), str(ours.epochs or "–"), "–"])
    for name, seconds in (
        ("best trial, s", (azure.best_seconds, ours.best_seconds)),
        ("whole job, s", (azure.seconds, ours.seconds)),
    ):
        table.append([name, *map(number, seconds), f"× {number(seconds[0] / seconds[1])}"])
    if prices[0] is not None and prices[1] is not None:
        costs = [
            side.machine_seconds / 3600 * price for side, price in zip((azure, ours), prices, strict=True)
        ]
        factor = f"× {number(costs[0] / costs[1])}" if costs[1] else "–"
        table.append(
            [f"cost at {prices[0]:g} and {prices[1]:g} per hour", *(f"{cost:.4f}" for cost in costs), factor]
        )
    return table


def main() -> None:
    own, flags = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, flags = own[:at], own[at + 1 :]
    parser = measuring.arguments(__doc__, rounds=None, tiny=False)
    parser.add_argument("--config", type=Path, required=True, help="the job file that was run on Azure")
    parser.add_argument("--azure-run", required=True, metavar="RUN_ID")
    parser.add_argument(
        "--tracking-uri", required=True, metavar="URI", help="of the workspace, or of any MLflow server"
    )
    parser.add_argument("--output", type=Path, help="directory of our run; a finished run is used as it is")
    parser.add_argument(
        "--endpoint", metavar="URL", help="scoring URL of the model deployed on Azure, .../score"
    )
    parser.add_argument("--key-file", type=Path, metavar="F", help="file with the endpoint's key")
    parser.add_argument("--requests", type=int, default=50, help="images sent to each endpoint [default: 50]")
    parser.add_argument("--price-per-hour", type=float, metavar="P", help="price of Azure's machine")
    parser.add_argument(
        "--own-price-per-hour", type=float, metavar="P", help="price of this machine [default: the same]"
    )
    arguments = parser.parse_args(own)
    try:
        # The flags may say where the data are.
        primary_metric = Job.read(arguments.config, training_data="unread", validation_data=()).metric
        azure = read_azure(arguments.tracking_uri, arguments.azure_run, primary_metric)
        key = arguments.key_file.read_text("utf-8").strip() if arguments.key_file else ""
        name = re.sub(r"[^\w.-]+", "-", arguments.azure_run)
        output = arguments.output or Path("runs") / f"against-{name}"
        say(f"training {arguments.config} in {output}")
        run = train(arguments.config, output, flags)
        ours = read_ours(run)
        given = arguments.price_per_hour
        own_price = given if arguments.own_price_per_hour is None else arguments.own_price_per_hour
        table = rows(azure, ours, primary_metric, (given, own_price))
        if arguments.endpoint:
            job = Job.read(run.job)
            latencies = compare_latency(job, run, arguments.endpoint, key, arguments.requests)
            for fraction in (0.5, 0.95, 0.99):
                pair = [each.percentile(fraction) for each in latencies]
                name = f"latency, {fraction:.0%} of requests, ms"
                table.append([name, *map(number, pair), f"× {number(pair[0] / pair[1])}"])
            means = [statistics.mean(each.milliseconds) for each in latencies]
            table.append(["latency, mean, ms", *map(number, means), f"× {number(means[0] / means[1])}"])
    except TrainerError as error:
        raise SystemExit(str(error)) from None
    print(measuring.heading("Against Azure AutoML", "torch", "lightning", "mlflow"))
    print(
        f"Azure's run {arguments.azure_run}; ours {run.directory}. × N means that ours takes 1/N as much. "
        "If ours is no sweep, its best trial is the whole run, including packaging."
    )
    if arguments.endpoint:
        print("Latencies of Azure's endpoint include the network; ours runs on this machine.")
    print()
    print(measuring.table(("", "Azure", "ours", "difference"), table))


if __name__ == "__main__":
    main()
