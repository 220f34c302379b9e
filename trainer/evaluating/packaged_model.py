"""What a packaged model predicts on the images of data, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from serving.locate import find_artifacts
from serving.scorer import in_batches, load_network
from trainer.annotations import Image, Prediction
from trainer.data.images import ImageError, decode
from trainer.data.reading.records import Records
from trainer.data.reading.urls import UrlError, local_path
from trainer.errors import DataError, Problem, RunError
from trainer.scoring import ScoringParameters

if TYPE_CHECKING:
    from torch import nn

    from trainer.models import Family, Spec

LOWEST_SCORE = 0.001
"""Of what is looked at for average precision, as is usual for COCO's."""
_SHOWN = 20


class PackagedModel:
    """A trained model, ready to predict.

    Attributes:
        spec: what it is.
    """

    def __init__(self, run_or_model: Path, device: str | None = None) -> None:
        """Load it; `device`: torch's name of it, None takes the first GPU if there is one, else the CPU.

        Raises:
            RunError, WeightsError: there is no whole model; or the device is not to be had.
        """
        import torch

        try:
            if device is not None:
                torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise RunError(f"--device {device}: cannot be used: {str(error).splitlines()[0]}") from error
        self._family: Family
        self._network: nn.Module
        self._family, self._network = load_network(find_artifacts(run_or_model), device)
        self.spec: Spec = self._family.spec

    def predict(
        self, records: Records, parameters: ScoringParameters
    ) -> Iterator[tuple[Prediction, tuple[int, int]]]:
        """The prediction for each image, in order, with the image's (height, width).

        Raises:
            DataError: images cannot be read; all others are predicted first, so that it names all.
        """
        import torch

        problems: list[Problem] = []
        for batch in in_batches(_decoded(records, problems)):
            images = [image for _, image in batch]
            with torch.inference_mode():
                found = self._family.predict(self._network, images, parameters)
            for prediction, image in zip(found, images, strict=True):
                yield prediction, (image.shape[0], image.shape[1])
        if problems:
            raise DataError(f"{len(problems):,} images cannot be read", problems[:_SHOWN])


def _decoded(records: Records, problems: list[Problem]) -> Iterator[tuple[int, Image]]:
    for index in range(len(records)):
        try:
            yield index, decode(local_path(records.source(index)))
        except (ImageError, UrlError) as error:
            rule = f"must name an image that can be read ({error})"
            problems.append(Problem(records.location(index), "image_url", rule, records.image_url(index)))
