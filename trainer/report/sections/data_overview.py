"""The sections about the data: how many images and objects of which classes and sizes, with examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.annotations import IntArray
from trainer.data.quality.data_findings import images_by_class
from trainer.data.quality.examined_images import ExaminedImages, object_sizes
from trainer.data.reading.records import Records
from trainer.report.charts.bar_chart import bar_chart, histogram
from trainer.report.charts.chart import Chart
from trainer.report.charts.scale import needs_log
from trainer.report.embedded_images import EmbeddedImages, card, gallery
from trainer.report.markup import Html, facts, note, source_location
from trainer.report.outlines import describe_labels, labelled_outlines, legend
from trainer.report.page import Page

_EXAMPLES = 12
_SMALL, _LARGE = 32, 96
"""COCO's limits: smaller and larger objects by the square root of their area, in pixels."""


def add_data_overview(page: Page, images: ExaminedImages, embedded: EmbeddedImages) -> None:
    """Add statistics of training and validation data, and examples of training images."""
    page.add("Data", _headline(images), *_charts(images))
    page.add("Labelled examples", *_examples(images.train, embedded))


def _headline(images: ExaminedImages) -> Html:
    validation = images.validation
    classes = {name for part in images.parts for name in part.classes}
    sizes = _known_sizes(images)
    median = "{:.0f} × {:.0f} pixels".format(*np.median(sizes, axis=0)) if len(sizes) else None
    unlabelled = sum(int(np.count_nonzero(np.diff(part.starts) == 0)) for part in images.parts)
    has_boxes = images.train.task.has_boxes
    return facts(
        [
            ("training images", len(images.train)),
            ("validation images", len(validation) if validation is not None else None),
            ("classes", len(classes)),
            ("objects", sum(len(part.labels) for part in images.parts) if has_boxes else None),
            ("images without a label", unlabelled or None),
            ("median image size", median),
            ("files", ", ".join(dict.fromkeys(file for part in images.parts for file in part.files))),
        ]
    )


def _known_sizes(images: ExaminedImages) -> IntArray:
    """Return (width, height) in pixels of the images whose size is known, int64 [n, 2]."""
    return images.sizes[(images.sizes > 0).all(axis=1)]


def _charts(images: ExaminedImages) -> list[object]:
    blocks: list[object] = [_class_chart(images)]
    sizes = _known_sizes(images).astype(float)
    if len(sizes):
        longer_sides, aspect_ratios = sizes.max(axis=1).tolist(), (sizes[:, 0] / sizes[:, 1]).tolist()
        blocks += [
            histogram("image-sizes", "Image sizes", longer_sides, x_label="longer side, pixels",
                      y_label="images", log=needs_log(longer_sides)),
            histogram("aspect-ratios", "Aspect ratios", aspect_ratios, x_label="width / height",
                      y_label="images"),
        ]  # fmt: skip
    if images.train.task.has_boxes:
        blocks += _object_charts(images)
    if 0 < images.scanned < len(images):
        sample = f"a sample of {images.scanned:,} of the {len(images):,} images"
        blocks.append(note(f"Image sizes and near-duplicates are based on {sample}."))
    return blocks


def _class_chart(images: ExaminedImages) -> Chart:
    counted = "objects" if images.train.task.has_boxes else "images"
    names = sorted({name for part in images.parts for name in part.classes})
    series = [
        (side, _count_by_class(part, names))
        for side, part in zip(("training", "validation"), images.parts, strict=False)
    ]
    order = sorted(range(len(names)), key=lambda index: -sum(counts[index] for _, counts in series))
    return bar_chart(
        "classes", f"Classes by number of {counted}", [names[index] for index in order],
        [(side, [counts[index] for index in order]) for side, counts in series], label_heading="class",
    )  # fmt: skip


def _count_by_class(records: Records, names: Sequence[str]) -> list[float]:
    """Count the objects of each class; in classification, the images."""
    counts = (
        np.bincount(records.labels, minlength=len(records.classes))
        if records.task.has_boxes
        else images_by_class(records)
    )
    count_of = dict(zip(records.classes, counts.tolist(), strict=True))
    return [count_of.get(name, 0) for name in names]


def _object_charts(images: ExaminedImages) -> list[Chart]:
    sizes = np.split(images.sizes, [len(images.train)])
    measured = [object_sizes(*part) for part in zip(images.parts, sizes, strict=False)]
    fractions, pixels = (np.concatenate(of_parts) for of_parts in zip(*measured, strict=True))
    percentages = (np.sqrt(fractions.prod(axis=1)) * 100).tolist()
    sides = np.sqrt(pixels.prod(axis=1))
    sides = sides[np.isfinite(sides)]
    per_image = np.concatenate([np.diff(part.starts) for part in images.parts]).tolist()
    coco_sizes = (
        f"By COCO's definition {np.mean(sides < _SMALL):.0%} are small (area below {_SMALL}² pixels), "
        f"{np.mean((sides >= _SMALL) & (sides < _LARGE)):.0%} medium and "
        f"{np.mean(sides >= _LARGE):.0%} large ({_LARGE}² or more)."
        if len(sides)
        else None
    )
    return [
        histogram("object-sizes", "Object sizes", percentages, log=needs_log(percentages), y_label="objects",
                  x_label="√(box area), % of √(image area)", notes=[coco_sizes] if coco_sizes else []),
        histogram("objects-per-image", "Objects per image", per_image, x_label="objects", y_label="images",
                  are_counts=True),
    ]  # fmt: skip


def _examples(records: Records, embedded: EmbeddedImages) -> list[object]:
    cards = []
    for index in _example_indices(records):
        labels = describe_labels(records, index)
        outlines = labelled_outlines(records, index)
        pane = embedded.pane(records, index, outlines, alt=f"Training image with {labels}")
        cards.append(card([pane], labels, " · ", source_location(records.location(index))))
    images = gallery(cards)
    if images is None:
        return [note("The images cannot be read from this machine, so none is shown.")]
    return [legend("labelled") if records.task.has_boxes else None, images, embedded.note()]


def _example_indices(records: Records) -> list[int]:
    """Choose images that show each class in turn, the same ones each time."""
    image_of_label = np.repeat(np.arange(len(records)), np.diff(records.starts))
    generator = np.random.default_rng(0)
    queues = [
        generator.permutation(np.unique(image_of_label[records.labels == label])).tolist()
        for label in generator.permutation(len(records.classes))[:_EXAMPLES]
    ]
    chosen: dict[int, None] = {}
    while len(chosen) < _EXAMPLES and any(queues):
        for queue in queues:
            while queue:
                index = queue.pop()
                if index not in chosen:
                    chosen[index] = None
                    break
    return list(chosen)[:_EXAMPLES]
