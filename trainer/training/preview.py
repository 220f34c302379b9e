"""Shows training images as the network gets them, for `trainer preview`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image as PILImage

from serving.answers import Answer, to_answer
from trainer.annotations import Classification, Objects, Prediction, Target
from trainer.data.datasets import RecordExamples
from trainer.drawing.predictions import draw_answer
from trainer.drawing.sheet import contact_sheet
from trainer.errors import JobError, Problem, RunError
from trainer.files import atomic_writer
from trainer.job.job import Job
from trainer.models import create, specify
from trainer.models.augmentation import pipeline
from trainer.models.training_items import Draw
from trainer.models.weights.choice import NONE
from trainer.report.markup import element
from trainer.report.page import Page
from trainer.training.job_data import load_data
from trainer.training.loading import Batches

_POLYGON_POINTS = 200
_MIN_BATCH = 8


@dataclass(frozen=True)
class Preview:
    """Training images before and after augmentation, with their targets drawn.

    Attributes:
        rows: for each image the original, then the image in each epoch.
        titles: a text for each of them.
        summary: what was augmented, and by what.
    """

    rows: Sequence[Sequence[PILImage.Image]]
    titles: Sequence[Sequence[str]]
    summary: str

    def write(self, path: Path) -> None:
        """Write a contact sheet, or an HTML page.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            if path.suffix.lower() == ".html":
                self._page().write(path)
            else:
                kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
                with atomic_writer(path, "wb") as file:
                    contact_sheet(self.rows, self.titles).save(file, kind, quality=92)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error

    def _page(self) -> Page:
        page = Page("Augmented training images", self.summary)
        for row, titles in zip(self.rows, self.titles, strict=True):
            panes = []
            for drawn, title in zip(row, ["original", *titles[1:]], strict=True):
                buffer = io.BytesIO()
                drawn.save(buffer, "JPEG", quality=88)
                source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
                image = element("img", src=source, alt=title, style="width:100%")
                panes.append(element("div", element("div", title, class_="pane-title"), image))
            page.add(titles[0], element("div", *panes, class_="grid"))
        return page


def preview(job: Job, *, images: int = 4, draws: int = 4) -> Preview:
    """Augment some training images as training would, in each of its first epochs.

    Args:
        images: number of images; with tiling, tiles count as images.
        draws: number of epochs.

    Raises:
        JobError, DataError, TrainingError: as for training.
    """
    if job.sweeps:
        rule = "shows a single run, not a sweep; remove the search space and max_trials"
        raise JobError("the job cannot be shown:", [Problem("", "", rule)])
    settings = job.resolve_settings()
    job.require_library()
    augment = pipeline.load(job.augmentation, job.task) if job.augmentation is not None else None
    data = load_data(job, settings.random_seed, check_images=False)
    job = job.for_images(len(data.train))
    settings = job.resolve_settings().model_copy(update={"number_of_workers": 0})
    spec = specify(
        job.task, job.model_name, settings, data.classes,
        pretrained=job.weights_choice != NONE, description=job.describe(),
    )  # fmt: skip
    family = create(spec)
    is_whole = settings.tile_grid_size is not None or augment is not None
    short_side = None if is_whole else family.short_side(settings)
    examples = RecordExamples(data.train, data.classes, short_side, quickly=True)
    seed = settings.random_seed or 0
    batches = Batches(family, examples, examples, settings, seed, augment=augment)
    order = np.random.default_rng(seed).permutation(len(batches.training)).tolist()
    # With enough others to be mixed with.
    members = order[: max(images, min(batches.batch_size, _MIN_BATCH))]
    rows, titles = [], []
    for index in members[:images]:
        example = batches.training[index]
        answer = _of_target(example.target, data.classes)
        rows.append([draw_answer(example.image, answer, data.classes)])
        is_tile = index >= len(data.train)
        titles.append(["a tile" if is_tile else PurePath(data.train.source(index)).name])
    for epoch in range(draws):
        items = [batches.training_items[Draw(epoch, index)] for index in members]
        batch = batches.training_items.collate(items)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed + epoch)
            shown = family.training_view(batch)
        for row, names, (image, target) in zip(rows, titles, shown[: len(rows)], strict=True):
            row.append(draw_answer(image, _of_view(target, data.classes), data.classes))
            names.append(f"epoch {epoch + 1}: {image.shape[1]} × {image.shape[0]}")
    own = f"; {augment.file.in_words()}" if augment is not None else ""
    return Preview(rows, titles, f"{job.model_name}, recipe {settings.recipe}{own}")


def _of_target(target: Target, classes: Sequence[str]) -> Answer:
    """A target of the data in the form of an answer without scores."""
    if not isinstance(target, Objects):
        present = [target] if isinstance(target, int) else np.flatnonzero(target).tolist()
        return {"probs": [1.0] * len(present), "labels": [classes[index] for index in present]}
    boxes = []
    for row, (left, top, right, bottom) in enumerate(target.boxes.tolist()):
        box = {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom}
        label = classes[int(target.labels[row])]
        polygons = target.polygons[row] if target.polygons is not None else ()
        boxes.append({"box": box, "label": label, "polygon": [part.ravel().tolist() for part in polygons]})
    return {"boxes": boxes}


def _of_view(target: Prediction, classes: Sequence[str]) -> Answer:
    """A training view's target in the form of an answer without scores."""
    answer = to_answer(target, classes, _POLYGON_POINTS)
    if isinstance(target, Classification):
        present = np.flatnonzero(target.probs > 0).tolist()
        return {name: [answer[name][index] for index in present] for name in ("probs", "labels")}
    return {"boxes": [{key: box[key] for key in box if key != "score"} for box in answer["boxes"]]}
