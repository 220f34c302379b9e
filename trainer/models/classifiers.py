"""Image classifiers, multi-class and multi-label: timm's networks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from trainer.annotations import Classification, Examples, Image, Prediction, Truth
from trainer.errors import JobError, Problem
from trainer.models.catalog import TIMM, find
from trainer.models.family import Batch, Family, Geometry, Spec
from trainer.models.weights import Published
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings


class Classifiers(Family):
    """Logits over the classes; softmax for one class an image, a sigmoid each for several."""

    requirements = ("timm", "torchvision")

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.multilabel = spec.task is Task.MULTILABEL
        self.library_name = find(spec.model, spec.task).library_name
        self.mean = torch.tensor(spec.options["mean"])[:, None, None]
        self.std = torch.tensor(spec.options["std"])[:, None, None]
        self.class_weights: Tensor | None = None

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        config = _config(find(model, task).library_name)
        return {
            "resize_size": settings.validation_resize_size,
            "crop_size": settings.validation_crop_size,
            "training_crop_size": settings.training_crop_size,
            # The mean and deviation that the published weights were trained with.
            "mean": list(config.mean),
            "std": list(config.std),
        }

    def build(self) -> nn.Module:
        arguments: dict[str, Any] = {"num_classes": len(self.spec.classes)}
        if _config(self.library_name).fixed_input_size:
            arguments["img_size"] = self.spec.options["crop_size"]  # ViTs: sizes the position embedding
        network: nn.Module = timm.create_model(self.library_name, pretrained=False, **arguments)
        return network

    def published(self) -> Published:
        config = _config(self.library_name)
        name = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
        return Published(
            files=(f"{name}.safetensors", f"{name}/model.safetensors", f"{name}.pth"),
            hub=config.hf_hub_id or "",
            url=config.url or "",
            head=(config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier),
            # A ViT's position embedding is resampled to the crop's grid.
            adapt=_resampling(self.library_name) if config.fixed_input_size else None,
            licence=config.license or "",
        )

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Resize the short side, cut out the centre, normalise."""
        height, width = image.shape[:2]
        crop, scale = self.spec.options["crop_size"], self.spec.options["resize_size"] / min(height, width)
        resized = (max(crop, round(height * scale)), max(crop, round(width * scale)))
        top, left = (resized[0] - crop) // 2, (resized[1] - crop) // 2
        # Pillow resizes only the part that the crop keeps: less work, the same pixels.
        box = tuple(
            offset * side / whole
            for offset, side, whole in (
                (left, width, resized[1]),
                (top, height, resized[0]),
                (left + crop, width, resized[1]),
                (top + crop, height, resized[0]),
            )
        )
        cut = PILImage.fromarray(image).resize((crop, crop), PILImage.Resampling.BILINEAR, box=box)
        geometry = Geometry(
            image_size=(height, width),
            tensor_size=(crop, crop),
            scale=(resized[1] / width, resized[0] / height),
            offset=(-left, -top),
        )
        return self._normalised(np.asarray(cut)), geometry

    def _normalised(self, image: Image) -> Tensor:
        return (torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 - self.mean) / self.std

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Tensor]:
        """Logits, float32 [C] an image."""
        return list(network(torch.stack(list(tensors))).float())

    def postprocess(self, output: Tensor, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        probs = output.sigmoid() if self.multilabel else output.softmax(0)
        return Classification(probs.cpu().numpy())

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> Dataset[Any]:
        self.class_weights = class_weights(
            examples.truths, len(self.spec.classes), self.multilabel, settings.weighted_loss
        )
        return _TrainingDataset(self, examples, settings)

    def validation_item(self, image: Tensor, truth: Truth, geometry: Geometry) -> tuple[Tensor, Truth]:
        return image, truth

    def collate(self, items: Sequence[tuple[Tensor, Truth]]) -> Batch:
        dtype = np.float32 if self.multilabel else np.int64
        targets = torch.from_numpy(np.array([truth for _, truth in items], dtype=dtype))
        return {"images": torch.stack([image for image, _ in items]), "targets": targets}

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = network(batch["images"]).float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.multilabel:
            loss = F.binary_cross_entropy_with_logits(logits, batch["targets"], pos_weight=weights)
        else:
            loss = F.cross_entropy(logits, batch["targets"], weight=weights)
        return {"loss_classifier": loss}

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """ResNets: conv1+bn1, layer1–4. MobileNet: stem, each block, head. ViTs: patch_embed, each block.

        Of other networks every child in turn, but the blocks of a sequence each, up to the classifier.
        """
        children = dict(network.named_children())
        if "patch_embed" in children and "blocks" in children:
            return [[children["patch_embed"]], *([block] for block in children["blocks"].children())]
        if "conv_stem" in children and "conv_head" in children:
            blocks = [block for stage in children["blocks"].children() for block in stage.children()]
            head = [children["conv_head"], children["bn2"]]
            return [[children["conv_stem"], children["bn1"]], *([block] for block in blocks), head]
        if "conv1" in children and "layer4" in children:
            stem = [children[name] for name in ("conv1", "bn1") if name in children]
            return [stem, *([children[f"layer{i}"]] for i in range(1, 5))]
        classifier = {name.split(".")[0] for name in self.published().head}
        parts = [
            list(child.children()) if isinstance(child, nn.Sequential) else [child]
            for name, child in children.items()
            if name not in classifier
        ]
        return [[part] for group in parts for part in group if any(True for _ in part.parameters())]


def _config(library_name: str) -> Any:
    """timm's description of a model and of the weights published for it.

    Raises:
        JobError: timm has no such model.
    """
    config = timm.get_pretrained_cfg(library_name) if timm.is_model(library_name) else None
    if config is None:
        near = difflib.get_close_matches(library_name, timm.list_models() + timm.list_pretrained(), n=3)
        hint = f"did you mean {' or '.join(TIMM + name for name in near)}?" if near else "upgrade timm"
        rule = f"timm {timm.__version__} has no model {library_name!r}"
        raise JobError("the model cannot be used", [Problem("model_name", "", rule, hint=hint)])
    return config


def _resampling(library_name: str) -> Callable[..., dict[str, Tensor]] | None:
    """What the network's module in timm does to a file's tensors, such as resampling position embeddings."""
    module = import_module(timm.model_entrypoint(library_name).__module__)
    adapt: Callable[..., dict[str, Tensor]] | None = getattr(module, "checkpoint_filter_fn", None)
    return adapt


def class_weights(truths: Sequence[Truth], classes: int, multilabel: bool, kind: int) -> Tensor | None:
    """Loss weights against class imbalance, float32 [C]; None if off or the data are balanced.

    With f_c the images of class c among n: 1/f_c for multi-class, (n − f_c)/f_c for multi-label; kind 1 takes
    the square root. A class without images gets 0. They act when max f // max(1, min f) is over 2.
    Source: the documented `weighted_loss` of Azure AutoML for Images.
    """
    if kind == 0:
        return None
    if multilabel:
        frequency = np.sum(np.stack([np.asarray(truth) for truth in truths]), axis=0).astype(np.float64)
    else:
        frequency = np.bincount(np.array(truths, dtype=np.int64), minlength=classes).astype(np.float64)
    if frequency.max() // max(1.0, frequency.min()) <= 2:
        return None
    numerator = len(truths) - frequency if multilabel else np.ones(classes)
    weights = np.divide(numerator, frequency, out=np.zeros(classes), where=frequency > 0)
    return torch.from_numpy(np.sqrt(weights) if kind == 1 else weights).float()


class _TrainingDataset(Dataset[tuple[Tensor, Truth]]):
    """Random resized crop, flip, colour jitter on half the images, normalisation."""

    def __init__(self, family: Classifiers, examples: Examples, settings: Settings) -> None:
        size = settings.training_crop_size
        self.family = family
        self.examples = examples
        self.augmentation: v2.Transform | None = None
        if settings.advanced_settings.apply_automl_train_augmentations:
            jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
            crop = v2.RandomResizedCrop(size, antialias=True)
            self.augmentation = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandomApply([jitter], p=0.5)])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Truth]:
        example = self.examples[index]
        if self.augmentation is None:
            return self.family.preprocess(example.image)[0], example.truth
        image = self.augmentation(torch.from_numpy(example.image).permute(2, 0, 1).contiguous())
        return (image.float() / 255 - self.family.mean) / self.family.std, example.truth


FAMILY = Classifiers
