"""Image classifiers, multiclass and multilabel: what the families of all libraries share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor, nn
from torchvision.transforms import v2

from trainer.annotations import Classification, Examples, Image, Prediction, Target
from trainer.models.class_weights import class_weights
from trainer.models.colour_jitter import ColourJitter
from trainer.models.family import Family, TrainingDataset
from trainer.models.geometry import Geometry, Preparation
from trainer.models.mixing import binary_cross_entropy, cross_entropy, mixed
from trainer.models.spec import Spec
from trainer.models.tensors import as_pixels, stacked
from trainer.models.training_items import AugmentedExamples, Batch, Draw, Progress
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings


BILINEAR = "bilinear"
_OF_TENSORS = (BILINEAR, "bicubic", "nearest")
"""The interpolations by which torchvision resizes tensors; PIL has more."""


def common_options(
    settings: Settings, mean: Sequence[float], std: Sequence[float], interpolation: str
) -> dict[str, Any]:
    """The options of a spec that every classifier has.

    Args:
        mean: of each channel's pixels, in [0, 1], as the published weights were trained.
        std: standard deviation, likewise.
        interpolation: what "published" stands for.
    """
    if settings.interpolation != "published":
        interpolation = settings.interpolation
    return {
        "resize_size": settings.validation_resize_size,
        "crop_size": settings.validation_crop_size,
        "training_crop_size": settings.training_crop_size,
        "mean": list(mean),
        "std": list(std),
        # Specs of older releases have neither.
        **({} if interpolation == BILINEAR else {"interpolation": interpolation}),
        **({"test_time_flip": True} if settings.test_time_flip else {}),
    }


class ImageClassifiers(Family):
    """Networks that give a logit for each class: softmax for one class per image, sigmoids for multilabel.

    "shared" in a training batch holds what the losses need to know of the run: `class_weights`, float32 [C]
    or None, `label_smoothing`, `focal_gamma`, `mixup_alpha` and `cutmix_alpha`.
    """

    has_one_size = True

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.multilabel = spec.task is Task.MULTILABEL
        self.temperature = spec.calibration.temperature if spec.calibration else 1.0
        self._scales: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def interpolation(self) -> str:
        """The name of the interpolation by which images are resized, as PIL and torchvision know it."""
        return str(self.spec.options.get("interpolation", BILINEAR))

    @property
    def stretches(self) -> bool:
        """Whether images are resized to squares, whatever their shape, instead of by their short side."""
        return bool(self.spec.options.get("stretches", False))

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Resize, crop the centre, normalise. The short side is resized, or with "stretches" both sides."""
        cut, geometry = self.centre_crop(image)
        return self.normalised(torch.from_numpy(cut).permute(2, 0, 1)), geometry

    def centre_crop(self, image: Image, side: int | None = None) -> tuple[Image, Geometry]:
        """Do what `preprocess` does without the normalisation: uint8 [crop_size, crop_size, 3].

        Args:
            side: of the result, to be resized in proportion; None: crop_size.
        """
        height, width = image.shape[:2]
        crop = side or self.spec.options["crop_size"]
        resize_size = round(self.spec.options["resize_size"] * crop / self.spec.options["crop_size"])
        if self.stretches:
            resized = (resize_size, resize_size)
        else:
            scale = resize_size / min(height, width)
            resized = (max(crop, round(height * scale)), max(crop, round(width * scale)))
        top, left = (resized[0] - crop) // 2, (resized[1] - crop) // 2
        # Resize only the part that the crop keeps: less work, the same pixels.
        x1, x2 = (offset * width / resized[1] for offset in (left, left + crop))
        y1, y2 = (offset * height / resized[0] for offset in (top, top + crop))
        resampling = PILImage.Resampling[self.interpolation.upper()]
        cut = PILImage.fromarray(image).resize((crop, crop), resampling, (x1, y1, x2, y2))
        scale_xy = (resized[1] / width, resized[0] / height)
        geometry = Geometry((height, width), (crop, crop), scale_xy, (-left, -top))
        return np.array(cut), geometry

    def normalised(self, image: Tensor) -> Tensor:
        """Normalise pixels, uint8 […, 3, h, w], to what the network takes, float32."""
        mean, std = self._scale(image.device)
        return (image.float() / 255 - mean) / std

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [3, 1, 1], copied to a device once: each copy waits for the device."""
        if device not in self._scales:
            with torch.inference_mode(False):  # the next call may come from training
                mean, std = (
                    torch.tensor(self.spec.options[name], device=device)[:, None, None]
                    for name in ("mean", "std")
                )
            self._scales[device] = mean, std
        return self._scales[device]

    def infer(
        self, network: nn.Module, tensors: Sequence[Tensor], parameters: ScoringParameters
    ) -> Sequence[Tensor]:
        """Logits, float32 [C] for each image."""
        return list(self._logits(network, torch.stack(list(tensors))))

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits, float32 [N, C], for validation and scoring; test_time_flip averages over mirror images."""
        logits: Tensor = network(images).float()
        if self.spec.options.get("test_time_flip", False):
            logits = (logits + network(images.flip(-1)).float()) / 2
        return logits

    def postprocess(self, output: Tensor, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        logits = output / self.temperature
        probs = logits.sigmoid() if self.multilabel else logits.softmax(0)
        return Classification(probs.cpu().numpy())

    def preparation(self) -> Preparation:
        options = self.spec.options
        crop, names = options["crop_size"], ("resize_size", "crop_size")
        rule = "both sides, centre crop" if self.stretches else "short side, centre crop"
        resizing = {"rule": rule, **{name: options[name] for name in names}}
        resizing["interpolation"] = f"{self.interpolation}, antialiased"
        return Preparation(resizing, (crop, crop), tuple(options["mean"]), tuple(options["std"]))

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        logits = self._logits(network, images) / self.temperature
        return {"probs": logits.sigmoid() if self.multilabel else logits.softmax(1)}

    def training_dataset(self, examples: Examples, settings: Settings, seed: int) -> TrainingDataset:
        return _TrainingDataset(self, examples, settings)

    def short_side(self, settings: Settings) -> int:
        """Four in five random crops take at least half of the image's side, and none takes less than 0.28."""
        return 3 * settings.training_crop_size

    def validation_item(self, image: Tensor, target: Target, geometry: Geometry) -> tuple[Tensor, Target]:
        return image, target

    def collate(self, items: Sequence[tuple[Tensor, Target]]) -> Batch:
        dtype = np.float32 if self.multilabel else np.int64
        targets = torch.from_numpy(np.array([target for _, target in items], dtype=dtype))
        return {"images": stacked([image for image, _ in items]), "targets": targets}

    def losses(self, network: nn.Module, batch: Batch, progress: Progress | None = None) -> dict[str, Tensor]:
        """Compute the cross entropy; in training as "shared" asks for: mixed, smoothed, weighted, focal."""
        images, targets, shared = batch["images"], batch["targets"], batch.get("shared", {})
        smoothing = focal_gamma = 0.0
        if images.dtype == torch.uint8:
            images = self.normalised(images)
        if network.training:
            images, targets = self._mixed(images, targets, shared)
            smoothing = shared.get("label_smoothing", 0.0)
            focal_gamma = shared.get("focal_gamma", 0.0)
        logits = network(images).float()
        entropy = binary_cross_entropy if self.multilabel else cross_entropy
        loss = entropy(logits, targets, shared.get("class_weights"), smoothing, focal_gamma)
        return {"loss_classifier": loss}

    def training_view(self, batch: Batch) -> list[tuple[Image, Prediction]]:
        mean, std = self._scale(torch.device("cpu"))
        images, targets = self._mixed(self.normalised(batch["images"]), batch["targets"], batch["shared"])
        if not targets.is_floating_point():
            targets = F.one_hot(targets, len(self.spec.classes)).float()
        pairs = zip(images * std + mean, targets, strict=True)
        return [(as_pixels(image), Classification(target.numpy())) for image, target in pairs]

    def _mixed(self, images: Tensor, targets: Tensor, shared: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        mixup_alpha, cutmix_alpha = shared.get("mixup_alpha", 0.0), shared.get("cutmix_alpha", 0.0)
        if not (mixup_alpha or cutmix_alpha):
            return images, targets
        if not self.multilabel:
            targets = F.one_hot(targets, len(self.spec.classes)).float()
        # The training loop seeds torch's generator, so that runs are repeatable.
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        return mixed(images, targets, generator, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)


class _TrainingDataset(TrainingDataset):
    """Images with a random resized crop, a flip, and colour jitter on half of them or RandAugment on all.

    Items are uint8 [3, h, w] with their target. The losses normalise them on the device: copying bytes there
    takes a quarter of the time.

    RandAugment: two random changes of colour or position, each of strength 9 of 30; uncovered pixels get the
    mean colour. Source: Cubuk et al. 2020, with the values for ResNet-50 on ImageNet.
    """

    def __init__(self, family: ImageClassifiers, examples: Examples, settings: Settings) -> None:
        self.family: ImageClassifiers = family
        self.examples = examples
        is_augmented = isinstance(examples, AugmentedExamples)
        self.side = settings.training_crop_size if is_augmented else None
        self.shared = {
            "class_weights": class_weights(
                examples.targets, len(family.spec.classes), family.multilabel, settings.weighted_loss
            ),
            "label_smoothing": settings.label_smoothing,
            "focal_gamma": settings.focal_gamma,
            "mixup_alpha": settings.mixup_alpha,
            "cutmix_alpha": settings.cutmix_alpha,
        }
        self.crops = settings.advanced_settings.apply_automl_train_augmentations
        self.steps: list[Callable[[Tensor], Tensor]] = []
        if self.crops:
            name = family.interpolation
            interpolation = v2.InterpolationMode(name if name in _OF_TENSORS else "bicubic")
            crop = v2.RandomResizedCrop(settings.training_crop_size, interpolation=interpolation)
            self.steps += [crop, v2.RandomHorizontalFlip()]
        if settings.random_augment:
            colour = [round(255 * value) for value in family.spec.options["mean"]]
            bilinear = v2.InterpolationMode.BILINEAR
            self.steps.append(v2.RandAugment(2, 9, interpolation=bilinear, fill=colour))
        elif self.crops:
            self.steps.append(ColourJitter(strength=0.4, share=0.5))

    def item(self, draw: Draw) -> tuple[Tensor, Target]:
        example = self.examples[draw.example]
        pixels = example.image if self.crops else self._centre(example.image)
        # Without a copy colours stay interleaved in memory, which torchvision resizes three times as fast.
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        for step in self.steps:
            image = step(image)
        return image, example.target

    def _centre(self, image: Image) -> Image:
        """The image's centre, in the size of training images if a user's transforms may set that size."""
        if self.side is None:
            return self.family.centre_crop(image)[0]
        if image.shape[:2] == (self.side, self.side):
            return image
        return self.family.centre_crop(image, self.side)[0]

    def collate(self, items: Sequence[tuple[Tensor, Target]]) -> Batch:
        return {**self.family.collate(items), "shared": self.shared}
