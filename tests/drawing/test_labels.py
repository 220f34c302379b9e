"""Labels are placed where there is room, and shortened to it."""

from __future__ import annotations

from trainer.drawing.fonts import fit_text
from trainer.drawing.labels import Rectangle, place_label

PICTURE = (100.0, 100.0)
SIZE = (30.0, 10.0)


def test_label_is_above_inside_or_below_its_box() -> None:
    above = Rectangle(20, 30, 30, 10)
    inside = Rectangle(20, 40, 30, 10)
    below = Rectangle(20, 70, 30, 10)
    box = Rectangle(20, 40, 40, 30)
    assert place_label(box, SIZE, PICTURE, []) == above
    assert place_label(box, SIZE, PICTURE, [above]) == inside
    assert place_label(box, SIZE, PICTURE, [above, inside]) == below
    assert place_label(box, SIZE, PICTURE, [above, inside, below]) == above, "no place is free"


def test_label_stays_inside_the_picture() -> None:
    assert place_label(Rectangle(90, 0, 10, 5), SIZE, PICTURE, []) == Rectangle(70, 0, 30, 10)
    assert place_label(Rectangle(0, 95, 10, 5), (30.0, 98.0), PICTURE, []) == Rectangle(0, 2, 30, 98)


def test_text_is_shortened_at_its_end_or_in_its_middle() -> None:
    text = "water bottle, empty 0.87"
    assert fit_text(text, 20, 1000)[0] == text
    for cut_middle in (False, True):
        short, font = fit_text(text, 20, 100, cut_middle=cut_middle)
        assert font.getlength(short) <= 100
        head, _, tail = short.partition("…")
        assert head
        assert text.startswith(head)
        assert text.endswith(tail)
        assert bool(tail) == cut_middle
    assert fit_text(text, 20, 0)[0] == "w…"
