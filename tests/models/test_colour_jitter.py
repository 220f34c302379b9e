"""Colours are changed as torchvision changes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from trainer.models.colour_jitter import ColourJitter, changed


def image(low: int, high: int, height: int = 40, width: int = 30) -> Tensor:
    return torch.randint(low, high, (3, height, width), generator=torch.Generator().manual_seed(3)).byte()


@pytest.mark.parametrize("values", [(70, 150), (0, 256), (230, 256)])
def test_images_are_those_of_torchvision(values: tuple[int, int]) -> None:
    given, ours = image(*values), ColourJitter(strength=0.4, share=0.5)
    theirs = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.5)
    apart = []
    for seed in range(100):
        torch.manual_seed(seed)
        expected = theirs(given)
        drawn = torch.rand(1)
        torch.manual_seed(seed)
        found = ours(given)
        assert torch.equal(torch.rand(1), drawn), "what comes after is drawn as with torchvision"
        assert found.dtype == torch.uint8
        assert torch.equal(found, given) == torch.equal(expected, given)
        apart.append((found.int() - expected.int()).abs())
    assert torch.stack(apart).max() <= 3
    assert torch.stack(apart).float().mean() < 0.1


def test_the_memorys_layout_does_not_matter() -> None:
    planes = image(0, 256)
    pixels = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    settings = ((2, 0, 1), (0.8, 1.2, 0.6))
    assert torch.equal(changed(planes, *settings), changed(pixels, *settings))
    assert torch.equal(changed(planes, (0, 1, 2), (1.0, 1.0, 1.0)), planes)


def test_a_share_of_the_images_is_changed_and_the_generator_decides() -> None:
    jitter, given = ColourJitter(strength=0.4, share=0.5), image(0, 256)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append([jitter(given) for _ in range(200)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    unchanged = sum(torch.equal(each, given) for each in found[0])
    assert 75 < unchanged < 125
    lightness = torch.stack([each.float().mean() for each in found[0]])
    assert lightness.min() < 0.75 * given.float().mean()
    assert lightness.max() > 1.15 * given.float().mean()
