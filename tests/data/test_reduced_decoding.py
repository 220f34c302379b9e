"""Decoding large JPEGs at a reduced scale for training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from trainer.data.datasets import RecordExamples
from trainer.data.images import decode
from trainer.data.reading.jsonl import read
from trainer.models import create, specify
from trainer.models.defaults import resolve
from trainer.tasks import Task

CLASSES = ("can", "carton")


def jpeg(size: tuple[int, int], orientation: int = 1) -> bytes:
    """A picture without symmetry, with edges and fine texture, of (width, height) as stored."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (size[1] // 30, size[0] // 30, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    pixels = cv2.add(pixels, generator.integers(0, 24, pixels.shape, dtype=np.uint8))
    pixels[size[1] // 5 : size[1] // 2, size[0] // 3 :] //= 3
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("short_side", "height", "width"),
    [
        (None, 603, 801),
        (603, 603, 801),
        (302, 603, 801),
        (301, 302, 401),
        (100, 151, 201),
        (75, 76, 101),
        (1, 76, 101),
    ],
)
def test_short_side_is_kept(short_side: int | None, height: int, width: int) -> None:
    assert decode(jpeg((801, 603)), short_side=short_side).shape == (height, width, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_pixels_are_about_the_mean_of_those_they_replace(orientation: int) -> None:
    content = jpeg((800, 600), orientation)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    for scale in (2, 4, 8):
        reduced = decode(content, short_side=600 // scale)
        expected = np.asarray(whole.reduce(scale), dtype=np.int64)
        assert reduced.shape == expected.shape
        assert np.abs(reduced - expected).mean() < 1.5  # of 255


def test_other_formats_stay_as_they_are() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (200, 100)).save(stream, "PNG")
    assert decode(stream.getvalue(), short_side=10).shape == (100, 200, 3)


@pytest.mark.parametrize(
    ("task", "model", "settings"),
    [
        (Task.CLASSIFICATION, "resnet18", {"training_crop_size": 64, "validation_crop_size": 64}),
        (Task.DETECTION, "yolo11n", {"image_size": 96}),
        (Task.DETECTION, "fasterrcnn_resnet18_fpn", {"min_size": 96, "max_size": 200}),
        (Task.DETECTION, "rtdetr-resnet50", {"image_size": 96}),
    ],
)
def test_network_inputs_hardly_differ(
    task: Task, model: str, settings: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg((1600, 1200)))
    box = {"label": "can", "topX": 0.1, "topY": 0.2, "bottomX": 0.5, "bottomY": 0.9}
    label = "can" if task is Task.CLASSIFICATION else [box]
    (tmp_path / "train.jsonl").write_text(json.dumps({"image_url": "1.jpg", "label": label}))
    records = read([tmp_path / "train.jsonl"], task).records
    resolved = resolve(task, model, settings)
    family = create(specify(task, model, resolved, CLASSES, pretrained=False))
    short_side = family.short_side(resolved)
    assert short_side is not None
    whole, reduced = (RecordExamples(records, CLASSES, side)[0].image for side in (None, short_side))
    assert reduced.shape[0] * 2 <= whole.shape[0]
    assert reduced.shape[0] >= short_side
    of_whole, of_reduced = (family.preprocess(image)[0] for image in (whole, reduced))
    assert of_whole.shape == of_reduced.shape
    spread = 1.0 if task.has_boxes else float(family.spec.options["std"][0])
    assert float((of_whole - of_reduced).abs().mean()) * spread < 4 / 255
