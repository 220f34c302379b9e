"""Records as decoded examples for training, and as preprocessed items for validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from torch.utils.data import Dataset

from trainer.annotations import Example, Examples, Image, Target
from trainer.data.image_sources import read_image
from trainer.data.images import ImageError, decode
from trainer.data.quick_decoding import decode_quickly
from trainer.data.reading.records import Records
from trainer.data.reading.urls import UrlError
from trainer.errors import DataError, Problem
from trainer.models import tiling
from trainer.models.family import Family


class RecordExamples:
    """Records as trainer.annotations.Examples.

    Each process caches the images it decodes; callers must not modify them.

    Args:
        classes: names that labels are to index; a superset of the records' own.
        short_side: decode large JPEGs at a reduced scale that keeps this many pixels; None decodes in full.
        cache_bytes: size up to which decoded images are cached.
        quickly: decode by `decode_quickly`, for training.
    """

    def __init__(
        self,
        records: Records,
        classes: tuple[str, ...],
        short_side: int | None = None,
        cache_bytes: int = 0,
        quickly: bool = False,
    ) -> None:
        self.records = records if records.classes == classes else records.relabelled(classes)
        self.short_side = short_side
        self._decode = decode_quickly if quickly else decode
        # Nothing is evicted: as images are drawn at random, the first are as good as any.
        self._free_bytes = cache_bytes
        self._cache: dict[int, Image] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Decode an image.

        Raises:
            DataError: the image has become unreadable since the data were checked, or was not checked.
        """
        if (cached := self._cache.get(index)) is not None:
            return Example(cached, self.records.target(index))
        try:
            image = read_image(
                self.records.source(index), lambda path: self._decode(path, short_side=self.short_side)
            )
        except (ImageError, UrlError) as error:
            where, source = self.records.location(index), self.records.source(index)
            hint = "`trainer validate --images` checks every image"
            problem = Problem(where, "image_url", f"must be readable ({error})", source, hint)
            raise DataError("an image cannot be read", [problem]) from error
        if image.nbytes <= self._free_bytes:
            self._free_bytes -= image.nbytes
            self._cache[index] = image
        return Example(image, self.records.target(index))

    @property
    def targets(self) -> Sequence[Target]:
        """The target of each image; needs no decoding."""
        return LazyTargets(len(self), self.records.target)


class LazyTargets(Sequence[Target]):
    """Targets that are created on access."""

    def __init__(self, count: int, create: Callable[[int], Target]) -> None:
        self._count = count
        self._create = create

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        positions = range(self._count)[index]
        if isinstance(positions, range):
            return [self._create(position) for position in positions]
        return self._create(positions)


class ValidationDataset(Dataset[dict[str, Any]]):
    """Preprocessed images without augmentation and, with tiling, each of their tiles as another item.

    The whole images come first, then the tiles, image by image. An item holds:

    - `index` of its image,
    - `view`: the part of the image it shows (trainer.models.tiling), and `views`: how many the image has,
    - `tensor`: float32 [3, h, w], the network's input,
    - `geometry`: maps predictions back onto the view.

    With losses, the item of a whole image has the family's `validation_item` instead of `tensor`.

    Args:
        with_losses: losses are computed on the whole images.

    Attributes:
        images: number of images.
    """

    def __init__(self, examples: Examples, family: Family, *, with_losses: bool = False) -> None:
        self.images = len(examples)
        self.with_losses = with_losses
        self._examples = examples
        self._family = family
        self._parameters = family.spec.parameters
        self._tiles = len(tiling.grid(self._parameters))
        self._last: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return self.images * (1 + self._tiles)

    def items_of(self, images: Sequence[int]) -> Sequence[int]:
        """The indices of the items of some images, in the order of all items."""
        tiles = [self.images + index * self._tiles + tile for index in images for tile in range(self._tiles)]
        return [*images, *tiles]

    def __getitem__(self, item: int) -> dict[str, Any]:
        if item >= len(self):
            raise IndexError(item)
        target: Target | None = None
        if item < self.images:
            index, view = item, 0
            example = self._examples[index]
            image, target = example.image, example.target
        else:
            index, tile = divmod(item - self.images, self._tiles)
            view = 1 + tile
            image = self._image(index)
        views = tiling.views((image.shape[0], image.shape[1]), self._parameters)
        tensor, geometry = self._family.preprocess(tiling.cut(image, views[view]))
        shared = {"index": index, "view": views[view], "views": len(views), "geometry": geometry}
        if target is None or not self.with_losses:
            return {**shared, "tensor": tensor}
        return {**shared, "validation_item": self._family.validation_item(tensor, target, geometry)}

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate `plain` items, `whole` items with losses, and the family's `batch` of the latter."""
        plain = [item for item in items if "tensor" in item]
        whole = [item for item in items if "tensor" not in item]
        batch = self._family.collate([item.pop("validation_item") for item in whole]) if whole else None
        return {"plain": plain, "whole": whole, "batch": batch}

    def _image(self, index: int) -> Image:
        """Decode an image, and keep it until another one's tiles are requested."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._examples[index].image
        return self._last[1]
