"""What networks whose queries answer for objects share: a square's side, and the items that they train on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.annotations import Examples, Objects
from trainer.errors import JobError, Problem
from trainer.models.box_augmentation import augment, flip, jitter_scale
from trainer.models.class_weights import object_weights
from trainer.models.family import Family, TrainingDataset
from trainer.models.geometry import Geometry
from trainer.models.training_items import Batch, Draw

if TYPE_CHECKING:
    from trainer.settings import Settings

Item = dict[str, Any]


def check_side(model: str, side: int, step: int) -> None:
    """Check that a network takes images of this side.

    Args:
        side: in pixels.
        step: the number of pixels that it must be a multiple of.

    Raises:
        JobError: it is no multiple.
    """
    if side % step:
        near = sorted({max(step, side // step * step), -(-side // step) * step})
        rule, hint = f"must be a multiple of {step} for {model}", f"take {' or '.join(map(str, near))}"
        raise JobError("the settings cannot be used:", [Problem("", "image_size", rule, str(side), hint)])


class QueryItems(TrainingDataset):
    """Preprocessed images; before, at p = .5 a crop or an expansion ×1–2, then a flip.

    Large-scale jitter, where there is any, replaces crop and expansion.
    """

    def __init__(
        self,
        family: Family,
        target: Callable[[Objects, Geometry], Any],
        examples: Examples,
        settings: Settings,
        sizes: Sequence[int],
        jittered_size: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> None:
        """
        Args:
            target: what the losses take, from the objects of a preprocessed image.
            sizes: the sides, in pixels, that multi_scale draws from, ascending.
            jittered_size: the (height, width) to which large-scale jitter scales an image of (height, width);
                None for no jitter.
        """
        self.family, self.target, self.jittered_size = family, target, jittered_size
        self.examples = examples
        self.augments = settings.advanced_settings.apply_automl_train_augmentations
        self.sizes = sizes if settings.multi_scale else None
        self.largest_size = self.sizes[-1] if self.sizes else None
        classes = len(family.spec.classes)
        self.class_weights = object_weights(examples.targets, classes, settings.weighted_loss)

    def item(self, draw: Draw) -> Item:
        example = self.examples[draw.example]
        assert isinstance(example.target, Objects)
        image, objects = example.image, example.target
        if self.augments or self.jittered_size:
            generator = np.random.default_rng(int(torch.randint(2**62, ())))
            if self.jittered_size:
                size = self.jittered_size(*image.shape[:2])
                image, objects = jitter_scale(image, objects, size, generator)
            if self.augments:
                image, objects = (flip if self.jittered_size else augment)(image, objects, generator)
        tensor, geometry = self.family.preprocess(image)
        item: Item = {"image": tensor, "target": self.target(objects, geometry)}
        if self.sizes:
            item["size"] = random.choice(self.sizes)
        return item

    def collate(self, items: Sequence[Item]) -> Batch:
        """Batch the items; the first one's size applies to all."""
        shared = {"size": items[0]["size"]} if self.sizes else {}
        shared["class_weights"] = self.class_weights
        return {**self.family.collate(items), "shared": shared}
