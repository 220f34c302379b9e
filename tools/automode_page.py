"""Generates docs/automode.md; `make docs` runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.automode import design, image_sizes
from trainer.automode.candidates import GROUPS, MANY_IMAGES, Group
from trainer.models import catalog
from trainer.tasks import Task

_INTRODUCTION = """\
# AutoMode

If a job sets `limits.max_trials` over 1 and has no `search_space`, the trainer chooses models and settings:

    trainer fit --task object-detection --data train.jsonl --max-trials 10 --timeout-minutes 240

The choice depends on the data (number of images and classes, size of images and objects) and on whether
trials have GPUs. The log lists what was chosen and why. The run's `search_space.yaml` keeps this
list, and its `job.yaml` holds the search space as if you had written it, so `--resume` and workers on other
machines search the same space. To see the choice without training:

    trainer fit --task object-detection --data train.jsonl --max-trials 10 --dry-run --check-data

This page is generated from the code by `make docs`.

## The order of trials

1. For classifiers with weights to start from, the strongest model's probe alone: its head is fitted to the
   features of the images, in less time than an epoch (`probe_first` in settings.md). It counts as one of
   `max_trials`.
2. Each model with its usual settings, strongest first: the first model of each row of the tables below, then
   the second of each, and so on, up to the number of trials.
3. Then settings proposed by TPE (`bayesian`) from all results so far.

The detectors on a GPU are in the order of the AP that RF-DETR's authors publish for other people's data
(RF100-VL, 100 data sets) and of its cost: RF-DETR-S has 60.2 at 3.5 ms an image and D-FINE-L 61.6,
while YOLO26-X takes 9.6 ms for 60.0. Among similar models, those under Apache-2.0 come first. Segmenters are
ordered by their mask AP on COCO and its cost: RF-DETR-seg-M has 45.3 at 5.9 ms an image on a T4, while EoMT-L
takes 7.8 ms on an H100 for 45.2, so EoMT comes last. Mask2Former is never tried, because its weights are not
for commercial use (CC-BY-NC-4.0).

Weak trials are pruned early, by successive halving: after a quarter and after half of its evaluations, a
trial is compared with all that have reached the same point, and continues if it is in the better half,
rounded up. All trials have about {evaluations} evaluations, whatever their epochs. In a job file the policy
is written as:

    sweep:
      early_termination:
        type: successive_halving
        min_resource: 3      # evaluations before the first comparison; the next are after 6, 12 …
        reduction_factor: 2  # one of this many trials continues

The policy is this trainer's own, not Azure's; any job with a sweep can use it. With a second objective
(`--objective latency`, `--max-latency-ms`) no trial is pruned, and small models are tried as well.

## What you can decide

- Settings that the job fixes, its model and its weights stay as they are; AutoMode searches the rest. A model
  that does not accept one of these values is left out.
- `sweep.sampling_algorithm` replaces TPE. With a `sweep` that has no `early_termination`, no trial is pruned;
  with one, that policy is used. A `grid` combines three learning rates with all choices, in its own order.
- With a directory of published weights, only models whose files are there are tried; with weights of an
  earlier run or a single file, only that model. Models whose library is not installed are left out.
- YOLO models and RT-DETRs need ultralytics, which is under the AGPL-3.0. They are tried only if it is
  installed (`pip install '.[yolo]'`).
"""

_MODELS = """\
## Models

The models of a row are searched together, in one sub-space. Models after the semicolon come first with at
least {many:,} training images, and last with fewer. Training from scratch (`weights: none`) on the CPU uses
the rows for the CPU.

| task | where | models |
|---|---|---|
"""

_SEARCHED = """\
## What is searched

| setting | models | values |
|---|---|---|
| `learning_rate` | all | from the recipe's / {rate} to × {rate}, logarithmically |
| `model_name` | of the row | each |
| `image_size` | YOLO models and RT-DETRs, on a GPU | the size below, and the next if images are that large |
| `tile_grid_size` | R-CNNs, YOLO models and RT-DETRs, on a GPU | the grid below, and none |
| `validation_crop_size` | CNNs, on a GPU | 224 and, if images are that large, 288 |
| `mixup_alpha` | classifiers with the modern recipe, not multilabel | 0 and 0.2 |
| `large_scale_jitter` | R-CNNs and mask transformers | off and on |
| `model_size` | yolov5, if the job names it | small, medium and, on a GPU, large |
| `weighted_loss` | classifiers, if a class is over {some} times as frequent as another | 0 and 1 |
| `balanced_sampling` | detectors, if a class is over {very} times as frequent as another | off and on |
"""

_FIXED = """\
## What follows from data and time

**Recipe.** Settings start from the modern recipe, or from the reference recipe if the job sets `recipe:
reference` or `optimizer: sgd`. DETRs, RT-DETRs and mask transformers start from their authors' recipes.

**Epochs and batch size** are the recipe's for this number of images, as in a single run. Those three recipes
set no number of epochs; they get {epochs}.
Training from scratch takes {scratch} times as many.
A batch that does not fit in the GPU's memory is split, as in any run. A trial whose model does not fit at all
fails, and the next one starts.

**Image size** is raised until three quarters of the objects have a side, √(width · height), of {seen} pixels:

{sizes}

Images are enlarged to at most {enlarged} times their size. If a quarter of the objects has fewer than {tiny}
pixels even then, and the images have more detail, they are tiled. Classifiers see crops of 224 pixels; CNNs
see crops of 160 pixels on the CPU, and of 128 if the images' short side has at most {small_images}. DETRs,
mask transformers and classifiers of the Hugging Face Hub keep their published size.
`box_detections_per_image` is raised if images have more objects.

**Time.** Each trial may use all of the remaining time, because one complete run of a strong model is worth
more than several short ones. `max_trials` is therefore an upper limit. If a run is too slow for the remaining
time, it gets fewer epochs, and its learning rate still decays to the end. No trial starts after the limit.
"""


def page() -> str:
    """The text of docs/automode.md."""
    cards = list(catalog.CARDS.values())
    introduction = _INTRODUCTION.format(evaluations=design.EVALUATIONS)
    models = _MODELS.format(many=MANY_IMAGES) + "\n".join(_model_rows()) + "\n"
    searched = _SEARCHED.format(
        rate=design.RATE_FACTOR,
        some=design.IMBALANCED,
        very=design.VERY_IMBALANCED,
    )
    models_of: dict[int, list[str]] = {}
    for card in cards:
        if card.epochs:
            models_of.setdefault(card.epochs, []).append(card.words)
    epochs = " or ".join(f"{count} ({' and '.join(words)})" for count, words in sorted(models_of.items()))
    fixed = _FIXED.format(
        scratch=design.FROM_SCRATCH_FACTOR,
        epochs=epochs,
        sizes=_table(["setting", "on", "usual", "at most", "one of"], list(_size_rows())),
        seen=image_sizes.MIN_OBJECT_PIXELS,
        tiny=image_sizes.TILED_BELOW_PIXELS,
        enlarged=image_sizes.MAX_ENLARGEMENT,
        small_images=image_sizes.SMALL_IMAGES,
    )
    return "\n".join([introduction, models, searched, fixed])


def _model_rows() -> Iterator[str]:
    for task, tables in GROUPS.items():
        if task is Task.MULTILABEL:
            continue
        name = f"{task}, also multilabel" if task is Task.CLASSIFICATION else str(task)
        for where, groups in tables.items():
            for group in groups:
                yield f"| {name} | {where} | {_models(group)} |"


def _size_rows() -> Iterator[list[str]]:
    cards = reversed(catalog.CARDS.values())  # image_size before min_size
    searched = {card.size_setting: card.searched_sides for card in cards if card.searched_sides}
    for name, sides in searched.items():
        for device, words in (("gpu", "a GPU"), ("cpu", "the CPU")):
            usual, largest = image_sizes.USUAL[device][name], image_sizes.LARGEST[device][name]
            yield [name, words, str(usual), str(largest), ", ".join(map(str, sides))]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _models(group: Group) -> str:
    parts = (group.models, group.larger) if group.larger else (group.models,)
    return "; ".join(", ".join(f"`{name}`" for name in part) for part in parts)


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
