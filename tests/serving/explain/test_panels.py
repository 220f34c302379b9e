"""The picture of an explanation: four panels, whatever the image's shape and the label's script."""

from __future__ import annotations

import numpy as np
import pytest

from serving.explain.panels import four_panels, png

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (40, 900), (900, 40), (1, 1), (700, 500)])
def test_panels_of_any_shape_are_readable(size: tuple[int, int]) -> None:
    image = GENERATOR.integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = four_panels(image, GENERATOR.random((20, 30)).astype(np.float32), "우유병  0.97", "drise")
    assert 800 < picture.width < 1400
    assert 60 < picture.height < 450
    assert png(picture).startswith(b"\x89PNG")


@pytest.mark.parametrize("values", [np.zeros((8, 8)), np.full((8, 8), -3.0), np.full((8, 8), 1e30)])
def test_an_even_relevance_is_drawn(values: np.ndarray) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    assert four_panels(image, values.astype(np.float32), "x" * 500, "xrai").width < 1400


def test_last_panel_keeps_the_most_relevant_part() -> None:
    image = np.full((300, 300, 3), (200, 30, 30), np.uint8)
    relevance = np.zeros((300, 300), np.float32)
    relevance[:, :90] = 1.0
    panels = np.asarray(four_panels(image, relevance, "a", "xrai"))
    last = panels[60:340, -312:-12]
    red = (last[..., 0] > 150) & (last[..., 1] < 80)
    assert red[:, 5:85].all()
    assert not red[:, 95:].any()
