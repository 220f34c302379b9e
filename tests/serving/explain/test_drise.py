"""D-RISE: a box is explained by its object, the same way each time."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from serving.explain.drise import saliency
from serving.payload import parse_rows
from serving.scorer import Scorer
from tests.serving.explain.conftest import CLASSES, SIZE, bind, explain, row, scene
from trainer.annotations import Detections, Example, Image, Objects, Target
from trainer.errors import RequestError
from trainer.models.defaults import resolve
from trainer.models.training_items import Draw, Progress
from trainer.tasks import Task

N_MASKS = 120
ENOUGH_MASKS = 300
"""That a trained network's maps hardly depend on which masks are drawn."""


def red_things(images: Sequence[Image]) -> list[Detections]:
    """A detector of one rule: the box around all that is red, and how much of it is."""
    found = []
    for image in images:
        red = (image[..., 0] > 120) & (image[..., 1] < 80)
        if not red.any():
            empty = np.zeros((0, 4), np.float32)
            found.append(Detections(empty, np.zeros(0, np.int64), np.zeros(0, np.float32), image.shape[:2]))
            continue
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        box /= np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        score = np.array([red.sum() / 576], np.float32)
        found.append(Detections(box[None], np.zeros(1, np.int64), score, image.shape[:2]))
    return found


@pytest.mark.parametrize("size", [(64, 64), (90, 300), (500, 60), (1, 1)])
def test_detector_of_red_is_explained_by_red_pixels(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    height, width = size
    part = (slice(height // 2, height // 2 + height // 4), slice(width // 8, width // 8 + width // 4))
    image[part] = (200, 20, 20)
    if not (image[..., 0] == 200).any():
        image[0, 0] = (200, 20, 20)
    (target,) = red_things([image])
    other = np.array([[0.8, 0.0, 1.0, 0.1]], np.float32)
    boxes, labels = np.concatenate([target.boxes, other]), np.array([0, 1])
    maps = saliency(red_things, image, boxes, labels, N_MASKS)
    assert maps.shape[0] == 2
    assert max(maps.shape[1:]) <= 224
    assert np.isfinite(maps).all()
    # Nothing of the other class is ever found.
    assert not maps[1].any()
    if min(size) > 10:
        top, left = np.unravel_index(maps[0].argmax(), maps[0].shape)
        assert image[int(top * height / maps.shape[1]), int(left * width / maps.shape[2]), 0] == 200
    np.testing.assert_array_equal(saliency(red_things, image, boxes, labels, N_MASKS), maps)


class Squares:
    """Images of one square each (trainer.annotations.Examples)."""

    def __init__(self) -> None:
        self.scenes = [(number % 3, *scene(number % 3, 500 + number)) for number in range(48)]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Example:
        return Example(self.scenes[index][1], self.targets[index])

    @property
    def targets(self) -> list[Target]:
        return [
            Objects(np.array([box], np.float32) / SIZE, np.array([label]), np.zeros(1, dtype=bool))
            for label, _, box in self.scenes
        ]


@cache
def _trained(model: str) -> tuple[Scorer, Squares]:
    settings = {"image_size": 96}
    family = bind(Task.DETECTION, model, **settings)
    torch.manual_seed(1)
    network, examples = family.build(), Squares()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    plain = {**settings, "advanced_settings": {"apply_automl_train_augmentations": False}}
    dataset: Any = family.training_dataset(examples, resolve(Task.DETECTION, model, plain), seed=0)
    items = [dataset.item(Draw(0, index)) for index in range(len(examples))]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(180):  # the classes are known by 60, their places on every CPU only later
        network.train()
        batch = family.collate(items[step % 6 :: 6])
        loss = torch.stack(list(family.losses(network, batch, Progress(0, 30)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Scorer(family, network.eval().requires_grad_(False)), examples


def _knows(scorer: Scorer, examples: Squares) -> bool:
    few = examples.scenes[:6]
    answers = scorer.score_images([image for _, image, _ in few], scorer.spec.parameters)
    best = [(answer["boxes"] or [{"label": "", "score": 0}])[0] for answer in answers]
    return all(
        each["label"] == CLASSES[label] and each["score"] > 0.5
        for each, (label, _, _) in zip(best, few, strict=True)
    )


@pytest.fixture(scope="module")
def detector() -> tuple[Scorer, Squares]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _trained("yolo11n")


def test_saliency_of_a_trained_detector_is_on_the_objects(
    detector: tuple[Scorer, Squares],
) -> None:
    scorer, examples = detector
    assert _knows(scorer, examples)
    shares, expected, found = [], [], 0
    for _, image, (left, top, right, bottom) in examples.scenes[:6]:
        asked = {"xai_algorithm": "drise", "attributions": True, "visualizations": False}
        answer = explain(scorer, image, n_masks=ENOUGH_MASKS, **asked)
        relevance = answer["attributions"][0].clip(0)
        inside = np.zeros((SIZE, SIZE), dtype=bool)
        margin = 4  # of context
        inside[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = True
        shares.append(relevance[inside].sum() / relevance.sum())
        expected.append(inside.mean())
        peak = np.unravel_index(relevance.argmax(), relevance.shape)
        found += int(inside[peak])
    print("share of saliency on the object", np.mean(shares), "of the image's area", np.mean(expected))
    assert found >= 5, "by chance a quarter of the peaks would lie on the objects"
    assert np.mean(shares) > 1.4 * np.mean(expected)


def test_each_box_has_a_picture_and_a_map(detector: tuple[Scorer, Squares]) -> None:
    scorer, examples = detector
    image = examples.scenes[0][1]
    rows = parse_rows([row(image, xai_algorithm="drise", attributions=True, n_masks=10)], Task.DETECTION)
    (answer,) = scorer.score(rows, {"box_score_threshold": 0.05})
    (plain,) = scorer.score(
        parse_rows([row(image)["image_base64"]], Task.DETECTION), {"box_score_threshold": 0.05}
    )
    assert list(answer) == ["boxes", "visualizations", "attributions"]
    assert list(plain) == ["boxes"]
    assert answer["boxes"] == plain["boxes"]
    assert len(answer["visualizations"]) == len(answer["attributions"]) == len(answer["boxes"]) >= 1
    for picture in answer["visualizations"]:
        assert PILImage.open(io.BytesIO(base64.b64decode(picture))).format == "PNG"
    documented = parse_rows([row(image), row(image, xai_algorithm="guided_gradcam")], Task.DETECTION)
    assert [list(each) for each in scorer.score(documented, {})] == [["boxes"], ["boxes"]]
    (none,) = scorer.score(rows, {"box_score_threshold": 1.0})
    assert none == {"boxes": [], "visualizations": [], "attributions": []}
    with pytest.raises(RequestError, match=r"^row 0: xai_parameters.n_masks must be a whole number"):
        parse_rows([row(image, xai_algorithm="drise", n_masks=5001)], Task.DETECTION)


def test_objects_with_polygons_are_explained_too(packaged: Any) -> None:
    scorer = Scorer.load(packaged(Task.SEGMENTATION) / "artifacts", device="cpu")
    answer = explain(scorer, scene(0, 1)[0], xai_algorithm="drise", attributions=True, n_masks=10)
    assert len(answer["boxes"]) == len(answer["visualizations"]) == len(answer["attributions"]) > 0
    assert {len(each) for each in answer["boxes"]} == {4}
