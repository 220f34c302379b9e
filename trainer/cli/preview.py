"""`trainer preview`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from trainer.cli.application import ShortHelp, app
from trainer.cli.arguments import Count, Hyperparameters, job_values
from trainer.cli.flags import flags_of, values_of
from trainer.errors import JobError, Problem
from trainer.fields import details
from trainer.files import without_prefix
from trainer.job.fields import SweepOptions
from trainer.job.job import Job
from trainer.job.sweep import Limits
from trainer.tasks import Task

_SUFFIXES = (".png", ".jpg", ".jpeg", ".html")
_SHORT_HELP = (
    *(
        "--task",
        "--data",
        "--model",
        "--augmentation",
        "--config",
        "--output",
        "--images",
        "--draws",
        "--recipe",
    ),
    *("--random-seed", "--image-size", "--min-size", "--training-crop-size", "--tile-grid-size"),
    *("--mixup-alpha", "--cutmix-alpha", "--random-augment", "--large-scale-jitter", "--advanced-settings"),
    *("--datastore", "--data-asset", "--target-column-name", "--skip-invalid"),
)
_FIELDS = (
    *(
        "task",
        "training_data",
        "model",
        "augmentation",
        "validation_data",
        "validation_data_size",
        "datastores",
    ),
    *("data_assets", "skip_invalid", "target_column_name"),
)
"""The fields of a job that decide what training images look like."""
_JobFlags: Any = flags_of(
    Job,
    leave_out=Job.model_fields.keys() - set(_FIELDS),
    first=_FIELDS,
    aliases=lambda name: details(Job.model_fields[name]).get("aliases", ()),
)


@app.command(help_formatter=ShortHelp(_SHORT_HELP))
def preview(
    *,
    config: Path | None = None,
    output: Path = Path("preview.png"),
    images: Annotated[Count, Parameter(name="--images")] = 4,
    draws: Annotated[Count, Parameter(name="--draws")] = 4,
    job: _JobFlags | None = None,
    hyperparameters: Hyperparameters | None = None,
) -> None:
    """Show training images as the network gets them: a contact sheet of augmented images with their targets.

    Each row starts with an image of the data. Then the image follows as it is in the first epochs, after the
    augmentation of the recipe or of --augmentation, mosaic and mixing, in the size that the network sees.
    It takes every setting that `trainer fit --help-all` lists; nothing is trained, and no weights are needed.

    Examples:

        trainer preview --data train.jsonl --model fasterrcnn_resnet50_fpn
        trainer preview --data train.jsonl --augmentation own.yaml --output own.html
        trainer preview --config job.yml --images 6 --draws 3 --random-seed 1

    Parameters
    ----------
    config
        Job file, as of `trainer fit`; flags override it. A sweep's search space is left out.
    output
        File to write: .png, .jpg, or .html with larger images.
    images
        Number of images, chosen at random by --random-seed.
    draws
        Number of epochs to show of each.
    """
    problems = [
        Problem(flag, "", "must be at least 1", str(count))
        for flag, count in (("--images", images), ("--draws", draws))
        if count < 1
    ]
    if output.suffix.lower() not in _SUFFIXES:
        problems.append(Problem("--output", "", f"must end in one of {', '.join(_SUFFIXES)}", str(output)))
    if problems:
        raise JobError("the preview cannot be made:", problems)
    values, settings = job_values(job, None), values_of(hyperparameters)
    if config is not None:
        wanted = Job.read(config, settings=settings, **values)
        # Of a sweep, what is fixed for all trials.
        single: dict[str, Any] = {"search_space": (), "sweep": None, "limits": Limits()}
        wanted = wanted.model_copy(update=single | dict.fromkeys(SweepOptions.model_fields))
    else:
        if "training_data" not in values:
            problem = Problem("--data", "", "must be given, as a flag or by --config")
            raise JobError("the preview cannot be made:", [problem])
        if "task" not in values:
            values["task"] = _task_of(values["training_data"][0], values.get("target_column_name", "label"))
        wanted = Job.of(settings=settings, **values)
    wanted.resolve_settings()  # before the slow imports
    from trainer.training.preview import preview as make

    made = make(wanted, images=images, draws=draws)
    made.write(output)
    print(f"{made.summary}\npreview  {output}")


def _task_of(data: str, label_key: str) -> Task:
    """The task that the first line with a label of a JSON lines file is for.

    Raises:
        JobError: the file does not show it.
    """
    path = Path(without_prefix(data, Path.cwd()))
    try:
        with path.open(encoding="utf-8-sig") as file:
            labels = (json.loads(line)[label_key] for line in file if line.strip())
            label = next(label for label in labels if label != [])  # an empty list fits three tasks
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
        rule = "must be given: only the labels in a local .jsonl file show the task"
        raise JobError("the preview cannot be made:", [Problem("--task", "", rule, data)]) from error
    if not isinstance(label, list):
        return Task.CLASSIFICATION
    if not any(isinstance(each, dict) for each in label):
        return Task.MULTILABEL
    has_polygons = any("polygon" in each for each in label if isinstance(each, dict))
    return Task.SEGMENTATION if has_polygons else Task.DETECTION
