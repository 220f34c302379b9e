"""Explains a network's answers: chooses what is explained, runs the method, encodes what it finds."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image as PILImage

from serving.answers import Answer
from serving.explain import methods
from serving.explain.picture import four_panels, png
from serving.explain.request import ExplanationRequest
from serving.explain.subject import Subject, with_shared_tensors
from trainer.annotations import Detections, FloatArray, Image
from trainer.errors import RequestError, RunError
from trainer.models import Family
from trainer.tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from serving.explain.rewriting import Halves
    from trainer.models.classifiers import Classifiers


# Of one image with several labels; each takes as long as the one of an image with one.
_MOST_CLASSES = 100


class Explainer:
    """Explains one network's answers. Safe to call from several threads: they take turns.

    It works on modules of its own that share the network's tensors, so that what it changes about them, and
    how long it takes, is nothing to those who score with the network meanwhile.
    """

    def __init__(self, family: Family, network: nn.Module) -> None:
        """`network` is in eval mode, without gradients of its weights, on its device."""
        self._family = family
        self._network = with_shared_tensors(network)
        self._halves: Halves | None = None
        self._guided: nn.Module | None = None
        self._obstacles: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def check(self, asked: ExplanationRequest, row: int | None = None) -> None:
        """Refuse a method that the network does not allow.

        Raises:
            RequestError: names the methods that can be used.
        """
        if not self._family.spec.task.is_classification:
            return
        obstacle = self._obstacle(asked.xai_algorithm)
        if obstacle is not None:
            usable = [name for name in methods.NAMES if self._obstacle(name) is None]
            raise RequestError(
                f"{asked.xai_algorithm} cannot explain {self._family.spec.model}: {obstacle}; "
                f"use {' or '.join(usable)}",
                row=row,
            )

    def _obstacle(self, name: str) -> str | None:
        with self._lock:
            if name not in self._obstacles:
                size = self._family.spec.options["crop_size"]
                self._obstacles[name] = methods.find(name).obstacle(self._network, size)
            return self._obstacles[name]

    def explain(
        self, image: Image, answer: Answer, asked: ExplanationRequest, row: int | None = None
    ) -> dict[str, Any]:
        """What `asked` adds to an image's answer.

        Raises:
            RequestError: names the row; the network cannot be explained so, or so many classes.
            RunError: the network's gradients are not finite.
        """
        self.check(asked, row)
        with self._lock:
            if self._family.spec.task.is_classification:
                return self._explain_classes(image, answer, asked, row)
            return self._explain_boxes(image, answer, asked)

    def _explain_classes(
        self, image: Image, answer: Answer, asked: ExplanationRequest, row: int | None
    ) -> dict[str, Any]:
        subject = self._subject(image)
        method = methods.find(asked.xai_algorithm)
        pictures, found = [], []
        for target in self._targets(answer["probs"], asked, row):
            relevance = method.attribute(subject, target, asked).cpu().numpy()
            _check_finite(relevance)
            if asked.attributions:
                found.append(np.ascontiguousarray(relevance, dtype=np.float32))
            if asked.visualizations:
                title = f"{answer['labels'][target]}  {answer['probs'][target]:.3f}"
                heat = method.heat(relevance)
                pictures.append(_encoded(subject.pixels, heat, title, asked.xai_algorithm))
        if self._family.spec.task is Task.MULTILABEL:
            return _chosen(asked, pictures, found)
        return _chosen(asked, pictures[0] if pictures else None, found[0] if found else None)

    def _explain_boxes(self, image: Image, answer: Answer, asked: ExplanationRequest) -> dict[str, Any]:
        """One map and one picture a box, in the answer's order; what tiles would find is not looked at."""
        from serving.explain.drise import saliency

        if not answer["boxes"]:
            return _chosen(asked, [], [])
        classes, sides = self._family.spec.classes, ("topX", "topY", "bottomX", "bottomY")
        boxes = np.array([[each["box"][side] for side in sides] for each in answer["boxes"]], np.float32)
        labels = np.array([classes.index(each["label"]) for each in answer["boxes"]])
        lowest = min(each["score"] for each in answer["boxes"])
        small = _shrunk(image, self._family)
        maps = saliency(self._detect(lowest), small, boxes, labels, asked.n_masks)
        _check_finite(maps)
        pictures = []
        if asked.visualizations:
            for each, box, relevance in zip(answer["boxes"], boxes, maps, strict=True):
                title = f"{each['label']}  {each['score']:.3f}"
                pictures.append(_encoded(small, relevance, title, "drise", box))
        return _chosen(asked, pictures, list(maps))

    def _detect(self, lowest: float) -> Callable[[Sequence[Image]], list[Detections]]:
        """The detector, with a threshold that keeps boxes whose score falls to a tenth of the lowest."""
        import torch

        threshold = min(0.05, max(0.001, lowest / 10))
        change = {"box_score_threshold": threshold, "tile_grid_size": None}
        parameters = self._family.spec.parameters.model_copy(update=change)

        def detect(images: Sequence[Image]) -> list[Detections]:
            with torch.inference_mode():
                found = self._family.predict(self._network, images, parameters)
            return cast("list[Detections]", found)

        return detect

    def _targets(self, probs: Sequence[float], asked: ExplanationRequest, row: int | None) -> list[int]:
        if self._family.spec.task is Task.MULTILABEL:
            threshold = asked.confidence_score_threshold_multilabel
            targets = [index for index, prob in enumerate(probs) if prob >= threshold]
            if len(targets) > _MOST_CLASSES:
                raise RequestError(
                    f"{len(targets)} classes have a probability of at least {threshold}, and "
                    f"{_MOST_CLASSES} can be explained; raise confidence_score_threshold_multilabel",
                    row=row,
                )
            return targets
        return [int(np.argmax(probs))]

    def _subject(self, image: Image) -> Subject:
        import torch

        family: Classifiers = self._family  # type: ignore[assignment]
        device = next(self._network.parameters()).device
        pixels, _ = family.centre_crop(image)
        tensor = family.normalised(torch.from_numpy(pixels).permute(2, 0, 1)).to(device)
        ends = [
            family.normalised(torch.full((3, 1, 1), value, dtype=torch.uint8)).to(device)
            for value in (0, 255)
        ]
        return Subject(self._network, self._split, self._guided_network, tensor, ends[0], ends[1], pixels)

    def _split(self) -> Halves:
        from serving.explain.rewriting import halves

        if self._halves is None:
            self._halves = halves(self._network, self._family.spec.options["crop_size"])
        return self._halves

    def _guided_network(self) -> nn.Module:
        from serving.explain.guided_backprop import guide

        if self._guided is None:
            self._guided = guide(with_shared_tensors(self._network))
        return self._guided


def _chosen(asked: ExplanationRequest, pictures: Any, attributions: Any) -> dict[str, Any]:
    given = {"visualizations": pictures} if asked.visualizations else {}
    return {**given, "attributions": attributions} if asked.attributions else given


def _encoded(
    pixels: Image, relevance: FloatArray, title: str, method: str, box: FloatArray | None = None
) -> str:
    return base64.b64encode(png(four_panels(pixels, relevance, title, method, box))).decode("ascii")


def _shrunk(image: Image, family: Family) -> Image:
    """The image, no larger than the network would make it: pixels that it does not see are not masked."""
    _, geometry = family.preprocess(image)
    factor = max(geometry.scale)
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(PILImage.fromarray(image).resize(size, PILImage.Resampling.BILINEAR))


def _check_finite(relevance: FloatArray) -> None:
    if not np.isfinite(relevance).all():
        raise RunError(
            "the explanation holds numbers that are not finite: the network's gradients overflow; "
            "package another checkpoint, or use another xai_algorithm"
        )
