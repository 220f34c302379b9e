"""docs/automode.md: `python -m tools.automode_page > docs/automode.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.automode import budgets as trainings
from trainer.automode import candidates
from trainer.automode import design as sub_spaces
from trainer.automode import image_sizes as sizes
from trainer.automode.candidates import GROUPS, MANY_IMAGES, Group
from trainer.models import catalog
from trainer.tasks import Task

_IMAGES = (100, 1000, 10_000, 100_000)

_INTRODUCTION = """\
# AutoMode

A job with `limits.max_trials` over 1 and without `search_space` leaves models and settings to the trainer:

    trainer fit --task object-detection --data train.jsonl --max-trials 10 --timeout-minutes 240

The first candidates for boxes and masks on a GPU are RF-DETRs: `pip install '.[rfdetr]'` first, or they are
left out.

What is tried depends on the data (how many images and classes, how large images and objects are), on the GPU
that a trial has, and on the time. The log says what was chosen and why; the run's `search_space.yaml` keeps
it, and its `job.yaml` holds the search space as if it had been written there, so that `--resume` and workers
on other machines go on with the same. To see it beforehand, and train nothing:

    trainer fit --task object-detection --data train.jsonl --max-trials 10 --dry-run --check-data

This page is generated from the code by `python -m tools.automode_page`.

## The order of trials

1. Each model with its usual settings, strongest first: the first model of each row of the tables below, then
   the second of each, and so on, as many as there are trials.
2. Then settings proposed by TPE (`bayesian`) from all results so far.

A weak trial is given up early, by successive halving: after a quarter of its evaluations and after a half it
is compared with all that have come as far, and goes on if it is among the better half, rounded up. All
trials have about {evaluations} evaluations, whatever their epochs. In a job file the policy is called:

    sweep:
      early_termination:
        type: successive_halving
        min_resource: 3      # evaluations up to the first comparison; the second is after 6, then 12 …
        reduction_factor: 2  # of so many trials one goes on

It is this trainer's own, not one of Azure's; any job with a sweep may use it. With a second objective
(`--objective latency`, `--max-latency-ms`) no trial is given up, and small models are tried beside the
others.

## What stays with you

- Settings that the job fixes, the model, and weights stay as they are: the search is over the rest. A model
  that does not take a setting's value is left out.
- `sweep.sampling_algorithm` takes the place of TPE. A `sweep` without `early_termination` means that no trial
  is given up; with one, that is the policy. By a `grid` three learning rates are tried with all choices, in
  the grid's own order.
- With a directory of published weights only models whose files are there are tried; with weights of an
  earlier run or a file, only its model. Models whose library is not installed are left out.
- YOLO models and RT-DETRs are of ultralytics, under AGPL-3.0. Where that does not suit, name another model,
  or uninstall ultralytics.
"""

_MODELS = """\
## Models

The models of a row are searched together, in one sub-space. Models after the semicolon come first with
{many:,} training images or more, and last with fewer. From scratch (`weights: none`) on the CPU, the row for
the CPU holds.

| task | where | models | settings start from |
|---|---|---|---|
"""

_SEARCHED = """\
## What is searched

| setting | models | values |
|---|---|---|
| `learning_rate` | all | from the recipe's / {rate} to × {rate}, logarithmically |
| `weight_decay` | all | from the recipe's / {decay} to × {decay}, logarithmically |
| `model_name` | of the row | each |
| `image_size` | YOLO models and RT-DETRs, on a GPU | the size below, and the next if images have the pixels |
| `tile_grid_size` | R-CNNs, YOLO models and RT-DETRs, on a GPU | the grid below, and none |
| `validation_crop_size` | CNNs, on a GPU | 224 and, if images are that large, 288 |
| `mixup_alpha` | classifiers by the modern recipe, for one label | 0.2 and 0 |
| `layer_decay` | transformers and ConvNeXts by the modern recipe | 0.75, 0.65 and 0.85 |
| `large_scale_jitter` | R-CNNs | off and on |
| `model_size` | yolov5, where the job names it | small, medium and, on a GPU, large |
| `weighted_loss` | classifiers, if a class is over {some} times as frequent as another | 0 and 1 |
| `balanced_sampling` | detectors, if a class is over {very} times as frequent as another | off and on |
"""

_FIXED = """\
## What follows from data, memory and time

**Epochs** go down as images go up, so that ten times as many images are 6.3 times as much training; from
scratch there are {scratch} times as many:

{epochs}

**Batches.** A step of the optimizer sees so many images:

{batches}

With few images it is halved until an epoch has {steps} steps. What is too much for a GPU, by an estimate, is
accumulated over several batches; a model that needs more than the GPU has is left out.

**Image size** is raised until three quarters of the objects have a side, √(width · height), of {seen} pixels:

{sizes}

Images are enlarged to {enlarged} times their size at most. If a quarter of the objects has fewer than {tiny}
pixels even then, and the images have more pixels, they are tiled. Classifiers see crops of 224 pixels; CNNs
of 160 on the CPU, and of 128 where the images' short side has {small_images} or fewer. RF-DETRs see their
published size. `box_detections_per_image` is raised where images hold more objects.

**Time.** Each trial has `timeout_minutes` × (trials at a time) / `max_trials` / {mean}, as those given
up leave time to others; without a limit {longest_gpu} hours on a GPU, and {longest_cpu} on the CPU. What
a training takes is estimated from the bandwidth of the GPU's memory, or from the CPU's cores, within a factor
of two or three. If it is too long, tiles and the choice of a larger size go first, then image size, then
epochs; a model with half of its epochs or fewer is not tried. The time limit itself holds in any case: at its
end trials stop at their next evaluation.
"""


def page() -> str:
    """docs/automode.md as text."""
    cards = list(catalog.CARDS.values())
    words = [card.words for card in cards]
    epochs = [
        [f"{images:,}", *(str(trainings.usual_epochs(card, images)) for card in cards)] for images in _IMAGES
    ]
    places = (("gpu", "a GPU"), ("cpu", "the CPU"))
    # Squares first.
    searched_sides = {c.size_setting: c.searched_sides for c in reversed(cards) if c.searched_sides}
    of_sizes = [
        [
            name,
            where,
            str(sizes.USUAL[kind][name]),
            str(sizes.LARGEST[kind][name]),
            ", ".join(map(str, all_of_it)),
        ]
        for name, all_of_it in searched_sides.items()
        for kind, where in places
    ]
    fixed = _FIXED.format(
        scratch=trainings.FROM_SCRATCH,
        epochs=_table(["images", *words], epochs),
        batches=_table(words, [[str(card.step_images) for card in cards]]),
        sizes=_table(["setting", "on", "usual", "at most", "one of"], of_sizes),
        steps=trainings.STEPS_AN_EPOCH,
        seen=sizes.SEEN,
        tiny=sizes.TINY,
        enlarged=sizes.MOST_ENLARGED,
        small_images=sizes.SMALL_IMAGES,
        mean=trainings.MEAN_TRIAL,
        longest_gpu=round(trainings.LONGEST["gpu"] / 3600),
        longest_cpu=round(trainings.LONGEST["cpu"] / 3600),
    )
    searched = _SEARCHED.format(
        rate=sub_spaces.AROUND_RATE,
        decay=sub_spaces.AROUND_DECAY,
        some=sub_spaces.IMBALANCED,
        very=sub_spaces.VERY_IMBALANCED,
    )
    introduction = _INTRODUCTION.format(evaluations=sub_spaces.EVALUATIONS)
    models = _MODELS.format(many=MANY_IMAGES) + "\n".join(_rows()) + "\n"
    return "\n".join([introduction, models, searched, fixed])


def _rows() -> Iterator[str]:
    for task, tables in GROUPS.items():
        if task is Task.MULTILABEL:
            continue
        name = f"{task}, also multilabel" if task is Task.CLASSIFICATION else str(task)
        for where, groups in tables.items():
            for group in groups:
                modern = candidates.has_recipes(catalog.find(group.models[0], task))
                recipe = f"the {group.recipe} recipe" if modern else "their authors' recipe"
                yield f"| {name} | {where} | {_models(group)} | {recipe} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _models(group: Group) -> str:
    parts = (group.models, group.larger) if group.larger else (group.models,)
    return "; ".join(", ".join(f"`{name}`" for name in part) for part in parts)


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
