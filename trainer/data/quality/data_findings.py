"""What is odd about data that are right by the schema: copies, leakage, imbalance; by file and line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trainer.annotations import IntArray
from trainer.data.quality import box_findings
from trainer.data.quality.examined_images import Finding, Images, Place, counted, with_offsets
from trainer.data.quality.near_duplicates import Alike, alike, groups
from trainer.data.reading.records import Records

FEW_IMAGES, IMBALANCE = 10, 10.0
SMALLEST_IMAGE = 32


def find(images: Images) -> list[Finding]:
    """All that is odd, what is serious first."""
    found: list[Finding] = []
    copies = alike(images.looks.hashes)
    found += _copies(images, copies)
    found += _labelled_twice(images, copies)
    found += _balance(images)
    found += _image_sizes(images)
    if images.train.task.has_boxes:
        found += box_findings.find(images)
    else:
        found += _backgrounds(images)
    return sorted(found, key=lambda finding: not finding.serious)


def _copies(images: Images, copies: Alike) -> list[Finding]:
    leaked: list[Place] = []
    doubled: list[Place] = []
    nearest: dict[int, tuple[int, int]] = {}
    for (one, other), distance in zip(copies.pairs.tolist(), copies.distances.tolist(), strict=True):
        if images.in_validation(one) != images.in_validation(other):
            nearest.setdefault(other, (one, distance))
    exact = {
        (one, other): distance
        for (one, other), distance in zip(copies.pairs.tolist(), copies.distances.tolist(), strict=True)
    }
    for members in groups(copies.pairs):
        first = members[0]
        for index in members[1:]:
            crosses = images.in_validation(index) and not images.in_validation(first)
            other, distance = nearest.get(index, (first, -1)) if crosses else (first, -1)
            distance = exact.get((other, index), distance)
            said = "the same picture" if distance == 0 else "nearly the same picture"
            detail = f"{said} as {images.where(other)}"
            (leaked if crosses else doubled).append(Place(index, images.where(index), detail, other))
    rest = "" if copies.is_complete else " There are so many that the search ended early."
    found = []
    if leaked:
        why = (
            "Figures on pictures that the model was trained on flatter it. Take them out of one of the sets, "
            "and split pictures of one scene, patient or video together."
        )
        title = f"{counted(len(leaked), 'validation image')} in the training data as well"
        found.append(Finding("leakage", title, why + rest, leaked, serious=True))
    if doubled:
        why = "Copies count several times in training, and split badly. Keep one of each unless meant so."
        title = f"{counted(len(doubled), 'image')} like another one of the same set"
        found.append(Finding("duplicates", title, why + rest, doubled))
    return found


def _labelled_twice(images: Images, copies: Alike) -> list[Finding]:
    """Copies whose labels differ."""
    places = []
    for one, other in copies.pairs[copies.distances <= 2].tolist():
        first, second = _classes_of(images, one), _classes_of(images, other)
        if first != second:
            detail = f"{_named(second)} here, {_named(first)} at {images.where(one)}"
            places.append(Place(other, images.where(other), detail, one))
    if not places:
        return []
    title = f"{counted(len(places), 'copy', 'copies')} with other labels than the original"
    why = "One of the two is wrong, and the model is taught both."
    return [Finding("contradictions", title, why, _in_order(places), serious=True)]


def _balance(images: Images) -> list[Finding]:
    train = images.train
    counts = images_by_class(train)
    found = []
    if len(counts) > 1 and counts.min() > 0 and counts.max() / counts.min() >= IMBALANCE:
        most, least = int(counts.argmax()), int(counts.argmin())
        title = (
            f"{train.classes[most]!r} has {counts[most] / counts[least]:.0f} times as many training images "
            f"as {train.classes[least]!r}: {counts[most]:,} and {counts[least]:,}"
        )
        why = "Rare classes are learnt badly, and averages hide it: look at the per-class figures."
        found.append(Finding("imbalance", title, why, []))
    for part, others, name in _sides(images):
        own, other = images_by_class(part), images_by_class(others)
        missing = [label for label, count in zip(part.classes, own, strict=True) if not count]
        missing += [
            label
            for label, count in zip(others.classes, other, strict=True)
            if count and label not in part.classes
        ]
        if missing:
            title = f"{name} data have no image of {_listed(sorted(set(missing)))}"
            why = (
                "These classes will never be predicted."
                if name == "Training"
                else "Nothing can be said about how well these classes are recognised."
            )
            found.append(Finding("absent-classes", title, why, [], serious=name == "Training"))
    few = [
        f"{name} ({count})"
        for name, count in zip(train.classes, counts, strict=True)
        if 0 < count < FEW_IMAGES
    ]
    if few:
        title = f"{counted(len(few), 'class', 'classes')} with fewer than {FEW_IMAGES} training images"
        title += f": {_listed(few)}"
        found.append(Finding("rare-classes", title, "So few hardly teach a class.", []))
    return found


def _image_sizes(images: Images) -> list[Finding]:
    small = np.flatnonzero((images.sizes > 0).all(axis=1) & (images.sizes.min(axis=1) < SMALLEST_IMAGE))
    blank = np.flatnonzero(images.looks.sizes.all(axis=1) & ~images.looks.hashes.any(axis=1))
    found = []
    if len(blank):
        places = [Place(i, images.where(i), "without any contrast") for i in blank.tolist()]
        title = f"{counted(len(places), 'image')} of a single colour"
        found.append(
            Finding("blank-images", title, "Is the picture damaged, or a cover left on the lens?", places)
        )
    if len(small):
        places = [
            Place(i, images.where(i), f"{images.sizes[i][0]} x {images.sizes[i][1]} pixels")
            for i in small.tolist()
        ]
        title = f"{counted(len(places), 'image')} with a side under {SMALLEST_IMAGE} pixels"
        found.append(Finding("small-images", title, "Are these previews of larger pictures?", places))
    return found


def _backgrounds(images: Images) -> list[Finding]:
    places = [
        Place(offset + index, part.location(index), "no label")
        for part, offset in with_offsets(images)
        for index in np.flatnonzero(np.diff(part.starts) == 0).tolist()
    ]
    if not places:
        return []
    title = f"{counted(len(places), 'image')} without any label"
    return [Finding("unlabelled", title, "They teach that none of the classes is there. Is that so?", places)]


def _sides(images: Images) -> list[tuple[Records, Records, str]]:
    if images.validation is None:
        return []
    return [(images.train, images.validation, "Training"), (images.validation, images.train, "Validation")]


def images_by_class(records: Records) -> IntArray:
    """int64 [C]: how many images have at least one label of each class."""
    image_of = np.repeat(np.arange(len(records)), np.diff(records.starts))
    pairs = np.unique(image_of * max(1, len(records.classes)) + records.labels)
    return np.bincount(pairs % max(1, len(records.classes)), minlength=len(records.classes))


def _classes_of(images: Images, index: int) -> list[str]:
    records, own = images.at(index)
    labels = records.labels[records.starts[own] : records.starts[own + 1]]
    names = sorted(records.classes[label] for label in labels.tolist())
    return sorted(set(names)) if records.task.has_boxes else names


def _named(names: Sequence[str]) -> str:
    return _listed(names) if names else "no label"


def _listed(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _in_order(places: Iterable[Place]) -> list[Place]:
    return sorted(places, key=lambda place: place.index)
