"""What a family and the training loop exchange: draws, items, batches and the progress of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from trainer.models.family import Family

Batch: TypeAlias = Mapping[str, Any]
"""A batch for `Family.losses`.

"images" holds one tensor for each image. "shared", if present, holds what applies to the whole batch. All
other keys are the family's own; unless the family overrides `part`, they hold one entry for each image.
"""


class Draw(NamedTuple):
    """One training item that the sampler requests.

    Attributes:
        epoch: counted from 0.
        example: index of the example.
        pool: examples that it may be mixed with, as in a mosaic; empty: all.
    """

    epoch: int
    example: int
    pool: Sequence[int] = ()


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        epoch: the current epoch, counted from 0.
        epochs: the number of epochs of the run.
    """

    epoch: int
    epochs: int


class TrainingDataset(ABC):
    """The augmented training items of one run.

    Attributes:
        family: the family that the items are for.
    """

    family: Family

    @abstractmethod
    def item(self, draw: Draw) -> Any:
        """Make one item for `collate`: `draw.example`, augmented as in `draw.epoch`, mixed with `draw.pool`.

        Random numbers come from the global generators of random, NumPy and torch. The caller seeds them for
        each item, so that seed and draw alone determine it.
        """

    def collate(self, items: Sequence[Any]) -> Batch:
        """Items → one batch for `Family.losses`. By default it holds nothing but the items."""
        return self.family.collate(items)
