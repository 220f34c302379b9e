"""Records as decoded examples, and as the preprocessed items that validation scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from torch.utils.data import Dataset

from trainer.annotations import Example, Examples, Truth
from trainer.data.images import ImageError, decode
from trainer.data.records import Records
from trainer.data.urls import UrlError, local_path
from trainer.errors import DataError, Problem
from trainer.models.family import Family


class RecordExamples:
    """Records as trainer.annotations.Examples; labels count in `classes`, a superset of their own."""

    def __init__(self, records: Records, classes: tuple[str, ...]) -> None:
        self.records = records if records.classes == classes else records.relabelled(classes)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Decode an image.

        Raises:
            DataError: the image has become unreadable since the data were checked, or was not checked.
        """
        try:
            image = decode(local_path(self.records.source(index)))
        except (ImageError, UrlError) as error:
            where, source = self.records.location(index), self.records.source(index)
            problem = Problem(
                where,
                "image_url",
                f"must be readable ({error})",
                source,
                "`trainer validate --images` checks all",
            )
            raise DataError("an image cannot be read", [problem]) from error
        return Example(image, self.records.truth(index))

    @property
    def truths(self) -> Sequence[Truth]:
        return _Truths(self.records)


class _Truths(Sequence[Truth]):
    """The truths of records, made as they are asked for."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Truth: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Truth]: ...
    def __getitem__(self, index: int | slice) -> Truth | Sequence[Truth]:
        positions = range(len(self._records))[index]
        if isinstance(positions, range):
            return [self._records.truth(position) for position in positions]
        return self._records.truth(positions)


class ValidationDataset(Dataset[dict[str, Any]]):
    """Preprocessed images without augmentation.

    An item holds its `index`, the `tensor` float32 [3, h, w] that the network takes, the `geometry` that
    maps predictions back onto the image, and the `truth`.
    """

    def __init__(self, examples: Examples, family: Family) -> None:
        self._examples = examples
        self._family = family

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._examples[index]
        tensor, geometry = self._family.preprocess(example.image)
        return {"index": index, "tensor": tensor, "geometry": geometry, "truth": example.truth}
