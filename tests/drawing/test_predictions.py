"""Answers are drawn in the right place and in the colours of their classes, with text in any script."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from trainer.drawing import fonts
from trainer.drawing.fonts import text_and_font
from trainer.drawing.predictions import draw_answer
from trainer.drawing.style import PALETTE, STYLE, class_color

Pixels = npt.NDArray[np.uint8]
GREY = (120, 120, 120)


def grey(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def pixels(picture: PILImage.Image) -> Pixels:
    return np.asarray(picture)


def found(label: str, left: float, top: float, right: float, bottom: float, **more: Any) -> dict[str, Any]:
    box = {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom}
    return {"box": box, "label": label, "score": 0.875, **more}


def is_color(picture: Pixels, color: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    return np.asarray((picture == color).all(axis=-1))


def test_a_box_is_outlined_in_the_colour_of_its_class() -> None:
    answer = {"boxes": [found("b", 0.25, 0.5, 0.75, 0.9)]}
    drawn = pixels(draw_answer(grey(600, 800), answer, ["a", "b"]))
    assert drawn.shape == (600, 800, 3)
    outline = is_color(drawn, PALETTE[1])
    rows, columns = np.nonzero(outline)
    assert (columns.min(), columns.max()) == pytest.approx((200, 599), abs=1)
    assert rows.max() == pytest.approx(0.9 * 599, abs=1)
    assert outline[300:530, 200].all()
    assert (drawn[400:500, 300:500] == GREY).all()
    assert not is_color(drawn, PALETTE[0]).any()


def test_label_is_above_its_box_and_inside_the_picture() -> None:
    middle = draw_answer(grey(600, 800), {"boxes": [found("a", 0.25, 0.5, 0.75, 0.9)]}, ["a"])
    expected = is_color(pixels(middle), (0, 0, 0)).sum()
    assert expected > 20
    for box in ((0.0, 0.0, 1.0, 1.0), (0.95, 0.0, 1.0, 0.02), (0.95, 0.98, 1.0, 1.0), (0.0, 0.0, 0.01, 0.01)):
        drawn = pixels(draw_answer(grey(600, 800), {"boxes": [found("a", *box)]}, ["a"]))
        # Only the text is black: all of it is there, wherever the box lies.
        ink = is_color(drawn, (0, 0, 0)).sum()
        assert ink == pytest.approx(expected, rel=0.3)


def test_polygons_are_filled_and_the_image_shows_through() -> None:
    segments = [[0.1, 0.1, 0.4, 0.1, 0.4, 0.9, 0.1, 0.9], [0.6, 0.4, 0.9, 0.4, 0.9, 0.6]]
    answer = {"boxes": [found("a", 0.1, 0.1, 0.9, 0.9, polygon=segments)]}
    drawn = pixels(draw_answer(grey(800, 800), answer, ["a"]))
    for inside in ((400, 200), (352, 688)):
        assert tuple(drawn[inside]) not in (GREY, PALETTE[0])
    assert tuple(drawn[640, 480]) == GREY


def test_holes_are_outlined_but_not_filled() -> None:
    segments = [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9], [0.3, 0.3, 0.3, 0.7, 0.7, 0.7, 0.7, 0.3]]
    segments.append([0.45, 0.45, 0.55, 0.45, 0.55, 0.55, 0.45, 0.55])  # solid again
    answer = {"boxes": [found("a", 0.1, 0.1, 0.9, 0.9, polygon=segments)]}
    drawn = pixels(draw_answer(grey(800, 800), answer, ["a"]))
    assert tuple(drawn[300, 300]) == tuple(drawn[500, 500]) == GREY
    filled = {tuple(drawn[place]) for place in ((160, 160), (640, 200), (400, 400))}
    assert len(filled) == 1
    plain = {"boxes": [found("a", 0.1, 0.1, 0.9, 0.9, polygon=segments[:1])]}
    assert filled == {tuple(pixels(draw_answer(grey(800, 800), plain, ["a"]))[160, 160])}
    assert tuple(drawn[300, 240]) == PALETTE[0], "the hole's outline"


def test_best_classes_of_a_classifier_are_below_the_image() -> None:
    classes = [f"class {number}" for number in range(9)]
    probs = [0.01, 0.02, 0.7, 0.03, 0.04, 0.05, 0.06, 0.04, 0.05]
    image = grey(300, 700)
    drawn = pixels(draw_answer(image, {"probs": probs, "labels": classes}, classes))
    assert (drawn[:300] == image).all()
    assert drawn.shape[0] > 300
    below = drawn[300:]
    assert is_color(below, class_color(2)).any()
    assert not is_color(below, class_color(0)).any()
    # The best class's bar comes first and is the longest.
    reached = np.nonzero((below[:, 300] != 255).any(axis=-1))[0]
    assert len(reached)
    assert reached.max() < len(below) / 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (3, 3), (20, 2000), (2000, 20)])
def test_any_size_of_image_can_be_drawn(shape: tuple[int, int]) -> None:
    polygon = [[0.0, 0.0, 1.0, 0.0, 1.0, 1.0]]
    for answer in (
        {"boxes": [found("a", 0, 0, 1, 1, polygon=polygon), found("a", 0.5, 0.5, 0.5, 0.5)]},
        {"boxes": []},
        {"probs": [1.0], "labels": ["a"]},
    ):
        drawn = draw_answer(grey(*shape), answer, ["a"])
        assert drawn.mode == "RGB"
        assert max(drawn.size) >= STYLE.smallest_side


def test_draw_answer_does_not_change_the_image() -> None:
    image = grey(600, 600)
    draw_answer(image, {"boxes": [found("a", 0.1, 0.1, 0.9, 0.9)]}, ["a"])
    assert (image == 120).all()


def test_colours_repeat_with_other_dashes() -> None:
    assert class_color(0) == class_color(len(PALETTE))
    assert len(set(PALETTE)) == len(PALETTE)
    classes = [f"{number:02}" for number in range(len(PALETTE) + 1)]

    def left_side(label: str) -> npt.NDArray[np.bool_]:
        drawn = pixels(draw_answer(grey(600, 800), {"boxes": [found(label, 0.25, 0.2, 0.75, 0.9)]}, classes))
        return is_color(drawn[140:520, 200], PALETTE[0])

    assert left_side("00").all()
    assert 0.4 < left_side("07").mean() < 0.9


def test_labels_of_overlapping_objects_do_not_cover_each_other() -> None:
    boxes = [found(label, 0.25, 0.5, 0.75, 0.9) for label in ("a", "b", "c")]
    together = pixels(draw_answer(grey(600, 800), {"boxes": boxes}, ["a", "b", "c"]))
    alone = pixels(draw_answer(grey(600, 800), {"boxes": boxes[:1]}, ["a"]))
    assert is_color(together, (0, 0, 0)).sum() > 2.5 * is_color(alone, (0, 0, 0)).sum()


def test_in_a_crowd_labels_hide_no_small_objects() -> None:
    places = [(0.1 * column, 0.1 * row) for column in range(9) for row in range(9)]
    small = [found("a", left, top, left + 0.02, top + 0.02) for left, top in places]
    drawn = pixels(draw_answer(grey(800, 800), {"boxes": [*small, found("a", 0.5, 0.5, 1, 1)]}, ["a"]))
    assert 10 < is_color(drawn, (0, 0, 0)).sum() < 1000


def test_long_label_is_cut_but_keeps_its_score() -> None:
    drawn = pixels(
        draw_answer(grey(600, 800), {"boxes": [found("label " * 50, 0.1, 0.5, 0.2, 0.9)]}, ["label " * 50])
    )
    columns = np.nonzero(is_color(drawn[250:299], PALETTE[0]).any(axis=0))[0]
    assert 300 < columns.max() - columns.min() <= 401


def rendered(text: str, font: Any) -> bytes:
    picture = PILImage.new("L", (400, 60))
    ImageDraw.Draw(picture).text((5, 5), text, font=font, fill=255)
    return picture.tobytes()


@pytest.mark.parametrize("text", ["can 0.93", "우유병", "Größe", "卡片", "кошка", "עברית", "🥫", "한a글"])
def test_text_is_drawable_in_any_script(text: str) -> None:
    """Text is drawn in a font that has all of its characters, or escaped; never as missing glyphs."""
    shown, font = text_and_font(text, 24)
    if shown != text:
        assert shown == text.encode("ascii", "backslashreplace").decode()
    assert len({rendered(character, font) for character in set(shown)}) == len(set(shown))


def test_text_is_escaped_on_a_machine_without_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_font_directories", list)
    fonts._font_files.cache_clear()
    fonts._font_with.cache_clear()
    try:
        shown, font = text_and_font("우유 0.5", 24)
    finally:
        fonts._font_files.cache_clear()
        fonts._font_with.cache_clear()
    assert shown == r"\uc6b0\uc720 0.5"
    assert any(rendered(shown, font))


def test_control_characters_in_a_label_break_nothing() -> None:
    for label in ("a\nb", "tab\t", "\x00", "\ud800", "", " "):
        draw_answer(grey(500, 500), {"boxes": [found(label, 0.1, 0.1, 0.9, 0.9)]}, [label])
