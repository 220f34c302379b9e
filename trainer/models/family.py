"""What a model family provides. One family is one file, and the only place that knows its model library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from trainer.annotations import Detections, Examples, FloatArray, Image, Prediction
from trainer.errors import RunError
from trainer.models import tiling
from trainer.models.spec import Spec
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from trainer.models.weights.loading import Published
    from trainer.settings import Settings

_VIEWS_AT_ONCE = 8  # the network sees; of all the tiles in a request only so many are tensors at a time

Batch: TypeAlias = Mapping[str, Any]
"""What `collate` makes and `losses` takes. "images" holds a tensor for each; other keys are the family's."""


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


@dataclass(frozen=True, slots=True)
class Preparation:
    """`preprocess` in numbers, for those who feed an exported network themselves.

    Attributes:
        resizing: how pixels are resized: a rule's name with its numbers.
        size: (height, width) of every tensor, or None where it goes with the image's.
        mean: of RGB values in [0, 1]: tensor = (pixel / 255 − mean) / std.
        std: their standard deviation.
    """

    resizing: dict[str, Any]
    size: tuple[int, int] | None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


class Family(ABC):
    """One model library's networks behind one interface. Bound to a spec; holds no weights itself.

    Validation and serving call the same `preprocess`, `infer` and `postprocess`, on the same views of an
    image, merged by the same rule (trainer.models.tiling), so that a model scores in production what it
    scored in training. Where validation wants losses, too, `infer_with_losses` answers what `infer` would.
    """

    average_tau: ClassVar[float | None] = None
    """Steps over which an average of the weights sets in; None: in proportion to the training's length."""

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

    def preparation(self) -> Preparation:
        """What `preprocess` does.

        Raises:
            RunError: the family's networks cannot be exported.
        """
        raise RunError(f"{self.spec.model}: networks of the family {self.spec.family} cannot be exported")

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        """`infer` and the network's part of `postprocess` in one graph, as torch.export can trace it.

        Args:
            images: [1, 3, h, w] as `preprocess` gives them, N of them for a classifier.

        Returns:
            `probs` [N, C], or the image's detections by falling score: `boxes` float32 [n, 4], xyxy in tensor
            pixels; `scores` float32 [n]; `labels` int64 [n]; where there are masks, `masks` bool [n, h, w].

        Raises:
            RunError: the family's networks cannot be exported.
        """
        raise RunError(f"{self.spec.model}: networks of the family {self.spec.family} cannot be exported")

    @abstractmethod
    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> Dataset[Any]:
        """Augmented, preprocessed items for `collate`.

        If the dataset has a method `at_epoch(epoch, pool)`, it is told before each item how far the training
        is, and which examples lie ready to be mixed with it; none: any.
        """

    def images_at_hand(self, settings: Settings) -> int:
        """How many images the training dataset keeps itself, the latest, ready to be mixed with others."""
        return 0

    def short_side(self, settings: Settings) -> int | None:
        """Pixels that the short side of a training image needs; one with more may be decoded smaller.

        Large enough that what the augmentation makes of it hardly differs; None where that is not known.
        Validation and serving always see the whole image.
        """
        return None

    @abstractmethod
    def validation_item(self, image: Tensor, truth: Any, geometry: Geometry) -> Any:
        """An item for `collate` from a preprocessed image, without augmentation: for the validation loss."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Batch:
        """Items → one batch for `losses`."""

    def parts_to_compile(self, network: nn.Module) -> list[nn.Module]:
        """The modules that torch.compile does well with; here the whole network."""
        return [network]

    def sync_batch_norms(self, network: nn.Module) -> nn.Module:
        """The network, with batch norms that take their statistics from all ranks' batches."""
        from torch.nn import SyncBatchNorm

        convert: Callable[[nn.Module], nn.Module] = SyncBatchNorm.convert_sync_batchnorm
        return convert(network)

    def part(self, batch: Batch, start: int, stop: int) -> Batch:
        """The batch of images `start` … `stop` − 1: here each list and tensor holds an entry an image."""
        return {key: value[start:stop] for key, value in batch.items()}

    @abstractmethod
    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, each a mean over the batch; training minimises their sum."""

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[Sequence[Any], dict[str, Tensor]]:
        """`infer` and `losses` of one batch of validation items, with a network in eval mode.

        Here the network runs once for each; a family saves what the two have in common.
        """
        return self.infer(network, list(batch["images"]), parameters), self.losses(network, batch)

    @abstractmethod
    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The layers in the groups that `layers_to_freeze` counts, from the input on."""

    def predict(
        self, network: nn.Module, images: Sequence[Image], parameters: ScoringParameters | None = None
    ) -> list[Prediction]:
        """Score decoded images, in order, on the network's device; with tiling, their tiles too."""
        parameters = parameters or self.spec.parameters
        device = next(network.parameters()).device
        views = [
            (index, view)
            for index, image in enumerate(images)
            for view in tiling.views((image.shape[0], image.shape[1]), parameters)
        ]
        found: list[list[tuple[tiling.View, Prediction]]] = [[] for _ in images]
        for start in range(0, len(views), _VIEWS_AT_ONCE):
            batch = views[start : start + _VIEWS_AT_ONCE]
            prepared = [self.preprocess(tiling.cut(images[index], view)) for index, view in batch]
            outputs = self._unpadded(network, [tensor.to(device) for tensor, _ in prepared], parameters)
            for (index, view), (_, geometry), output in zip(batch, prepared, outputs, strict=True):
                found[index].append((view, self.postprocess(output, geometry, parameters)))
        return [self.above_class_thresholds(tiling.merge(parts, parameters), parameters) for parts in found]

    def above_class_thresholds(self, prediction: Prediction, parameters: ScoringParameters) -> Prediction:
        """The boxes with the score that their class needs; all if the request has a threshold of its own."""
        needed = self.spec.class_score_thresholds
        own = self.spec.parameters.box_score_threshold
        if not needed or not isinstance(prediction, Detections) or parameters.box_score_threshold != own:
            return prediction
        lowest = np.array([needed.get(name, own) for name in self.spec.classes], dtype=np.float32)
        kept = np.flatnonzero(prediction.scores >= lowest[prediction.labels]).tolist()
        masks = prediction.masks and tuple(prediction.masks[index] for index in kept)
        return replace(
            prediction,
            boxes=prediction.boxes[kept],
            labels=prediction.labels[kept],
            scores=prediction.scores[kept],
            masks=masks,
        )

    def _unpadded(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> list[Any]:
        """`infer`, those of one size at a time: padded to another's, an image is answered differently."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, tensor in enumerate(tensors):
            sizes.setdefault(tuple(tensor.shape), []).append(index)
        outputs: list[Any] = [None] * len(tensors)
        for indices in sizes.values():
            found = self.infer(network, [tensors[index] for index in indices], parameters)
            for index, output in zip(indices, found, strict=True):
                outputs[index] = output
        return outputs
