"""What a family and the training loop exchange: draws, batches and the progress of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from trainer.annotations import Example, Examples, Target

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
        repeat: how often the epoch has drawn the example before; each draw has random numbers of its own.
        epochs: the number of epochs of the run, which a time limit may lower; 0: what the settings say.
    """

    epoch: int
    example: int
    pool: Sequence[int] = ()
    repeat: int = 0
    epochs: int = 0


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        epoch: the current epoch, counted from 0.
        epochs: the number of epochs of the run.
    """

    epoch: int
    epochs: int


class AugmentedExamples:
    """Examples (trainer.annotations.Examples) that a user's transforms change differently on each access.

    Attributes:
        originals: the examples before. Their targets are also those of this class.
        augment: changes an image and its target, by random numbers from torch's global generator.
    """

    def __init__(self, originals: Examples, augment: Callable[[Example], Example]) -> None:
        self.originals = originals
        self.augment = augment

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, index: int) -> Example:
        return self.augment(self.originals[index])

    @property
    def targets(self) -> Sequence[Target]:
        return self.originals.targets
