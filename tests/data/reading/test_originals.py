"""Real data read equal to the original annotations that they were converted from."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from trainer.annotations import Objects
from trainer.data.reading.jsonl import read
from trainer.data.reading.records import Records
from trainer.tasks import Task


def by_image(records: Records) -> dict[str, list[tuple[str, list[float]]]]:
    """File name → (class, normalised box) of each object."""
    found = {}
    for index in range(len(records)):
        target = records.target(index)
        assert isinstance(target, Objects)
        boxes = target.boxes.tolist()
        names = [records.classes[label] for label in target.labels]
        found[Path(records.source(index)).name] = list(zip(names, boxes, strict=True))
    return found


def read_all(folder: Path, task: Task) -> Records:
    result = read([folder / "train.jsonl", folder / "validation.jsonl"], task)
    assert not result.problems
    return result.records


@pytest.mark.parametrize(
    ("name", "voc"), [("cards/detection", "cards"), ("microcontrollers", "microcontrollers")]
)
def test_pascal_voc(name: str, voc: str, shared_data: Path) -> None:
    found = by_image(read_all(shared_data / name, Task.DETECTION))
    compared = 0
    for path in sorted((shared_data / voc / "annotations_voc").glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        image = next((key for key in found if Path(key).stem == path.stem), None)
        if image is None:
            continue
        originals = sorted(
            (
                node.findtext("name"),
                [float(node.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")],
            )
            for node in root.iter("object")
        )
        # The images were scaled after they had been annotated.
        annotated = [float(root.findtext(f"size/{side}", "")) for side in ("width", "height")]
        for (name_read, box), (name_true, true_box) in zip(sorted(found[image]), originals, strict=True):
            assert name_read == name_true
            np.testing.assert_allclose(box, np.array(true_box) / np.tile(annotated, 2), atol=1e-5)
            compared += 1
    assert compared >= len(found)


def test_coco(shared_data: Path) -> None:
    folder = shared_data / "fruits_nuts"
    coco = json.loads((folder / "annotations_coco.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    originals = defaultdict(list)
    for annotation in coco["annotations"]:
        originals[files[annotation["image_id"]]].append(annotation)
    outlines, boxes = (
        read_all(folder, Task.SEGMENTATION),
        by_image(read_all(folder / "detection", Task.DETECTION)),
    )
    compared = 0
    for index in range(len(outlines)):
        target = outlines.target(index)
        assert isinstance(target, Objects)
        assert target.polygons is not None
        file = Path(outlines.source(index)).name
        for position, annotation in enumerate(originals[file]):
            x, y, width, height = annotation["bbox"]
            name, box = boxes[file][position]
            assert name == outlines.classes[target.labels[position]] == names[annotation["category_id"]]
            in_pixels = np.array(box) * np.tile(outlines.sizes[index], 2)
            np.testing.assert_allclose(in_pixels, [x, y, x + width, y + height], atol=0.02)
            # the polygon's own bounds, which COCO rounds outwards to whole pixels
            np.testing.assert_allclose(
                target.boxes[position] * np.tile(outlines.sizes[index], 2),
                [x, y, x + width, y + height],
                atol=1.5,
            )
            pixels = [part * outlines.sizes[index] for part in target.polygons[position]]
            area = sum(cv2.contourArea(part.astype(np.float32)) for part in pixels)
            assert area == pytest.approx(annotation["area"], rel=0.03)
            compared += 1
    assert compared == len(coco["annotations"])
