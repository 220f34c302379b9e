"""Colours are changed as torchvision changes them, in every order."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from trainer.models.colour_jitter import ColourJitter, changed

KINDS = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)


def image(low: int, high: int, height: int = 40, width: int = 30) -> Tensor:
    return torch.randint(low, high, (3, height, width), generator=torch.Generator().manual_seed(3)).byte()


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("factors", [(0.6, 1.4, 0.7), (1.3, 0.6, 1.4), (1.0, 1.0, 1.0)])
def test_colours_are_those_of_torchvision_where_nothing_is_cut_off(
    order: tuple[int, ...], factors: tuple[float, ...]
) -> None:
    given = image(70, 150)
    expected = given / 255  # of bytes torchvision cuts off the fraction after each step
    for kind in order:
        expected = KINDS[kind](expected, factors[kind])
    found = changed(given, order, factors)
    assert found.dtype == torch.uint8
    assert (found - 255 * expected).abs().max() <= 1


def test_values_beyond_the_range_are_cut_off_once() -> None:
    white = torch.full((3, 4, 4), 250, dtype=torch.uint8)
    assert (changed(white, (0, 1, 2), (1.4, 1.0, 1.0)) == 255).all()
    # More contrast takes 250 to 260 here; less brightness then brings back what was over 255.
    bright = torch.tensor([200, 250], dtype=torch.uint8).expand(3, 1, 2)
    assert changed(bright, (1, 0, 2), (0.7, 1.4, 1.0))[0, 0].tolist() == [133, 182]


def test_the_memorys_layout_does_not_matter() -> None:
    planes = image(0, 256)
    pixels = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    settings = ((2, 0, 1), (0.8, 1.2, 0.6))
    assert torch.equal(changed(planes, *settings), changed(pixels, *settings))
    grey = torch.full((3, 1, 1), 90, dtype=torch.uint8)
    assert torch.equal(changed(grey, (0, 1, 2), (1.0, 0.5, 0.5)), grey)


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
