"""What a model family provides. Only the modules of a family know its model library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainer.annotations import Detections, Examples, FloatArray, Image, Prediction
from trainer.errors import RunError
from trainer.models import tiling
from trainer.models.geometry import Geometry, Preparation
from trainer.models.precision import in_precision
from trainer.models.spec import Spec
from trainer.models.training_items import Batch, Draw, Progress
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainer.models.weights.description import Description
    from trainer.models.weights.published import PublishedWeights
    from trainer.settings import Settings

_VIEWS_PER_BATCH = 8  # tiles of a request that are tensors at the same time


class Family(ABC):
    """One model library's networks behind one interface.

    Bound to a spec; holds no weights and no state of a run.

    Validation and serving call the same `preprocess`, `infer` and `postprocess`, on the same views of an
    image, merged by the same rule (trainer.models.tiling), so that a model scores in production as it
    scored in training. When validation also needs losses, `infer_with_losses` returns what `infer` would.

    Precision: callers of `infer` and `infer_with_losses` disable autocast by `in_float32`, so that a
    mixed-precision run scores what will be served. `losses` runs in the run's precision; a family puts those
    parts under `in_float32` that need more digits than bfloat16 has.

    Threads: several threads may call `preprocess`, `infer` and `postprocess` at once with one network. A
    family whose library keeps thresholds in the network calls it through `with_attributes`.
    """

    average_tau: ClassVar[float | None] = None
    """Steps over which weight averaging ramps up; None: in proportion to the length of the run."""

    has_one_size: ClassVar[bool] = False
    """All training images have one size, except with multi_scale; cuDNN then tries its algorithms for it."""

    sums_losses: ClassVar[bool] = False
    """The recipe's learning rates are for losses summed over a batch's images, not averaged."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @property
    def has_nms(self) -> bool:
        """Whether nms_iou_threshold has an effect: NMS chooses among the network's boxes."""
        return True

    @property
    def max_boxes(self) -> int | None:
        """The number of boxes that the network predicts for an image, if that is an option of it."""
        return None

    @property
    def masks(self) -> bool:
        """Whether the network predicts masks."""
        return self.spec.task is Task.SEGMENTATION

    @staticmethod
    @abstractmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        """The values of `Spec.options`, which shape network and preprocessing.

        Args:
            pretrained: the network will start from weights, not from scratch.

        Raises:
            JobError: the model does not support a setting's value.
        """

    @staticmethod
    def described_options(
        task: Task, model: str, settings: Settings, description: Description, pretrained: bool
    ) -> dict[str, Any]:
        """`options` of a model that the files of the Hub describe; only for cards with `described_by_files`.

        Raises:
            JobError: the files describe no network of the family, or it does not support a setting's value.
        """
        raise NotImplementedError

    def options_at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The spec's options for images of other sizes than those of the run.

        Args:
            sizes: new values of options such as "image_size", in pixels.

        Raises:
            RunError: the network takes only images of the run's size.
        """
        return {**self.spec.options, **sizes}

    def _keep_size(self, sizes: Mapping[str, int], name: str) -> None:
        """Reject another value of an option that the network's weights are made for."""
        own = self.spec.options[name]
        if sizes.get(name, own) != own:
            raise RunError(
                f"{self.spec.model} takes only images of {own} pixels, as it was trained, not {sizes[name]}; "
                "train it with that size"
            )

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the network with random weights from torch's global generator, as its library starts it."""

    @abstractmethod
    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        """The layers that compute a logit for each class, which published weights do not have.

        Returns:
            Each with the probability of a class that `trainer.models.heads.start_near_prior` starts it from:
            the expected one for sigmoids, 0.5 for a softmax, which makes it uniform.
        """

    @abstractmethod
    def published(self) -> PublishedWeights:
        """The weights that the model's library publishes, and which parts of them fit."""

    @abstractmethod
    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Turn an image, uint8 [H, W, 3], into what the network takes, float32 [3, h, w]. Deterministic."""

    @abstractmethod
    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Any]:
        """Run the network, in eval mode, on preprocessed images; one raw output for each, on its device.

        Args:
            parameters: let a network prune early; `postprocess` applies them in full.
        """

    @abstractmethod
    def postprocess(self, output: Any, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        """One image's raw output → its prediction in normalised coordinates. Deterministic.

        Callers copy the outputs of a batch to the CPU first, by `trainer.models.transfers.on_cpu`.
        """

    def preparation(self) -> Preparation:
        """`preprocess` in numbers.

        Raises:
            RunError: the family's networks cannot be exported.
        """
        raise self._not_exportable()

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        """Run `infer` and the network's part of `postprocess` as one graph that torch.export can trace.

        It may set the network's own thresholds: a network that is exported serves no other purpose.

        Args:
            images: preprocessed, [1, 3, h, w]; [N, 3, h, w] for a classifier.

        Returns:
            `probs` [N, C], or the detections by descending score: `boxes` float32 [n, 4], xyxy in tensor
            pixels; `scores` float32 [n]; `labels` int64 [n]; for segmentation also `masks` bool [n, h, w].

        Raises:
            RunError: the family's networks cannot be exported.
        """
        raise self._not_exportable()

    def _not_exportable(self) -> RunError:
        return RunError(f"{self.spec.model}: networks of the family {self.spec.family} cannot be exported")

    @abstractmethod
    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> TrainingDataset:
        """Make the run's training items. All that the losses need to know of the run is in their batches.

        For the setting weighted_loss, "shared" in each batch has `class_weights`; None if it is off.
        """

    def cached_images(self, settings: Settings) -> int:
        """The number of images that the training dataset caches itself, to mix them with others."""
        return 0

    def short_side(self, settings: Settings) -> int | None:
        """Pixels that the short side of a training image needs; larger images may be decoded smaller.

        With that many, augmented images hardly differ; None if the number is unknown. Validation and serving
        always see images at full resolution.
        """
        return None

    @abstractmethod
    def validation_item(self, image: Tensor, target: Any, geometry: Geometry) -> Any:
        """Make an item for `collate` from a preprocessed image, not augmented, for validation losses."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Batch:
        """Items → one batch for `losses`."""

    def parts_to_compile(self, network: nn.Module) -> list[nn.Module]:
        """The modules that torch.compile makes faster; by default the whole network."""
        return [network]

    def sync_batch_norms(self, network: nn.Module) -> nn.Module:
        """Return the network with batch norms that take their statistics from all ranks' batches."""
        from torch.nn import SyncBatchNorm

        convert: Callable[[nn.Module], nn.Module] = SyncBatchNorm.convert_sync_batchnorm
        return convert(network)

    def part(self, batch: Batch, start: int, stop: int) -> Batch:
        """The micro-batch of images `start` … `stop` − 1."""
        return {key: value if key == "shared" else value[start:stop] for key, value in batch.items()}

    @abstractmethod
    def losses(self, network: nn.Module, batch: Batch, progress: Progress | None = None) -> dict[str, Tensor]:
        """Named scalar losses, each a mean over the batch; training minimises their sum.

        Args:
            progress: of the run; None for a validation loss.
        """

    def training_view(self, batch: Batch) -> list[tuple[Image, Prediction]]:
        """What a training step gives the network: each image with its target, for people to look at.

        A target has the form of a prediction whose scores are 1, or of class probabilities, which are mixed
        like the images. Random numbers come from torch's global generator, as in `losses`.

        Args:
            batch: of training items, on the CPU.

        Raises:
            RunError: the family's batches cannot be shown.
        """
        raise RunError(f"{self.spec.model}: batches of the family {self.spec.family} cannot be shown")

    def infer_with_losses(
        self, network: nn.Module, batch: Batch, parameters: ScoringParameters
    ) -> tuple[Sequence[Any], dict[str, Tensor]]:
        """Return what `infer` and `losses` do for one batch of validation items, with a network in eval mode.

        By default the network runs once for each; a family can share what the two have in common.
        """
        return self.infer(network, list(batch["images"]), parameters), self.losses(network, batch)

    @abstractmethod
    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """The groups of layers that `layers_to_freeze` counts, from the input on."""

    def linear_head(self, network: nn.Module) -> nn.Linear | None:
        """The layer that turns pooled features into a classifier's logits; None if there is no such layer.

        Whether the logits are indeed its outputs is for the caller to check.
        """
        return None

    def predict(
        self,
        network: nn.Module,
        images: Sequence[Image],
        parameters: ScoringParameters | None = None,
        half: torch.dtype | None = None,
    ) -> list[Prediction]:
        """Score decoded images, in order, on the network's device; with tiling, their tiles too.

        Args:
            half: bfloat16 or float16 for mixed precision; None for float32.
        """
        from trainer.models.transfers import as_full, on_cpu, to_device

        parameters = parameters or self.spec.parameters
        own_parameters = self.network_parameters(parameters)
        device = next(network.parameters()).device
        views = [
            (index, view)
            for index, image in enumerate(images)
            for view in tiling.views((image.shape[0], image.shape[1]), parameters)
        ]
        predictions: list[list[tuple[tiling.View, Prediction]]] = [[] for _ in images]
        for start in range(0, len(views), _VIEWS_PER_BATCH):
            batch = views[start : start + _VIEWS_PER_BATCH]
            prepared = [self.preprocess(tiling.cut(images[index], view)) for index, view in batch]
            tensors = [to_device(tensor, device) for tensor, _ in prepared]
            with in_precision(device, half):
                outputs = on_cpu(as_full(self.infer_by_size(network, tensors, own_parameters)))
            for (index, view), (_, geometry), output in zip(batch, prepared, outputs, strict=True):
                predictions[index].append((view, self.postprocess(output, geometry, own_parameters)))
        return [self.finished(tiling.merge(parts, own_parameters), parameters) for parts in predictions]

    def network_parameters(self, parameters: ScoringParameters) -> ScoringParameters:
        """The parameters of an answer as `infer` and `postprocess` take them, before calibration."""
        calibration = self.spec.calibration
        if calibration is None or self.spec.task.is_classification:
            return parameters
        threshold = calibration.threshold_before(parameters.box_score_threshold)
        return parameters.model_copy(update={"box_score_threshold": threshold})

    def finished(self, prediction: Prediction, parameters: ScoringParameters) -> Prediction:
        """Calibrate the scores of boxes, and keep the boxes that reach their class's threshold.

        Classifiers calibrate their logits in `postprocess`.

        Args:
            prediction: from `postprocess` with `network_parameters`, merged if there are tiles.
            parameters: of the answer; if its request sets a threshold, that one applies to all classes.
        """
        calibration, thresholds = self.spec.calibration, self.lowest_scores(parameters)
        if thresholds is None or not isinstance(prediction, Detections):
            return prediction
        scores = prediction.scores
        if calibration is not None:
            scores = calibration.apply(scores).astype(np.float32)
        kept = np.flatnonzero(scores >= thresholds[prediction.labels]).tolist()
        masks = prediction.masks and tuple(prediction.masks[index] for index in kept)
        boxes, labels = prediction.boxes[kept], prediction.labels[kept]
        return Detections(boxes, labels, scores[kept], prediction.image_size, masks)

    def lowest_scores(self, parameters: ScoringParameters) -> FloatArray | None:
        """The threshold of each class [C]; None if `postprocess` has applied the only threshold there is."""
        by_class = {} if parameters.replaces_class_thresholds else self.spec.class_score_thresholds
        if not by_class and self.spec.calibration is None:
            return None
        default = self.spec.parameters.box_score_threshold if by_class else parameters.box_score_threshold
        return np.array([by_class.get(name, default) for name in self.spec.classes], dtype=np.float32)

    def infer_by_size(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> list[Any]:
        """`infer` on tensors of one size at a time: padding an image to another's size changes its answer."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, tensor in enumerate(tensors):
            sizes.setdefault(tuple(tensor.shape), []).append(index)
        outputs: list[Any] = [None] * len(tensors)
        for indices in sizes.values():
            inferred = self.infer(network, [tensors[index] for index in indices], parameters)
            for index, output in zip(indices, inferred, strict=True):
                outputs[index] = output
        return outputs


class TrainingDataset(ABC):
    """The augmented training items of one run.

    Attributes:
        family: the family that the items are for.
        shared: what the losses need to know about the run; the same for all batches.
        largest_size: the largest `size` that multi_scale may draw for "shared" in a batch; None without it.
    """

    family: Family
    shared: Mapping[str, Any] = MappingProxyType({})
    largest_size: int | None = None

    @abstractmethod
    def item(self, draw: Draw) -> Any:
        """Make one item for `collate`: `draw.example`, augmented as in `draw.epoch`, mixed with `draw.pool`.

        Random numbers come from the global generators of random, NumPy and torch. The caller seeds them for
        each item, so that seed and draw alone determine it.
        """

    def collate(self, items: Sequence[Any]) -> Batch:
        """Items → one batch for `Family.losses`. By default it holds nothing but the items."""
        return self.family.collate(items)


def in_float32(device: torch.device) -> AbstractContextManager[None]:
    """Run a part of a mixed-precision run without autocast, in the precision in which models are served."""
    return in_precision(device, None)


def with_attributes(network: nn.Module, path: str, **values: Any) -> nn.Module:
    """Return a network in which one submodule has other attributes; it shares everything else with `network`.

    Args:
        path: the submodule's name, such as `roi_heads`; "" for the network itself.
    """
    changed = copy(network)
    if path:
        child, _, rest = path.partition(".")
        modules = {**network._modules, child: with_attributes(network.get_submodule(child), rest, **values)}
        changed.__dict__["_modules"] = modules
    else:
        changed.__dict__.update(values)
    return changed
