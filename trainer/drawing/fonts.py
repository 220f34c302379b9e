"""Finds a font on this machine for text in any script."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Regular faces that cover many scripts, from Linux distributions, macOS and Windows; tried before all others.
_PREFERRED = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansKR-Regular.otf",
    "NanumGothic.ttf",
    "AppleSDGothicNeo.ttc",
    "malgun.ttf",
)
_STYLES = ("bold", "italic", "oblique", "light", "thin")
_NOT_A_CHARACTER = "\U0010ffff"
_TEST_SIZE = 20


def text_and_font(text: str, size: int) -> tuple[str, Font]:
    """Return the text and a font, `size` pixels high, that has all of its characters.

    If no font on this machine has them, characters beyond ASCII are escaped (`\\ud55c`) and the font is
    Pillow's own. Characters that cannot be printed become "?".
    """
    text = "".join(character if character.isprintable() else "?" for character in text)
    path = _font_for(text)
    if path is not None:
        return text, ImageFont.truetype(path, size)
    return text.encode("ascii", "backslashreplace").decode("ascii"), ImageFont.load_default(size)


def fit_text(text: str, size: int, max_width: float, *, cut_middle: bool = False) -> tuple[str, Font]:
    """Return the text, shortened with an ellipsis to at most `max_width` pixels, and a font that has it.

    The first character is kept even if it is wider. `cut_middle` keeps the beginning and the end of the text.
    """
    fitted, font = text_and_font(text, size)
    length = len(text)
    while length > 1 and (width := font.getlength(fitted)) > max_width:
        length = max(1, min(length - 1, int(length * max(max_width, 0) / width)))
        tail = length // 2 if cut_middle else 0
        fitted, font = text_and_font(f"{text[: length - tail]}…{text[len(text) - tail :]}", size)
    return fitted, font


def is_drawable(text: str) -> bool:
    """Whether a font on this machine has all characters of the text, so that none is escaped."""
    return text.isascii() or _font_for(text) is not None


def _font_for(text: str) -> str | None:
    # All fonts have digits, so leave them out: scores would fill the cache.
    return _font_with(frozenset(text) - frozenset("0123456789. "))


@functools.lru_cache(maxsize=512)
def _font_with(characters: frozenset[str]) -> str | None:
    """Return the first font file with these characters and digits, or None."""
    return next((path for path in _font_files() if _has_glyphs(path, characters | {"0"})), None)


def _has_glyphs(path: str, characters: frozenset[str]) -> bool:
    """Whether a font has a visible glyph for each character, other than its glyph for missing characters."""
    try:
        font = ImageFont.truetype(path, _TEST_SIZE)
        missing = bytes(font.getmask(_NOT_A_CHARACTER))
        return all(bytes(font.getmask(character)) not in (missing, b"") for character in characters)
    except (OSError, ValueError):  # damaged, or a bitmap font without this size
        return False


@functools.cache
def _font_files() -> tuple[str, ...]:
    """Return the machine's font files: preferred ones first, bold and slanted faces last."""
    files = [
        file
        for directory in _font_directories()
        for file in directory.rglob("*")
        if file.suffix.lower() in (".ttf", ".ttc", ".otf")
    ]

    def rank(file: Path) -> tuple[int, bool, str]:
        order = _PREFERRED.index(file.name) if file.name in _PREFERRED else len(_PREFERRED)
        is_styled = any(style in file.stem.lower() for style in _STYLES)
        return order, is_styled, file.name

    return tuple(str(file) for file in sorted(files, key=rank))


def _font_directories() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", "C:/Windows"))
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"))
        return [windows / "Fonts", local / "Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    data_home = Path(os.environ.get("XDG_DATA_HOME", home / ".local/share"))
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), data_home / "fonts", home / ".fonts"]
