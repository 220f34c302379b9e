"""The report's part about the data: how much of what, how large, examples, and what is odd."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.annotations import IntArray, Objects
from trainer.data.quality.data_findings import find, images_by_class
from trainer.data.quality.examined_images import LOOKED_AT, Finding, Images, Place, object_sizes
from trainer.data.reading.records import Records
from trainer.errors import Problem
from trainer.report.charts.line_chart import bars, histogram
from trainer.report.charts.scale import wants_log
from trainer.report.embedded_images import Outline, Pictures, card, gallery, key, outlines_of
from trainer.report.markup import Html, Table, element, facts, joined, note, paragraph
from trainer.report.markup import place as place_shown
from trainer.report.page import Folded, Page

_EXAMPLES = 12
_PAIRS = 6
_PLACES = 50
_PROBLEMS = 500


def add(page: Page, images: Images, pictures: Pictures, problems: Sequence[Problem] = ()) -> None:
    """Add the sections about training and validation data.

    Args:
        problems: what checking the data against the schema told.
    """
    page.add("Data", _headline(images), *_charts(images))
    page.add("Examples", *_examples(images.train, pictures))
    findings = find(images)
    page.add("Problems found", *_found(images, findings, pictures), *of_the_schema(problems))


def _headline(images: Images) -> Html:
    train, validation, task = images.train, images.validation, images.train.task
    boxes = task.has_boxes
    sizes = images.sizes[(images.sizes > 0).all(axis=1)]
    middle = np.median(sizes, axis=0) if len(sizes) else None
    backgrounds = sum(int(np.count_nonzero(np.diff(part.starts) == 0)) for part in images.parts)
    return facts(
        [
            ("training images", len(train)),
            ("validation images", len(validation) if validation is not None else None),
            ("classes", len({*train.classes, *(validation.classes if validation is not None else ())})),
            ("objects", sum(len(part.labels) for part in images.parts) if boxes else None),
            ("images without a label", backgrounds or None),
            (
                "median image size",
                f"{middle[0]:.0f} x {middle[1]:.0f} pixels" if middle is not None else None,
            ),
            ("files", ", ".join(dict.fromkeys(file for part in images.parts for file in part.files))),
        ]
    )


def _charts(images: Images) -> list[object]:
    train, validation = images.train, images.validation
    what = "objects" if train.task.has_boxes else "images"
    names = sorted({name for part in images.parts for name in part.classes})
    series = [("training", _counts(train, names))]
    if validation is not None:
        series.append(("validation", _counts(validation, names)))
    order = sorted(range(len(names)), key=lambda place: -sum(counts[place] for _, counts in series))
    blocks: list[object] = [
        bars(
            "classes", f"Classes, by number of {what}", [names[place] for place in order],
            [(name, [counts[place] for place in order]) for name, counts in series], label_heading="class",
        )
    ]  # fmt: skip
    sizes = images.sizes[(images.sizes > 0).all(axis=1)].astype(float)
    if len(sizes):
        longer, ratio = sizes.max(axis=1), sizes[:, 0] / sizes[:, 1]
        blocks.append(
            histogram("image-sizes", "Image sizes", longer.tolist(), x_label="longer side, pixels",
                      y_label="images", log=wants_log(longer.tolist()))
        )  # fmt: skip
        blocks.append(
            histogram(
                "aspect-ratios", "Aspect ratios", ratio.tolist(), x_label="width / height", y_label="images"
            )
        )
    if train.task.has_boxes:
        blocks += _object_charts(images)
    if 0 < images.looked_at < len(images):
        blocks.append(
            note(f"Sizes and likeness are of {images.looked_at:,} images, drawn evenly from {len(images):,}.")
        )
    return blocks


def _object_charts(images: Images) -> list[object]:
    shares, pixels, per_image = [], [], []
    offset = 0
    for part in images.parts:
        share, pixel = object_sizes(part, images.sizes[offset : offset + len(part)])
        shares.append(np.sqrt(share.prod(axis=1)) * 100)
        pixels.append(np.sqrt(pixel.prod(axis=1)))
        per_image.append(np.diff(part.starts))
        offset += len(part)
    sides = np.concatenate(shares)
    known = np.concatenate(pixels)
    known = known[np.isfinite(known)]
    split = (
        f"By COCO's sizes: {np.mean(known < 32):.0%} small (under 32² pixels), "
        f"{np.mean((known >= 32) & (known < 96)):.0%} medium, {np.mean(known >= 96):.0%} large (from 96²).",
    )
    return [
        histogram("object-sizes", "Object sizes", sides.tolist(), log=wants_log(sides.tolist()),
                  y_label="objects", x_label="√(box area), % of √(image area)",
                  remarks=split if len(known) else ()),
        histogram("objects-per-image", "Objects in an image", np.concatenate(per_image).tolist(),
                  x_label="objects", y_label="images", counts_things=True),
    ]  # fmt: skip


def _counts(records: Records, names: Sequence[str]) -> list[float]:
    counted = (
        np.bincount(records.labels, minlength=len(records.classes))
        if records.task.has_boxes
        else images_by_class(records)
    )
    by_name = dict(zip(records.classes, counted.tolist(), strict=True))
    return [by_name.get(name, 0) for name in names]


def _examples(records: Records, pictures: Pictures) -> list[object]:
    cards = []
    for index in _chosen(records):
        outlines = _target_outlines(records, index)
        names = label_text(records, index)
        pane = pictures.pane(records, index, outlines, alt=f"Training image with {names}")
        cards.append(card([pane], names, " · ", place_shown(records.location(index))))
    shown = gallery(cards)
    if shown is None:
        return [note("The images cannot be read from here, so none is shown.")]
    return [key("true") if records.task.has_boxes else None, shown, pictures.remark and note(pictures.remark)]


def _chosen(records: Records, most: int = _EXAMPLES) -> IntArray:
    """Images that show each class in turn, the same ones each time."""
    image_of = np.repeat(np.arange(len(records)), np.diff(records.starts))
    generator = np.random.default_rng(0)
    queues = [
        generator.permutation(np.unique(image_of[records.labels == label])).tolist()
        for label in generator.permutation(len(records.classes))[:most]
    ]
    chosen: dict[int, None] = {}
    while len(chosen) < most and any(queues):
        for queue in queues:
            while queue:
                index = queue.pop()
                if index not in chosen:
                    chosen[index] = None
                    break
    return np.array(list(chosen)[:most], dtype=np.int64)


def label_text(records: Records, index: int) -> str:
    """What is labelled in an image, in words: `dog`, `3 can, 1 carton`, `no label`."""
    labels = records.labels[records.starts[index] : records.starts[index + 1]].tolist()
    counts = {records.classes[label]: labels.count(label) for label in sorted(set(labels))}
    if not counts:
        return "no label"
    if not records.task.has_boxes:
        return ", ".join(counts)
    said = [f"{count} {name}" for name, count in list(counts.items())[:6]]
    return ", ".join(said) + (" …" if len(counts) > 6 else "")


def _target_outlines(records: Records, index: int, only: int | None = None) -> list[Outline]:
    target = records.target(index)
    if not isinstance(target, Objects):
        return []
    outlines = outlines_of(target, records.classes)
    return outlines if only is None else outlines[only : only + 1]


def _found(images: Images, findings: Sequence[Finding], pictures: Pictures) -> list[object]:
    blocks: list[object] = []
    if not findings:
        blocks.append(paragraph("None of what is looked for: copies, leakage, odd boxes, imbalance."))
    for finding in findings:
        kind = "bad" if finding.serious else "warn"
        blocks.append(element("h3", element("span", "● ", class_=kind, aria_hidden="true"), finding.title))
        blocks.append(paragraph(finding.why))
        cards = [_card(images, place, pictures) for place in finding.places[:_PAIRS]]
        blocks.append(gallery(cards, pairs=any(place.other is not None for place in finding.places)))
        if finding.places:
            rows = [(element("code", place.where), place.detail) for place in finding.places]
            table = Table(f"found-{finding.kind}", finding.title, ("where", "what"), rows, limit=_PLACES)
            blocks.append(Folded(f"All {len(rows):,}, by file and line", table))
    looked = images.looked_at
    if looked < len(images):
        said = f"Copies and blank images were looked for among {looked:,} of {len(images):,} images"
        more = f", at most {LOOKED_AT:,} are decoded for it" if looked else ": none has been decoded"
        blocks.append(note(f"{said}{more}."))
    return blocks


def _card(images: Images, place: Place, pictures: Pictures) -> Html | None:
    panes = []
    shown = [place.index] if place.other is None else [place.other, place.index]
    for index in shown:
        records, own = images.at(index)
        outlines = _target_outlines(records, own, place.number) if place.number is not None else []
        where = images.where(index)
        side = "validation" if images.in_validation(index) else "training"
        title = joined([f"{side}: ", place_shown(where)]) if place.other is not None else ""
        panes.append(pictures.pane(records, own, outlines, title=title, alt=f"{side} image of {where}"))
    if place.other is not None and any(pane is None for pane in panes):
        return None
    return card(
        panes,
        place.detail if place.other is not None else joined([place_shown(place.where), " ", place.detail]),
    )


def of_the_schema(problems: Sequence[Problem]) -> list[object]:
    """What checking against the schema told: errors first."""
    if not problems:
        return []
    ordered = sorted(problems, key=lambda problem: problem.warning)
    rows = [
        (
            "warning" if problem.warning else "error",
            element("code", problem.where),
            problem.field,
            problem.rule,
            problem.got,
            problem.hint,
        )
        for problem in ordered
    ]
    errors = sum(not problem.warning for problem in problems)
    title = f"By the data schema: {errors:,} errors, {len(problems) - errors:,} warnings"
    columns = ("kind", "where", "field", "rule", "got", "hint")
    return [element("h3", title), Table("schema-problems", title, columns, rows, limit=_PROBLEMS)]
