"""A font of this machine for text in any script."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Plain faces with many scripts, of Linux distributions, macOS and Windows; tried before all others.
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
_NO_CHARACTER = "\U0010ffff"
_PROBE_SIZE = 20


def readable(text: str, size: int) -> tuple[str, Font]:
    """The text and a font that has all of its characters, `size` pixels high.

    Where no font of this machine has them, those beyond ASCII are told as escapes (`\\ud55c`) in the font
    that comes with Pillow.
    """
    text = "".join(character if character.isprintable() else "?" for character in text)
    path = _font_with(frozenset(text) - frozenset("0123456789. "))
    if path is not None:
        return text, ImageFont.truetype(path, size)
    return text.encode("ascii", "backslashreplace").decode("ascii"), ImageFont.load_default(size)


def is_drawable(text: str) -> bool:
    """Whether `readable` gives the text as it is, not as escapes."""
    return text.isascii() or _font_with(frozenset(text) - frozenset("0123456789. ")) is not None


@functools.lru_cache(maxsize=512)
def _font_with(characters: frozenset[str]) -> str | None:
    """The first font file with these characters and digits, None if there is none."""
    return next((path for path in _font_files() if _has(path, characters | {"0"})), None)


def _has(path: str, characters: frozenset[str]) -> bool:
    """Whether a font draws each of the characters as something else than its sign for "no such character"."""
    try:
        font = ImageFont.truetype(path, _PROBE_SIZE)
        missing = bytes(font.getmask(_NO_CHARACTER))
        return all(bytes(font.getmask(character)) not in (missing, b"") for character in characters)
    except (OSError, ValueError):  # damaged, or a font of pictures without this size
        return False


@functools.cache
def _font_files() -> tuple[str, ...]:
    """The machine's font files, the preferred ones first, bold and slanted faces last."""
    files = [
        file
        for directory in _font_directories()
        for file in directory.rglob("*")
        if file.suffix.lower() in (".ttf", ".ttc", ".otf")
    ]

    def rank(file: Path) -> tuple[int, bool, str]:
        order = _PREFERRED.index(file.name) if file.name in _PREFERRED else len(_PREFERRED)
        styled = any(style in file.stem.lower() for style in ("bold", "italic", "oblique", "light", "thin"))
        return order, styled, file.name

    return tuple(str(file) for file in sorted(files, key=rank))


def _font_directories() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", "C:/Windows"))
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"))
        return [windows / "Fonts", local / "Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    share = Path(os.environ.get("XDG_DATA_HOME", home / ".local/share"))
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), share / "fonts", home / ".fonts"]
