"""Reads the image at a local path or URL, and keeps in the cache only what is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trainer.data.images import ImageError, TooManyPixelsError
from trainer.data.reading.fetching import fetch
from trainer.data.reading.urls import is_url

Result = TypeVar("Result")


def read_image(source: str, read: Callable[[Path], Result]) -> Result:
    """Read an image by one of the functions of `images` and `image_scan`.

    A fetched file that cannot be read as an image is removed from the cache. One that was in the cache
    before is fetched again first: the server may have answered with an error page at the time.

    Args:
        source: local path or URL.
        read: raises ImageError for what is not an image.

    Raises:
        ImageError: the file is not an image; for a URL, says what the server answered.
        UrlError: the URL cannot be fetched.
    """
    if not is_url(source):
        return read(Path(source))
    fetched = fetch(source)
    try:
        return read(fetched.path)
    except TooManyPixelsError:
        raise
    except ImageError as error:
        fetched.path.unlink(missing_ok=True)
        if fetched.answer:
            raise ImageError(f"{error}; the server's answer was {fetched.answer}, and is not kept") from error
    return read_image(source, read)
