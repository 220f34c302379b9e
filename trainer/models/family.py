"""What a model family provides. One family is one file, and the only place that knows its model library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

from trainer.annotations import Examples, FloatArray, Image, Prediction
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from trainer.models.weights import Published
    from trainer.settings import Settings

Batch: TypeAlias = Mapping[str, Any]
"""What `collate` makes and `losses` takes. "images" holds a tensor for each; other keys are the family's."""


class Spec(BaseModel):
    """All that is needed to rebuild a network and score with it; written as JSON beside the weights.

    Attributes:
        family: module name under trainer.models.
        model: the model's published name.
        classes: sorted class names; a prediction's label is an index into them.
        options: the family's own, e.g. the size its images are resized to.
        parameters: scoring defaults, overridable by request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    model: str
    task: Task
    classes: tuple[str, ...]
    options: dict[str, Any]
    parameters: ScoringParameters


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image's pixels map to its preprocessed tensor's: tensor_xy = image_xy · scale + offset.

    Attributes:
        image_size: (height, width) of the image, in pixels.
        tensor_size: (height, width) of the tensor the network sees.
        scale: (x, y) factors.
        offset: (x, y) in tensor pixels.
    """

    image_size: tuple[int, int]
    tensor_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    def boxes_to_tensor(self, boxes: FloatArray) -> FloatArray:
        """Normalised xyxy in the image [n, 4] → xyxy in tensor pixels [n, 4]."""
        height, width = self.image_size
        factor = np.array([width * self.scale[0], height * self.scale[1]] * 2, dtype=np.float32)
        return boxes * factor + np.array(self.offset * 2, dtype=np.float32)

    def boxes_to_image(self, boxes: FloatArray) -> FloatArray:
        """xyxy in tensor pixels [n, 4] → normalised xyxy in the image [n, 4], clipped to [0, 1]."""
        height, width = self.image_size
        factor = np.array([width * self.scale[0], height * self.scale[1]] * 2, dtype=np.float32)
        boxes = (np.asarray(boxes, dtype=np.float32) - np.array(self.offset * 2, dtype=np.float32)) / factor
        return boxes.clip(0, 1)


class Family(ABC):
    """One model library's networks behind one interface. Bound to a spec; holds no weights itself.

    Validation and serving call the same `preprocess`, `infer` and `postprocess`, so that a model scores
    in production what it scored in training.
    """

    requirements: ClassVar[tuple[str, ...]]
    """Distributions, beside torch and numpy, that a packaged model of this family imports."""

    averages_weights: ClassVar[bool] = False
    """The recipe evaluates and packages a moving average of the weights."""

    sums_losses: ClassVar[bool] = False
    """The recipe's learning rates go with losses summed over a batch's images, not averaged."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @staticmethod
    @abstractmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        """What shapes network and preprocessing, as `Spec.options`; pretrained: starts from weights."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights drawn from torch's global generator."""

    @abstractmethod
    def published(self) -> Published:
        """Where the weights that the model's library publishes are found, and what of them fits."""

    @abstractmethod
    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """uint8 [H, W, 3] → (float32 tensor [3, h, w] as the network takes it, geometry). Deterministic."""

    @abstractmethod
    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Any]:
        """Run the network (in eval mode) on preprocessed images; one raw output an image, on its device.

        `parameters` let a network prune early; `postprocess` applies them in full.
        """

    @abstractmethod
    def postprocess(self, output: Any, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        """One image's raw output → its prediction in normalised coordinates. Deterministic."""

    @abstractmethod
    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> Dataset[Any]:
        """Augmented, preprocessed items for `collate`."""

    @abstractmethod
    def validation_item(self, image: Tensor, truth: Any, geometry: Geometry) -> Any:
        """An item for `collate` from a preprocessed image, without augmentation: for the validation loss."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Batch:
        """Items → one batch for `losses`."""

    @abstractmethod
    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, each a mean over the batch; training minimises their sum."""

    @abstractmethod
    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The layers in the groups that `layers_to_freeze` counts, from the input on."""

    def predict(
        self, network: nn.Module, images: Sequence[Image], parameters: ScoringParameters | None = None
    ) -> list[Prediction]:
        """Score decoded images, in order, as one batch on the network's device."""
        parameters = parameters or self.spec.parameters
        device = next(network.parameters()).device
        prepared = [self.preprocess(image) for image in images]
        outputs = self.infer(network, [tensor.to(device) for tensor, _ in prepared], parameters)
        return [
            self.postprocess(output, geometry, parameters)
            for output, (_, geometry) in zip(outputs, prepared, strict=True)
        ]
