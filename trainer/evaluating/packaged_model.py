"""Runs a packaged model on the images of records, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from serving.locate import find_artifacts, find_model
from serving.scorer import in_batches, load_network
from trainer.annotations import Image, Prediction
from trainer.data.image_sources import read_image
from trainer.data.images import ImageError, decode
from trainer.data.reading.records import Records
from trainer.data.reading.urls import UrlError
from trainer.errors import DataError, Problem, RunError
from trainer.models.precision import Precision, check_scoring_precision, float32_products, half_of
from trainer.scoring import ScoringParameters

LOWEST_SCORE = 0.001
"""Score threshold under which objects are ignored in average precision, as is usual for COCO."""
_MAX_SHOWN = 20


class PackagedModel:
    """A trained model, ready to predict.

    Attributes:
        directory: of the MLflow model.
        spec: task, classes and parameters of the model.
    """

    def __init__(self, run_or_model: Path, device: str | None = None, precision: Precision = "auto") -> None:
        """Load the model.

        Args:
            device: in torch's notation; None takes the first GPU if there is one, else the CPU.
            precision: in which the network computes.

        Raises:
            RunError, WeightsError: the model is missing or incomplete, or the device is not available.
        """
        import torch

        try:
            if device is not None:
                torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise RunError(f"--device {device}: cannot be used: {str(error).splitlines()[0]}") from error
        self.directory = find_model(run_or_model).absolute()
        self._family, self._network = load_network(find_artifacts(run_or_model), device)
        self.spec = self._family.spec
        self._device = next(self._network.parameters()).device
        check_scoring_precision(precision, self._device)
        self._precision: Precision = precision

    def predict(
        self, records: Records, parameters: ScoringParameters
    ) -> Iterator[tuple[Prediction, tuple[int, int]]]:
        """Yield the prediction for each image, in order, with the image's (height, width).

        Raises:
            DataError: images cannot be read; raised after all others are predicted, to name all of them.
        """
        import torch

        problems: list[Problem] = []
        for batch in in_batches(_decode_each(records, problems)):
            images = [image for _, image in batch]
            on_gpu = self._device.type == "cuda"
            with torch.inference_mode(), float32_products(self._precision, on_gpu=on_gpu):
                half = half_of(self._precision)
                predictions = self._family.predict(self._network, images, parameters, half)
            for prediction, image in zip(predictions, images, strict=True):
                yield prediction, (image.shape[0], image.shape[1])
        if problems:
            raise DataError(f"{len(problems):,} images cannot be read", problems[:_MAX_SHOWN])


def _decode_each(records: Records, problems: list[Problem]) -> Iterator[tuple[int, Image]]:
    """Yield each readable image with its index; append a problem for each of the others."""
    for index in range(len(records)):
        try:
            yield index, read_image(records.source(index), decode)
        except (ImageError, UrlError) as error:
            rule = f"must name a readable image ({error})"
            problems.append(Problem(records.location(index), "image_url", rule, records.source(index)))
