"""Batches for training and validation: seeded item by item, split over ranks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from trainer.annotations import Examples
from trainer.data.datasets import ValidationDataset
from trainer.data.tiles import TiledExamples
from trainer.models import Family
from trainer.models.defaults import default_settings
from trainer.settings import Settings
from trainer.training.balance import image_weights
from trainer.training.devices import cores_of_a_rank
from trainer.training.memory import give_back

FloatArray64: TypeAlias = npt.NDArray[np.float64]


_FEW = 256
"""Of so many training images, any may be mixed with any."""
_POOL, _LEAST_POOL = 128, 64
"""Of more, an image is mixed with one of so many that its loader worker has made lately."""


class Draw(NamedTuple):
    """What the training sampler asks for: an example, in an epoch.

    Attributes:
        pool: the examples to mix it with, such as in a mosaic; none: all.
    """

    epoch: int
    example: int
    pool: Sequence[int] = ()


class EpochSampler(Sampler[Draw]):
    """A fresh seeded order each epoch, of which every rank takes its share.

    The order depends on seed and epoch alone, so that a training continued at an epoch sees the same
    batches. Shares are of equal length: the first examples of the order fill up the last one.

    Of more than 256 examples, and more than are at hand, a batch is mixed with those of the batches that its
    loader worker made before it, which it still has decoded; while these are few, with others drawn at
    random. Which they are depends on the size of batches and the number of workers, too.

    Args:
        weights: draw with replacement, each example by its probability, instead of each once.
        epoch: the first; loader workers ask for items before Lightning says which epoch it is.
        at_hand: examples that a worker keeps decoded, the latest; 0: any may be mixed with any.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        rank: int,
        ranks: int,
        weights: FloatArray64 | None = None,
        epoch: int = 0,
        batch_size: int = 1,
        workers: int = 0,
        at_hand: int = 0,
    ) -> None:
        self.length, self.seed, self.rank, self.ranks = length, seed, rank, ranks
        self.weights = weights
        self.epoch = epoch
        self.batch_size, self.workers, self.at_hand = batch_size, workers, at_hand

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.ranks)

    def __iter__(self) -> Iterator[Draw]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            order = generator.permutation(self.length)
        else:
            order = generator.choice(self.length, self.length, p=self.weights)
        share = np.resize(order, len(self) * self.ranks)[self.rank :: self.ranks].tolist()
        epoch, size = self.epoch, self.batch_size
        for start in range(0, len(share), size):
            pool = self._pool(share, start)
            yield from (Draw(epoch, index, pool) for index in share[start : start + size])

    def _pool(self, share: list[int], start: int) -> tuple[int, ...]:
        if not self.at_hand or self.length <= max(_FEW, self.at_hand):
            return ()
        size = self.batch_size
        # PyTorch deals batches out to its workers in turn.
        starts = range(start, -1, -size * max(1, self.workers))[: -(-min(_POOL, self.at_hand) // size)]
        pool = [index for first in starts for index in share[first : first + size]]
        if (missing := min(_LEAST_POOL, self.at_hand) - len(pool)) > 0:
            generator = np.random.default_rng([self.seed, self.epoch, self.rank, start])
            pool += generator.choice(self.length, missing, p=self.weights).tolist()
        return tuple(pool)


class SeededItems(Dataset[Any]):
    """A family's training dataset whose random augmentation depends on the seed and the draw alone.

    So runs repeat exactly, and a training can go on in the middle. The global generators, from which
    libraries draw, are set for the item and, but in a loader's worker, which has no other use for them, put
    back after it.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Any:
        states = _generators() if get_worker_info() is None else None
        seeds = np.random.SeedSequence([self.seed, draw.epoch, draw.example]).generate_state(3)
        random.seed(int(seeds[0]))
        np.random.seed(seeds[1])  # noqa: NPY002
        # Only this: torch.manual_seed, for GPUs too, takes longer than to flip an image.
        torch.default_generator.manual_seed(int(seeds[2]))
        try:
            if hasattr(self.dataset, "at_epoch"):
                self.dataset.at_epoch(draw.epoch, draw.pool)
            return self.dataset[draw.example]
        finally:
            if states is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])  # noqa: NPY002
                torch.set_rng_state(states[2])


def _generators() -> tuple[Any, Any, Tensor]:
    """The states of the global generators; they take a tenth of a millisecond."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


class Batches(LightningDataModule):
    """The loaders of one training.

    Attributes:
        training: the examples that are trained on, tiles included.
        scored: the images of each evaluation: those for validation and, if asked for, those for training.
        batch_size: training images in a batch, on each device.
        first_epoch: the one that the training begins with, from 0; later in one that goes on.
        parts: so many times fewer validation images are scored at once; training batches stay what they are.
    """

    def __init__(
        self,
        family: Family,
        training: Examples,
        validation: Examples,
        settings: Settings,
        seed: int,
        first_epoch: int = 0,
        parts: int = 1,
        training_in_full: Examples | None = None,
    ) -> None:
        """`training_in_full`: the training images as they are scored, where `training` holds reduced ones."""
        super().__init__()
        self.settings = settings
        wanted = settings.training_batch_size
        if wanted == "auto":  # until it is found, the model's default
            defaults = default_settings(family.spec.task, family.spec.model, settings.recipe)
            wanted = int(defaults["training_batch_size"])
        self.batch_size = wanted
        self.first_epoch = first_epoch
        self.parts = parts
        self.seed = seed
        self.family = family
        self.training = TiledExamples(training, settings) if settings.tile_grid_size else training
        self.training_items = SeededItems(family.training_dataset(self.training, settings, seed), seed)
        self.weights = (
            image_weights(self.training.targets, len(family.spec.classes))
            if settings.balanced_sampling
            else None
        )
        losses = family.spec.task.has_boxes and settings.log_validation_loss == "Enable"
        self.scored = [ValidationDataset(validation, family, with_losses=losses)]
        if family.spec.task.has_boxes and settings.log_training_metrics == "Enable":
            self.scored.append(ValidationDataset(training_in_full or training, family))

    def state_dict(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.settings.training_batch_size == "auto":  # what was found; a number may have been changed
            self.batch_size = state_dict["batch_size"]

    def train_dataloader(self) -> DataLoader[Any]:
        rank, ranks = self._ranks()
        size = self.batch_size
        sampler = EpochSampler(
            len(self.training), self.seed, rank, ranks, self.weights, self.first_epoch, size, self._workers(),
            self.family.images_at_hand(self.settings),
        )  # fmt: skip
        # Batch norm cannot learn from a single image; the epoch's order decides which one waits.
        drops = len(sampler) % size == 1 and len(sampler) > 1
        return self._loader(
            self.training_items, sampler, size, drop_last=drops, collate_fn=self.family.collate
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        rank, ranks = self._ranks()
        size = max(1, self.settings.validation_batch_size // self.parts)
        return [
            self._loader(
                items,
                items.items_of(validation_share(items.images, rank, ranks)),
                size,
                collate_fn=items.collate,
            )
            for items in self.scored
        ]

    def _loader(self, items: Dataset[Any], sampler: Any, size: int, **options: Any) -> DataLoader[Any]:
        workers = self._workers()
        return DataLoader(
            items,
            batch_size=size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Not where a GPU is not to be used, though there is one: pinning talks to its driver.
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=_begin_worker,
            **options,
        )

    def _workers(self) -> int:
        cores = cores_of_a_rank(self.trainer.num_devices if self.trainer else 1)
        return min(self.settings.number_of_workers, cores)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def validation_share(images: int, rank: int, ranks: int) -> range:
    """The images that a rank scores: every one once, but that Lightning wants each rank to have one at least.

    A rank for which there is none scores the first image again.
    """
    return range(rank, images, ranks) or range(1)


def _begin_worker(_worker: int) -> None:
    """Workers run side by side; each with threads of its own would fight over the cores.

    Nor need each keep all the memory that it ever took, as a training on a CPU does, from which it is forked.
    """
    cv2.setNumThreads(0)
    give_back()


def move(value: Any, device: torch.device) -> Any:
    """The same structure of dicts, lists and tuples with its tensors on the device; others as they are."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(move(item, device) for item in value)
    return value


def gather(items: Sequence[Any], ranks: int) -> list[Any]:
    """The items of all ranks, on every rank.

    Args:
        ranks: of the training. A group that PyTorch knows may be one that failed before it.
    """
    if ranks == 1:
        return list(items)
    parts: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def share_buffers(network: nn.Module, ranks: int) -> None:
    """Give every rank the first one's buffers, such as the statistics of batch norms, which it will save."""
    if ranks == 1:
        return
    for buffer in network.buffers():
        shared = buffer.contiguous()
        torch.distributed.broadcast(shared, src=0)
        buffer.copy_(shared)
