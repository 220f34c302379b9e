"""Batches for training and validation: seeded item by item, split over ranks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from trainer.annotations import Example, Examples
from trainer.data.datasets import ValidationDataset
from trainer.data.tiles import TiledExamples
from trainer.models import Family
from trainer.models.defaults import default_settings
from trainer.models.family import TrainingDataset
from trainer.models.training_items import AugmentedExamples, Batch, Draw
from trainer.settings import Settings
from trainer.training.balance import image_weights
from trainer.training.devices import cores_of_a_rank
from trainer.training.memory import give_back
from trainer.training.shared_memory import limit_workers

_SMALL_DATA_SET = 256
"""Up to this many training images, any image may be mixed with any other."""
_POOL_SIZE, _MIN_POOL_SIZE = 128, 64
"""Largest and smallest number of images in a pool of partners for mosaics."""


@dataclass(eq=False)
class EpochSampler(Sampler[Draw]):
    """Yields one rank's share of the examples, in a random order that differs from epoch to epoch.

    The order depends on seed and epoch alone, so that a run resumed at an epoch sees the same batches. All
    ranks get equally many draws: if the order is too short for that, its first examples are drawn twice.

    Each draw also names a pool of partners for mosaics: the examples of the worker's latest batches, which
    are still decoded, and random ones while those are few. The pool depends on batch size and number of
    workers. An empty pool means all examples; draws have one if there are at most 256 examples, or if the
    cache holds none or all of them.

    Args:
        weights: the examples' probabilities, for draws with replacement; None draws each example once.
        epoch: the first epoch; loader workers ask for items before Lightning says which epoch it is.
        cached: number of latest examples that a worker keeps decoded; 0 mixes any example with any other.
        epochs: see `Draw`.
    """

    length: int
    seed: int
    rank: int
    ranks: int
    weights: npt.NDArray[np.float64] | None = None
    epoch: int = 0
    batch_size: int = 1
    workers: int = 0
    cached: int = 0
    epochs: int = 0

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
        order = np.resize(order, len(self) * self.ranks)
        own = order[self.rank :: self.ranks].tolist()
        repeats = _repeats(order)[self.rank :: self.ranks].tolist()
        epoch, size = self.epoch, self.batch_size
        for start in range(0, len(own), size):
            pool, stop = self._pool(own, start), start + size
            for index, repeat in zip(own[start:stop], repeats[start:stop], strict=True):
                yield Draw(epoch, index, pool, repeat, self.epochs)

    def _pool(self, own: list[int], start: int) -> tuple[int, ...]:
        if not self.cached or self.length <= max(_SMALL_DATA_SET, self.cached):
            return ()
        size = self.batch_size
        # PyTorch hands batches out to its workers in turn.
        starts = range(start, -1, -size * max(1, self.workers))[: -(-min(_POOL_SIZE, self.cached) // size)]
        pool = [index for first in starts for index in own[first : first + size]]
        if (missing := min(_MIN_POOL_SIZE, self.cached) - len(pool)) > 0:
            generator = np.random.default_rng([self.seed, self.epoch, self.rank, start])
            pool += generator.choice(self.length, missing, p=self.weights).tolist()
        return tuple(pool)


def _repeats(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each element of an order has occurred before, [n]."""
    by_value = np.argsort(order, kind="stable")
    values = order[by_value]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(order) else np.zeros(0, np.int64)
    repeats = np.empty_like(order)
    repeats[by_value] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return repeats


class SeededItems(Dataset[Any]):
    """A family's training items, whose random augmentation depends on the seed and the draw alone.

    This makes runs repeatable and lets them resume at any epoch. The global generators, which libraries use,
    are seeded for each item and restored after it, except in a loader's worker, which does not use them
    otherwise.
    """

    def __init__(self, dataset: TrainingDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Any:
        states = None
        if get_worker_info() is None:  # reading the states takes 0.1 ms
            states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        numbers = [self.seed, draw.epoch, draw.example, *([draw.repeat] if draw.repeat else [])]
        seeds = np.random.SeedSequence(numbers).generate_state(3)
        random.seed(int(seeds[0]))
        np.random.seed(seeds[1])  # noqa: NPY002
        # Only this: torch.manual_seed, for GPUs too, takes longer than to flip an image.
        torch.default_generator.manual_seed(int(seeds[2]))
        try:
            return self.dataset.item(draw)
        finally:
            if states is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])  # noqa: NPY002
                torch.set_rng_state(states[2])

    def collate(self, items: Sequence[Any]) -> Batch:
        return self.dataset.collate(items)


class Batches(LightningDataModule):
    """The loaders of one run.

    Attributes:
        training: the training examples, tiles included.
        training_in_full: the training images as they are scored, decoded in full.
        scored: the images of each evaluation: the validation images and, if the settings say so, the training
            images.
        batch_size: training images in a batch, on each device.
        first_epoch: the epoch at which the run starts, counted from 0; above 0 when resuming.
        micro_batches: divides the number of validation images in a batch; training batches keep their size.
    """

    def __init__(
        self,
        family: Family,
        training: Examples,
        validation: Examples,
        settings: Settings,
        seed: int,
        first_epoch: int = 0,
        micro_batches: int = 1,
        training_in_full: Examples | None = None,
        augment: Callable[[Example], Example] | None = None,
    ) -> None:
        """
        Args:
            training_in_full: the training images to score, if those in `training` are decoded smaller.
            augment: changes the training images, and tiles, before the family's own augmentation.
        """
        super().__init__()
        self.settings = settings
        size = settings.training_batch_size
        if size == "auto":  # the model's default until FindBatchSize has run
            defaults = default_settings(family.spec.task, family.spec.model, settings.recipe)
            size = int(defaults["training_batch_size"])
        self.batch_size = size
        self.first_epoch = first_epoch
        self.micro_batches = micro_batches
        self.seed = seed
        self.family = family
        self.training = TiledExamples(training, settings) if settings.tile_grid_size else training
        examples = AugmentedExamples(self.training, augment) if augment is not None else self.training
        self.training_in_full = training_in_full or training
        self.training_items = SeededItems(family.training_dataset(examples, settings, seed), seed)
        self.weights = (
            image_weights(self.training.targets, len(family.spec.classes))
            if settings.balanced_sampling
            else None
        )
        losses = family.spec.task.has_boxes and settings.log_validation_loss == "Enable"
        self.scored = [ValidationDataset(validation, family, with_losses=losses)]
        if family.spec.task.has_boxes and settings.log_training_metrics == "Enable":
            self.scored.append(ValidationDataset(self.training_in_full, family))

    def state_dict(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.settings.training_batch_size == "auto":  # a number in the settings replaces the checkpoint's
            self.batch_size = state_dict["batch_size"]

    def train_dataloader(self) -> DataLoader[Any]:
        rank, ranks = self._ranks()
        size = self.batch_size
        workers = self._workers(self.training_items, Draw(self.first_epoch, 0), size)
        sampler = EpochSampler(
            len(self.training), self.seed, rank, ranks, self.weights, self.first_epoch, size, workers,
            self.family.cached_images(self.settings),
        )  # fmt: skip
        # Batch norm cannot learn from a single image; the epoch's order decides which one is left out.
        drops = len(sampler) % size == 1 and len(sampler) > 1
        return self._loader(self.training_items, sampler, size, workers, drop_last=drops)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self._scoring_loader(items) for items in self.scored]

    def unaugmented_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the training images, preprocessed as those of an evaluation."""
        return self._scoring_loader(ValidationDataset(self.training_in_full, self.family))

    def _scoring_loader(self, items: ValidationDataset) -> DataLoader[Any]:
        share = validation_share(items.images, *self._ranks())
        size = max(1, self.settings.validation_batch_size // self.micro_batches)
        return self._loader(items, items.items_of(share), size, self._workers(items, 0, size))

    def _loader(
        self,
        items: SeededItems | ValidationDataset,
        sampler: Any,
        size: int,
        workers: int,
        *,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        return DataLoader(
            items,
            batch_size=size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            # Not if a GPU exists but is not to be used: pinning talks to its driver.
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=_begin_worker,
            collate_fn=items.collate,
            drop_last=drop_last,
        )

    def _workers(self, items: SeededItems | ValidationDataset, first: Any, size: int) -> int:
        """The number of loader processes for batches of `size` items, of which `first` is an index."""
        ranks = self.trainer.num_devices if self.trainer else 1
        workers = min(self.settings.number_of_workers, cores_of_a_rank(ranks))
        return limit_workers(workers, items, first, size, ranks * (1 + len(self.scored)))

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def validation_share(images: int, rank: int, ranks: int) -> range:
    """The images that a rank scores, so that each is scored once.

    Lightning needs at least one for each rank: a rank without images scores the first one again.
    """
    return range(rank, images, ranks) or range(1)


def _begin_worker(_worker: int) -> None:
    """Set up a loader worker.

    Workers run in parallel, so OpenCV's threads would compete for the cores. A worker forked from a run on a
    CPU inherits that process's setting to keep freed memory, and does not need it.
    """
    cv2.setNumThreads(0)
    give_back()


def move(value: Any, device: torch.device) -> Any:
    """Move the tensors in nested dicts, lists and tuples to a device; leave everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(move(item, device) for item in value)
    return value


def gather(items: Sequence[Any], ranks: int) -> list[Any]:
    """Collect the items of all ranks on every rank.

    Args:
        ranks: the run's number of ranks. PyTorch's own process group may be left over from a failed run.
    """
    if ranks == 1:
        return list(items)
    by_rank: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(by_rank, list(items))
    return list(chain.from_iterable(by_rank))


def gather_on_rank_zero(items: Sequence[Any], ranks: int) -> list[Any] | None:
    """Collect the items of all ranks on rank 0; None on the others. Arguments as for `gather`."""
    if ranks == 1:
        return list(items)
    is_first = torch.distributed.get_rank() == 0
    by_rank: list[Any] | None = [None] * ranks if is_first else None
    torch.distributed.gather_object(list(items), by_rank, dst=0)
    return None if by_rank is None else list(chain.from_iterable(by_rank))


def from_rank_zero(value: Any, ranks: int) -> Any:
    """Rank 0's value, on every rank."""
    if ranks == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def share_buffers(network: nn.Module, ranks: int) -> None:
    """Give every rank the buffers of rank 0, which it will save, such as the statistics of batch norms."""
    if ranks == 1:
        return
    for buffer in network.buffers():
        shared = buffer.contiguous()
        torch.distributed.broadcast(shared, src=0)
        buffer.copy_(shared)
