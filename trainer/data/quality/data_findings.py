"""Suspicious facts about valid data, by file and line: leakage, duplicates, imbalance, image sizes."""

from __future__ import annotations

import numpy as np

from trainer.annotations import IntArray
from trainer.data.quality import box_findings
from trainer.data.quality.examined_images import ExaminedImages, with_offsets
from trainer.data.quality.finding import Finding, Place, counted, names_text
from trainer.data.quality.near_duplicates import SimilarImages, find_similar, groups
from trainer.data.reading.records import Records

FEW_IMAGES = 10
"""A class with fewer training images is rare."""
IMBALANCE = 10.0
"""Ratio of the training images of the most and the least frequent class from which it is reported."""
MIN_IMAGE_SIDE = 32
"""Images with a shorter side, in pixels, are reported."""
_SAME_IMAGE_DISTANCE = 2
"""Bits in which the hashes of two files of one image may differ."""


def find_suspicious(images: ExaminedImages) -> list[Finding]:
    """Find everything suspicious about the data, serious findings first."""
    similar = find_similar(images.scans.hashes)
    has_boxes = images.train.task.has_boxes
    findings = [
        *_duplicates(images, similar),
        *_contradictions(images, similar),
        *_class_balance(images),
        *_image_sizes(images),
        *(box_findings.find_suspicious_boxes(images) if has_boxes else _backgrounds(images)),
    ]
    return sorted(findings, key=lambda finding: not finding.serious)


def _duplicates(images: ExaminedImages, similar: SimilarImages) -> list[Finding]:
    """Validation images that are training images, too, and images that occur several times in one set."""
    distances = dict(zip(map(tuple, similar.pairs.tolist()), similar.distances.tolist(), strict=True))
    nearest_in_training: dict[int, int] = {}  # validation image → the most similar training image
    for one, other in similar.pairs.tolist():  # the most similar pairs come first
        if images.in_validation(one) != images.in_validation(other):
            nearest_in_training.setdefault(other, one)
    leaks: list[Place] = []
    duplicates: list[Place] = []
    for first, *others in groups(similar.pairs):
        for index in others:
            is_leak = images.in_validation(index) and not images.in_validation(first)
            other = nearest_in_training.get(index, first) if is_leak else first
            is_exact = distances.get((other, index)) == 0
            relation = "the same image as" if is_exact else "nearly the same image as"
            place = Place(index, images.where(index), f"{relation} {images.where(other)}", other)
            (leaks if is_leak else duplicates).append(place)
    rest = "" if similar.is_complete else " There are so many that the search ended early."
    why_leaks = (
        "Metrics on images that the model was trained on are too good. Remove them from one of the sets, "
        "and keep images of one scene, patient or video in the same set."
    )
    why_duplicates = (
        "Duplicates count several times in training and may be split between training and validation. "
        "Keep one of each unless they are intended."
    )
    return [
        *_of_images(
            "leakage", leaks, "validation image", "also in the training data", why_leaks + rest, True
        ),
        *_of_images("duplicates", duplicates, "image", "like another of the same set", why_duplicates + rest),
    ]


def _contradictions(images: ExaminedImages, similar: SimilarImages) -> list[Finding]:
    """Duplicates with different labels."""
    places = []
    for one, other in similar.pairs[similar.distances <= _SAME_IMAGE_DISTANCE].tolist():
        first, second = _classes_of(images, one), _classes_of(images, other)
        if first != second:
            here, there = (names_text(names) or "no label" for names in (second, first))
            detail = f"{here} here, {there} at {images.where(one)}"
            places.append(Place(other, images.where(other), detail, one))
    places = sorted(places, key=lambda place: place.index)
    why = "One of the two labels is wrong, and the model learns both."
    return _of_images(
        "contradictions", places, "duplicate", "with other labels than the original", why, serious=True
    )


def _class_balance(images: ExaminedImages) -> list[Finding]:
    train = images.train
    counts = images_by_class(train)
    findings = []
    if len(counts) > 1 and counts.min() > 0 and counts.max() / counts.min() >= IMBALANCE:
        most, least = int(counts.argmax()), int(counts.argmin())
        title = (
            f"{train.classes[most]!r} has {counts[most] / counts[least]:.0f} times as many training images "
            f"as {train.classes[least]!r}: {counts[most]:,} and {counts[least]:,}"
        )
        why = "Rare classes are learned badly, which averages hide: check the per-class metrics."
        findings.append(Finding("imbalance", title, why, []))
    for part, others, name in _parts_with_others(images):
        own, other = images_by_class(part), images_by_class(others)
        missing = [label for label, count in zip(part.classes, own, strict=True) if not count]
        missing += [
            label
            for label, count in zip(others.classes, other, strict=True)
            if count and label not in part.classes
        ]
        if missing:
            title = f"{name} data have no image of {names_text(sorted(set(missing)))}"
            why = (
                "These classes will never be predicted."
                if name == "Training"
                else "How well the model recognises these classes cannot be measured."
            )
            findings.append(Finding("absent-classes", title, why, [], serious=name == "Training"))
    few = [
        f"{name} ({count})"
        for name, count in zip(train.classes, counts, strict=True)
        if 0 < count < FEW_IMAGES
    ]
    if few:
        title = f"{counted(len(few), 'class', 'classes')} with fewer than {FEW_IMAGES} training images"
        title += f": {names_text(few)}"
        findings.append(Finding("rare-classes", title, "That is usually too few to learn a class.", []))
    return findings


def _image_sizes(images: ExaminedImages) -> list[Finding]:
    small = np.flatnonzero((images.sizes > 0).all(axis=1) & (images.sizes.min(axis=1) < MIN_IMAGE_SIDE))
    blank = np.flatnonzero(images.scans.sizes.all(axis=1) & ~images.scans.hashes.any(axis=1))
    blanks = [Place(i, images.where(i), "without contrast") for i in blank.tolist()]
    thumbnails = [
        Place(i, images.where(i), f"{images.sizes[i][0]} x {images.sizes[i][1]} pixels")
        for i in small.tolist()
    ]
    under, why_small = f"with a side under {MIN_IMAGE_SIDE} pixels", "Are these thumbnails of larger images?"
    why_blank = "Is the image damaged, or was the lens covered?"
    return [
        *_of_images("blank-images", blanks, "image", "of a single colour", why_blank),
        *_of_images("small-images", thumbnails, "image", under, why_small),
    ]


def _backgrounds(images: ExaminedImages) -> list[Finding]:
    places = [
        Place(offset + index, part.location(index), "no label")
        for part, offset in with_offsets(images)
        for index in np.flatnonzero(np.diff(part.starts) == 0).tolist()
    ]
    why = "They teach the model that none of the classes is present. Is that right?"
    return _of_images("unlabelled", places, "image", "without any label", why)


def _of_images(
    kind: str, places: list[Place], noun: str, fact: str, why: str, serious: bool = False
) -> list[Finding]:
    """The finding titled, for example, "3 images without any label"; none if there are no places."""
    return [Finding(kind, f"{counted(len(places), noun)} {fact}", why, places, serious)] if places else []


def _parts_with_others(images: ExaminedImages) -> list[tuple[Records, Records, str]]:
    if images.validation is None:
        return []
    return [(images.train, images.validation, "Training"), (images.validation, images.train, "Validation")]


def images_by_class(records: Records) -> IntArray:
    """Number of images with at least one label of each class, int64 [C]."""
    image_of = np.repeat(np.arange(len(records)), np.diff(records.starts))
    pairs = np.unique(image_of * max(1, len(records.classes)) + records.labels)
    return np.bincount(pairs % max(1, len(records.classes)), minlength=len(records.classes))


def _classes_of(images: ExaminedImages, index: int) -> list[str]:
    records, own = images.at(index)
    labels = records.labels[records.starts[own] : records.starts[own + 1]]
    names = sorted(records.classes[label] for label in labels.tolist())
    return sorted(set(names)) if records.task.has_boxes else names
