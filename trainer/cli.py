"""The commands: arguments in, calls out, nothing else. What a command needs is imported when it runs."""

from __future__ import annotations

import io
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, Group, Parameter, Token

from trainer.errors import JobError, Problem, TrainerError
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.runs import Run


def _version() -> str:
    from importlib.metadata import version

    return version("image-trainer")  # cyclopts would look for a distribution with the module's name


app = App(
    name="trainer",
    version=_version,
    help="Trains, packages and serves image models from Azure AutoML for Images data, on your own machines.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # main says so
    default_parameter=Parameter(negative_iterable=()),
)

TaskName = Annotated[str, Parameter(help=f"One of {', '.join(Task)}; a job file's names are fine too.")]
Datastores = Annotated[
    list[str] | None,
    Parameter(
        name="--datastore",
        help="NAME=DIR_OR_URL: what azureml://…/datastores/NAME/… stands for; may be given several times.",
    ),
]
DataAssets = Annotated[
    list[str] | None,
    Parameter(
        name="--data-asset",
        help="NAME=PATH: where the data lie that a job file calls azureml:NAME:VERSION; NAME:VERSION=PATH "
        "for one version alone; may be given several times.",
    ),
]
Switch = Annotated[bool, Parameter(negative="")]


def _hyperparameter_flags() -> type:
    """One flag for each field of Settings, unset unless given, under its group's heading."""
    from trainer import settings
    from trainer.settings import Settings

    groups: dict[str, Group] = {}
    made = []
    for name, info in Settings.model_fields.items():
        heading = settings.group_of(name)
        group = groups.setdefault(heading, Group(heading, sort_key=10 + len(groups)))
        text = info.description or ""
        if get_origin(info.annotation) is Literal:
            text += f" One of {', '.join(map(str, get_args(info.annotation)))}."
        if takers := settings.takers(name):
            text += f" Only {takers}."
        text += f" [default: {settings.default_in_words(name)}]"
        kind = _flag_type(info.annotation)
        names = [f"--{n.replace('_', '-')}" for n in (name, *settings.aliases_of(name))]
        converter = {int: _whole_number, int | str: _whole_number_or_word}.get(kind)
        parameter = Parameter(name=names, help=text, group=group, show_default=False, converter=converter)
        made.append((name, Annotated[kind | None, parameter], field(default=None)))
    made_class = make_dataclass("Hyperparameters", made, frozen=True)
    made_class.__module__ = __name__  # cyclopts takes a class from `types`, where it would be, for a builtin
    return Parameter(name="*")(made_class)


def _flag_type(annotation: Any) -> Any:
    """What a flag's text is read as; anything richer than a number or choice is left to the settings."""
    if type(None) in get_args(annotation):
        (annotation,) = (kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    if any(get_origin(kind) is Literal for kind in get_args(annotation)):
        return int | str  # a number, or a word in its place
    return annotation if annotation in (int, float, bool, str) else str


def _whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """cyclopts itself rounds: 1.5 epochs would become 2."""
    value = float(tokens[0].value)
    if not value.is_integer():
        raise ValueError("must be a whole number")
    return int(value)


def _whole_number_or_word(kind: Any, tokens: Sequence[Token]) -> int | str:
    """What is no whole number the settings take or refuse, with all that they take."""
    try:
        return _whole_number(kind, tokens)
    except (ValueError, OverflowError):
        return tokens[0].value


Count = Annotated[int, Parameter(converter=_whole_number)]

Hyperparameters: Any = _hyperparameter_flags()


@app.command
def fit(
    *,
    task: TaskName | None = None,
    data: list[str] | None = None,
    validation_data: list[str] | None = None,
    validation_data_size: float | None = None,
    model: str | None = None,
    config: Path | None = None,
    resume: Path | None = None,
    output: Path | None = None,
    weights: str | None = None,
    datastore: Datastores = None,
    data_asset: DataAssets = None,
    gpus: str | None = None,
    processes: Count | None = None,
    nodes: Count | None = None,
    max_trials: Count | None = None,
    max_concurrent_trials: Count | None = None,
    timeout_minutes: Count | None = None,
    objective: str | None = None,
    max_latency_ms: float | None = None,
    storage: str | None = None,
    study: str | None = None,
    skip_invalid: bool | None = None,
    tracking_uri: str | None = None,
    register_model: str | None = None,
    dry_run: Switch = False,
    check_data: Switch = False,
    hyperparameters: Hyperparameters | None = None,
) -> None:
    """Train a model, package it, and score the validation data with it.

        trainer fit --task object-detection --data train.jsonl --model yolo11n --weights none

    Parameters
    ----------
    task
        What to train for; needed unless --config says it.
    data
        Training data: a .jsonl file or an MLTable folder; may be given several times.
    validation_data
        Validation data, likewise. Without it a stratified part of the training data is split off.
    validation_data_size
        Share of the training data to split off, in (0, 1). [default: 0.2]
    model
        A name from `trainer models`. [default: the task's usual model]
    config
        A job file of Azure's, as the command line, the Python SDK or the REST interface write it; flags
        override what it says.
    resume
        Go on with the run in this directory, which was stopped, or which --number-of-epochs is to extend.
        Of the other flags it takes hyperparameters, --gpus, --processes, --nodes, --timeout-minutes,
        --tracking-uri and --register-model.
    output
        The run's directory, new or empty. [default: a new one under runs/]
    weights
        What to start from: pretrained, none (from scratch), a directory of published files, a file, an
        earlier run's directory, or runs:/ID/model in MLflow; also the environment variable TRAINER_WEIGHTS.
        [default: pretrained]
    gpus
        How many GPUs, 0 for the CPU, or auto for all there are. [default: auto]
    processes
        Train in this many processes on the CPU instead of on GPUs.
    nodes
        How many machines train one model together, each with so many GPUs or processes. torchrun and srun say
        it by themselves; docs/many-machines.md shows how. [default: 1]
    max_trials
        How many trials a sweep runs, 1 to 1000. [default: 1]
    max_concurrent_trials
        How many of them at a time, 1 to 100. [default: 1]
    timeout_minutes
        End the job after this time; what is trained by then is kept. [default: none]
    objective
        latency: a sweep looks for short answers beside a high primary metric; its table marks the trials that
        no other beats in both.
    max_latency_ms
        A sweep's best model is the best of those that answer within this time, one image on this machine.
    storage
        Where a sweep keeps its trials, for several machines to share: postgresql://USER:PASSWORD@HOST/NAME.
        [default: a file in the run's directory]
    study
        The sweep's name in the storage, by which `trainer worker` joins. [default: that of the directory]
    skip_invalid
        Go on without invalid lines and images instead of refusing; skipped.jsonl says which and why.
    tracking_uri
        The MLflow server or database to track the run in, or none; also MLFLOW_TRACKING_URI. [default:
        mlflow.db beside the run's directory]
    register_model
        Register the packaged model under this name in MLflow.
    dry_run
        Train nothing; print as YAML the job with every setting, the search space, and what its first trials
        would be.
    check_data
        With --dry-run: also read the data and count them.
    """
    from trainer import job as jobs
    from trainer import job_file, job_sweep

    values: dict[str, Any] = {}
    ignored: list[str] = []
    if config is not None:
        values, ignored = job_file.read(config)
    limits = _limits(max_trials, max_concurrent_trials, timeout_minutes)
    known_assets = values.get("data_assets", {})
    given = {
        "task": task,
        "training_data": tuple(data) if data else None,
        "validation_data": tuple(validation_data) if validation_data else None,
        "validation_data_size": validation_data_size,
        "model": model,
        "output": output,
        "weights": weights,
        "datastores": _mapping(datastore, values.get("datastores", {})) if datastore else None,
        "data_assets": _mapping(data_asset, known_assets, _DATA_ASSET) if data_asset else None,
        "gpus": gpus if gpus in (None, "auto") else _count(gpus),
        "processes": processes,
        "nodes": nodes,
        "objective": objective,
        "max_latency_ms": max_latency_ms,
        "storage": storage,
        "study": study,
        "limits": {**values.get("limits", {}), **limits} if limits else None,
        "skip_invalid": skip_invalid,
        "tracking_uri": tracking_uri,
        "register_model": register_model,
    }
    given = {name: value for name, value in given.items() if value is not None}
    values |= given
    flags = {flag.name: getattr(hyperparameters, flag.name, None) for flag in fields(Hyperparameters)}
    settings = {name: value for name, value in flags.items() if value is not None}
    values["settings"] = jobs.override(values.get("settings", {}), settings)
    if "search_space" in values:
        values["search_space"] = job_sweep.override_space(values["search_space"], settings, model)
    if check_data and not dry_run:
        rule = "goes with --dry-run; a training always checks its data"
        raise JobError("the job cannot be run:", [Problem("--check-data", "", rule)])
    if resume is not None and dry_run:
        rule = "cannot go with --resume; the run's job.yaml says what it trains"
        raise JobError("the job cannot be run:", [Problem("--dry-run", "", rule)])
    if resume is not None:
        _go_on(resume, given, values["settings"])
        return
    missing = [
        flag for flag, name in (("--task", "task"), ("--data", "training_data")) if not values.get(name)
    ]
    if missing:
        rule = "must be given, as a flag or by --config"
        raise JobError("the job cannot be run:", [Problem(flag, "", rule) for flag in missing])
    where = str(config or "")
    job = jobs.make(where, **values)
    if dry_run:
        from trainer.sweep.preview import preview

        print(preview(job, where, ignored=ignored, check_data=check_data), end="")
        return
    if ignored:
        logging.getLogger("trainer").info("%s: without meaning here: %s", config, ", ".join(ignored))
    from_file = config is not None and not settings
    if not job.sweeps:
        job.resolve_settings(where if from_file else "")  # before the slow imports
    from trainer.fitting import fit as run_job

    _show(run_job(job, progress=True))


_CHANGEABLE = ("gpus", "processes", "nodes", "limits", "tracking_uri", "register_model")


def _go_on(directory: Path, given: dict[str, Any], settings: dict[str, Any]) -> None:
    """`fit --resume`: with changes only to what a run may change as it goes on."""
    fixed = [name for name in given if name not in _CHANGEABLE]
    if fixed:
        rule = "cannot change when a run goes on; start a new run for it"
        flags = {"training_data": "--data"}
        raise JobError(
            "the run cannot go on:",
            [Problem(flags.get(name, f"--{name.replace('_', '-')}"), "", rule) for name in fixed],
        )
    from trainer.fitting import resume

    _show(resume(directory, settings, progress=True, **given))


def _show(run: Run) -> None:
    result = run.read_result()
    typed = shlex.quote(str(run.directory))
    print(
        f"\nrun         {run.directory}\nbest epoch  {result.best_epoch} of {result.epochs}"
        f"\n{result.primary_metric:10}  {result.value:.4f}\nmodel       {run.model}"
        f"\n\nnext:  trainer serve {typed}\n       trainer predict {typed} IMAGE..."
    )


@app.command
def worker(
    *,
    storage: str,
    study: str,
    output: Path | None = None,
    gpus: str = "auto",
    concurrent: Count = 1,
) -> None:
    """Take trials of a sweep that another machine began with the same --storage, until none are left.

    Parameters
    ----------
    storage
        The database that the machines share.
    study
        The sweep's name in it, as `trainer fit` printed.
    output
        Gets the trials' directories. [default: the sweep's own where this machine sees it]
    gpus
        How many GPUs, 0 for the CPU, or auto for all there are.
    concurrent
        Trials at a time, among which the GPUs are divided.
    """
    from trainer.sweep.runner import work

    count = work(
        storage, study, output=output, gpus=gpus if gpus == "auto" else _count(gpus), concurrent=concurrent
    )
    print(f"{count} trials ended here; the sweep has no more")


@app.command
def validate(
    data: list[str],
    /,
    *,
    task: TaskName,
    images: bool = False,
    datastore: Datastores = None,
) -> int:
    """Check data against the schema; prints every problem and exits with 1 if there is an error.

    Parameters
    ----------
    data
        .jsonl files and MLTable folders.
    images
        Also read every image to its end.
    """
    from trainer.data.validate import validate as check

    report = check(Task.parse(task), data, images=images, datastores=_mapping(datastore, {}), progress=images)
    for problem in report.problems:
        print(problem)
    print(report.summary)
    return 1 if report.errors else 0


@app.command
def predict(
    run_or_model: Path,
    images: list[Path],
    /,
    *,
    output: Path | None = None,
    draw: Path | None = None,
    box_score_threshold: float | None = None,
    nms_iou_threshold: float | None = None,
    box_detections_per_image: Count | None = None,
    mask_pixel_score_threshold: float | None = None,
    max_number_of_polygon_points: Count | None = None,
    tile_grid_size: str | None = None,
    tile_overlap_ratio: float | None = None,
    tile_predictions_nms_threshold: float | None = None,
) -> None:
    """Score images with a trained model; a JSON line for each.

    Parameters
    ----------
    run_or_model
        A run's directory or an MLflow model directory.
    images
        Image files, folders of them, or patterns.
    output
        Write the lines to this file instead of printing them.
    draw
        Write a picture of each image with its answer into this folder.
    box_score_threshold
        Return no boxes with a lower score. This and the following default to the model's own values.
    nms_iou_threshold
        Of two boxes of one class overlapping by more than this IoU, keep one.
    box_detections_per_image
        Return at most this many boxes an image.
    mask_pixel_score_threshold
        A pixel with at least this score belongs to the object.
    max_number_of_polygon_points
        Simplify polygons to at most this many points.
    tile_grid_size
        Score the image's tiles, too: columns and rows as 3x2, or none; helps with small objects.
    tile_overlap_ratio
        Neighbouring tiles share this part of their width and height.
    tile_predictions_nms_threshold
        Of two boxes of one class from different tiles with a higher IoU, keep one.
    """
    import json

    arguments = locals()
    parameters = {
        name: arguments[name] for name in ScoringParameters.model_fields if arguments[name] is not None
    }
    from serving.predict import find_images, predict_files
    from trainer.data.progress import track
    from trainer.report.fonts import is_drawable

    escaped = not (sys.stdout.encoding or "").lower().startswith("utf")  # JSON's escapes stay JSON
    lines = predict_files(run_or_model, images, output=output, draw=draw, parameters=parameters)
    if output is not None:
        lines = track(lines, "scoring images", len(find_images(images)))
    undrawable: set[str] = set()
    for line in lines:
        if output is None:
            print(json.dumps(line, ensure_ascii=escaped))
        if draw is not None:
            labels = line.get("labels") or [box["label"] for box in line["boxes"]]
            undrawable.update(label for label in labels if not is_drawable(label))
    if undrawable:
        print(
            f"no font of this machine has {', '.join(sorted(undrawable)[:3])}, drawn as escapes: install one "
            "that has, for Korean apt-get install fonts-nanum, for most scripts fonts-noto",
            file=sys.stderr,
        )
    for written in (output, draw):
        if written is not None:
            print(f"written: {written}", file=sys.stderr)


@app.command
def export(
    run_or_model: Path,
    /,
    *,
    output: Path = Path("model.onnx"),
    opset: Count | None = None,
    normalize: bool | None = None,
) -> None:
    """Write a trained model as an ONNX file that answers alone, thresholds and NMS inside.

    A classifier takes any number of images, a detector one. How to prepare them, the classes and the
    thresholds stand in the file's metadata, as JSON under image-trainer.
    Needs pip install 'image-trainer[onnx]'.

    Parameters
    ----------
    run_or_model
        A run's directory or an MLflow model directory.
    output
        The file; an existing one is replaced.
    opset
        Version of ONNX's operators, 18 or newer. [default: what torch knows best]
    normalize
        Take images as uint8 in [0, 255] and normalise them in the file; else as float32, normalised.
        [default: the model's enable_onnx_normalization]
    """
    from serving.onnx_export import export as write

    made = write(run_or_model, output, opset=opset, normalize=normalize)
    given = made["input"]
    height, width = given["size"] or ("height", "width")
    print(
        f"written  {output}\ninput    {given['name']}: {given['type']} [N, 3, {height}, {width}], "
        f"{given['images']} at a time\noutputs  {', '.join(made['outputs'])}"
    )


@app.command
def serve(run_or_model: Path, /, *, host: str = "127.0.0.1", port: Count = 5001) -> None:
    """Answer scoring requests: POST /score as an Azure endpoint does, /invocations as MLflow does.

    Parameters
    ----------
    run_or_model
        A run's directory or an MLflow model directory.
    host
        Address to listen on; 0.0.0.0 for all.
    port
        Port to listen on.
    """
    from serving.server import serve as run_server

    run_server(run_or_model, host, port, announce=lambda url: print(f"serving {run_or_model} at {url}/score"))


@app.command
def sample_data(task: TaskName, directory: Path, /, *, images: Count = 200, seed: Count = 0) -> None:
    """Write a small real data set: scenes of scikit-learn's handwritten digits, in the data schema.

    Parameters
    ----------
    directory
        Where to write train.jsonl, validation.jsonl and images/.
    images
        How many, a fifth of them for validation.
    seed
        Another seed, other scenes.
    """
    from trainer.data.samples import make

    made = make(Task.parse(task), directory, images=images, seed=seed, progress=sys.stdout.isatty())
    print(f"training data    {made.train}\nvalidation data  {made.validation}")
    print(
        f"\nnext:  trainer fit --task {Task.parse(task)} --data {shlex.quote(str(made.train))} "
        f"--validation-data {shlex.quote(str(made.validation))} --weights none"
    )


@app.command
def models(*, task: TaskName | None = None) -> None:
    """List the models: name, tasks, parameters, image size, licences, and whether their weights are here.

    The licences are those of the library that has the model, and of the weights that it publishes. Weights
    are here if TRAINER_WEIGHTS names a directory with them, or the library's own cache holds them.
    """
    from rich.console import Console
    from rich.table import Table

    from trainer.models import listing

    columns = ("model", "tasks", "parameters", "image size", "library", "weights", "here")
    table = Table(*columns, box=None, header_style="bold")
    table.columns[2].justify = "right"
    for row in listing.rows(Task.parse(task) if task else None):
        count = f"{row.parameters / 1e6:.1f} M" if row.parameters else ""
        cells = (row.model, ", ".join(row.tasks), count, row.image_size, row.library, row.weights)
        table.add_row(*cells, row.here)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print("\n`trainer weights --model NAME` says what to download for a machine without a network.")
    for remark in listing.other_versions():
        print(f"note: {remark}")


@app.command
def weights(*, model: str, task: TaskName | None = None) -> None:
    """Say which file holds a model's published weights, from where to get it, and where to put it.

    Parameters
    ----------
    model
        A name from `trainer models`, or timm/NAME.
    """
    from trainer.models import listing

    for line in listing.instructions(model, Task.parse(task) if task else None):
        print(line)


_DATASTORE = ("the datastore", "--datastore", "NAME=DIR_OR_URL")
_DATA_ASSET = ("the data asset", "--data-asset", "NAME=PATH")


def _limits(trials: int | None, concurrent: int | None, minutes: int | None) -> dict[str, int]:
    """Those that are given, by their names in a job file."""
    limits = {"max_trials": trials, "max_concurrent_trials": concurrent, "timeout_minutes": minutes}
    return {name: value for name, value in limits.items() if value is not None}


def _mapping(
    pairs: list[str] | None, known: dict[str, str], words: tuple[str, str, str] = _DATASTORE
) -> dict[str, str]:
    what, flag, form = words
    mapping = dict(known)
    for pair in pairs or ():
        name, separator, target = pair.partition("=")
        if not (name and separator and target):
            raise JobError(f"{what} cannot be used:", [Problem(flag, "", f"must be {form}", pair)])
        mapping[name] = target
    return mapping


def _count(text: str) -> int:
    if not text.isdecimal():
        raise JobError(
            "the job cannot be run:", [Problem("--gpus", "", "must be auto or a number", repr(text))]
        )
    return int(text)


def main() -> None:
    """The program `trainer`: exit 1 with the error's text for a user's mistake, 130 after Ctrl-C."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is reported to anybody
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
    try:
        sys.exit(app())
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; Python itself would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
