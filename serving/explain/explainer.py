"""Explains a network's answers: selects the classes or boxes, runs the method, encodes the results."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image as PILImage

from serving.answers import Answer
from serving.explain import methods
from serving.explain.panels import four_panels, png
from serving.explain.request import ExplanationRequest
from serving.explain.subject import Subject, with_shared_tensors
from trainer.annotations import Detections, FloatArray, Image
from trainer.errors import RequestError, RunError
from trainer.models import Family
from trainer.scoring import requested
from trainer.tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from serving.explain.subject import Halves

_MAX_CLASSES = 100
"""Explained per image of a multilabel model; each takes as long as an explanation of its own."""


class Explainer:
    """Explains one network's answers. Thread-safe: explanations take turns.

    It works on its own modules, which share the network's tensors. Threads that score with the network are
    neither changed nor delayed.
    """

    def __init__(self, family: Family, network: nn.Module) -> None:
        """`network` is in eval mode, on its device, and its weights require no gradients."""
        self._family = family
        self._network = with_shared_tensors(network)
        self._obstacles: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def check(self, request: ExplanationRequest, row: int | None = None) -> None:
        """Reject a method that cannot explain the network.

        Raises:
            RequestError: names the methods that can.
        """
        if not self._family.spec.task.is_classification:
            return
        obstacle = self._obstacle(request.xai_algorithm)
        if obstacle is not None:
            usable = [name for name in methods.NAMES if self._obstacle(name) is None]
            raise RequestError(
                f"{request.xai_algorithm} cannot explain {self._family.spec.model}: {obstacle}; "
                f"use {' or '.join(usable)}",
                row=row,
            )

    def _obstacle(self, name: str) -> str | None:
        with self._lock:
            if name not in self._obstacles:
                self._obstacles[name] = methods.find(name).obstacle(self._network, self._input_size)
            return self._obstacles[name]

    def explain(
        self, image: Image, answer: Answer, request: ExplanationRequest, row: int | None = None
    ) -> dict[str, Any]:
        """The entries that `request` adds to an image's answer.

        Raises:
            RequestError: names the row; the method cannot explain the network, or too many classes qualify.
            RunError: the network's gradients are not finite.
        """
        self.check(request, row)
        with self._lock:
            if self._family.spec.task.is_classification:
                return self._explain_classes(image, answer, request, row)
            return self._explain_boxes(image, answer, request)

    def _explain_classes(
        self, image: Image, answer: Answer, request: ExplanationRequest, row: int | None
    ) -> dict[str, Any]:
        subject = self._subject(image)
        method = methods.find(request.xai_algorithm)
        visualizations, attributions = [], []
        for target in self._targets(answer["probs"], request, row):
            relevance = method.attribute(subject, target, request).cpu().numpy()
            _check_finite(relevance)
            if request.attributions:
                attributions.append(np.ascontiguousarray(relevance, dtype=np.float32))
            if request.visualizations:
                title = f"{answer['labels'][target]}  {answer['probs'][target]:.3f}"
                heat = method.heat(relevance)
                visualizations.append(_encoded(subject.pixels, heat, title, request.xai_algorithm))
        entries = _requested(request, visualizations, attributions)
        if self._family.spec.task is Task.MULTILABEL:
            return entries
        return {name: values[0] for name, values in entries.items()}

    def _explain_boxes(self, image: Image, answer: Answer, request: ExplanationRequest) -> dict[str, Any]:
        """A map and a visualization of each box, in the answer's order; the detector scores without tiles."""
        from serving.explain.drise import saliency

        if not answer["boxes"]:
            return _requested(request, [], [])
        classes, sides = self._family.spec.classes, ("topX", "topY", "bottomX", "bottomY")
        boxes = np.array([[each["box"][side] for side in sides] for each in answer["boxes"]], np.float32)
        labels = np.array([classes.index(each["label"]) for each in answer["boxes"]])
        min_score = min(each["score"] for each in answer["boxes"])
        small = _shrunk(image, self._family)
        maps = saliency(self._detector(min_score), small, boxes, labels, request.n_masks)
        _check_finite(maps)
        visualizations = []
        if request.visualizations:
            for each, box, relevance in zip(answer["boxes"], boxes, maps, strict=True):
                title = f"{each['label']}  {each['score']:.3f}"
                visualizations.append(_encoded(small, relevance, title, "drise", box))
        return _requested(request, visualizations, list(maps))

    def _detector(self, min_score: float) -> Callable[[Sequence[Image]], list[Detections]]:
        """The detector with a threshold low enough to see a score fall to a tenth of the lowest."""
        import torch

        threshold = min(0.05, max(0.001, min_score / 10))
        change = {"box_score_threshold": threshold, "tile_grid_size": None}
        parameters = requested(self._family.spec.parameters, change)

        def detect(images: Sequence[Image]) -> list[Detections]:
            with torch.inference_mode():
                predictions = self._family.predict(self._network, images, parameters)
            return cast("list[Detections]", predictions)

        return detect

    def _targets(self, probs: Sequence[float], request: ExplanationRequest, row: int | None) -> list[int]:
        if self._family.spec.task is Task.MULTILABEL:
            threshold = request.confidence_score_threshold_multilabel
            targets = [index for index, prob in enumerate(probs) if prob >= threshold]
            if len(targets) > _MAX_CLASSES:
                raise RequestError(
                    f"{len(targets)} classes have a probability of at least {threshold}, but at most "
                    f"{_MAX_CLASSES} can be explained; raise confidence_score_threshold_multilabel",
                    row=row,
                )
            return targets
        return [int(np.argmax(probs))]

    def _subject(self, image: Image) -> Subject:
        import torch

        device = next(self._network.parameters()).device
        preparation = self._family.preparation()
        mean, std = (torch.tensor(values)[:, None, None] for values in (preparation.mean, preparation.std))
        tensor, _ = self._family.preprocess(image)
        pixels = ((tensor * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return Subject(
            network=self._network,
            halves=lambda: self._halves,
            guided=lambda: self._guided,
            tensor=tensor.to(device),
            black=((0 - mean) / std).to(device),
            white=((1 - mean) / std).to(device),
            pixels=pixels,
        )

    @property
    def _input_size(self) -> int:
        size = self._family.preparation().size
        assert size is not None, "classifiers resize every image to one size"
        return size[0]

    @cached_property
    def _halves(self) -> Halves:
        from serving.explain.rewriting import halves

        return halves(self._network, self._input_size)

    @cached_property
    def _guided(self) -> nn.Module:
        from serving.explain.guided_backprop import guide

        return guide(with_shared_tensors(self._network))


def _requested(request: ExplanationRequest, visualizations: Any, attributions: Any) -> dict[str, Any]:
    entries = {"visualizations": visualizations} if request.visualizations else {}
    return {**entries, "attributions": attributions} if request.attributions else entries


def _encoded(
    pixels: Image, relevance: FloatArray, title: str, method: str, box: FloatArray | None = None
) -> str:
    return base64.b64encode(png(four_panels(pixels, relevance, title, method, box))).decode("ascii")


def _shrunk(image: Image, family: Family) -> Image:
    """The image, at most as large as the network sees it: masking finer detail would have no effect."""
    _, geometry = family.preprocess(image)
    factor = max(geometry.scale)
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(PILImage.fromarray(image).resize(size, PILImage.Resampling.BILINEAR))


def _check_finite(relevance: FloatArray) -> None:
    if not np.isfinite(relevance).all():
        raise RunError(
            "the explanation contains numbers that are not finite: the network's gradients overflow; "
            "package another checkpoint, or use another xai_algorithm"
        )
