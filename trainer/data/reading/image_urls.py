"""Resolves the image_urls of a data file to local paths or URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trainer.data.reading.records import Folder
from trainer.data.reading.urls import UrlError, is_url, resolve_folder

STREAM_INFO = re.compile(
    r"""\s*StreamInfo\s*\(\s*(?:\w+\s*=\s*)?(?P<quote>['"]?)(?P<location>.*?)(?P=quote)"""
    r"""(?:\s*,\s*\w+\s*=.*)?\s*\)\s*""",
    re.DOTALL | re.IGNORECASE,
)
"""How Azure's labelling projects and pandas may write an image_url: its location in a StreamInfo, perhaps
with further arguments by name."""
_NO_FILE_NAMES = frozenset({"", ".", ".."})


class Resolver:
    """Resolves the image_urls of one data file.

    Args:
        base: absolute directory or URL of the data file's folder, against which relative image_urls resolve.
        datastores: Azure datastore name → local directory or URL with its content.
    """

    def __init__(self, base: str, datastores: Mapping[str, str]) -> None:
        self.folders: list[Folder] = []
        self._base = base
        self._datastores = datastores
        self._known: dict[str, int] = {}
        self._by_start: dict[str, int] = {}

    def resolve(self, image_url: str) -> tuple[int, str]:
        """Split an image_url into an index into `folders` and the rest.

        Backslashes separate folders like slashes, except in URLs.

        Raises:
            UrlError: it is a StreamInfo, its name is no file's, or its datastore or protocol is unknown.
        """
        # Nearly all image_urls of a file share a few folders, so only new folders are resolved in full.
        cut = image_url.rfind("/") + 1
        if "\\" in image_url and not is_url(image_url):
            cut = max(cut, image_url.rfind("\\") + 1)
        name = image_url[cut:]
        if name in _NO_FILE_NAMES or "\0" in image_url:
            raise UrlError("must name an image file", repr(image_url))
        written = image_url[:cut]
        if (written not in self._known or not cut) and ")" in name and STREAM_INFO.fullmatch(image_url):
            raise UrlError("must be a path or URL", repr(image_url))
        return self.folder_index(written), name

    def folder_index(self, written: str) -> int:
        """The index in `folders` of an image_url's part up to its last slash.

        Raises:
            UrlError: its datastore or protocol is unknown.
        """
        index = self._known.get(written)
        if index is None:
            folder = Folder(written, *resolve_folder(written, self._base, self._datastores))
            index = self._known[written] = len(self.folders)
            if written not in ("/", "//"):  # which have one start
                self._by_start[written[:-1]] = index
            self.folders.append(folder)
        return index

    def resolve_all(self, image_urls: Sequence[str]) -> tuple[list[int], list[str]]:
        """Do what `resolve` does, for many image_urls quickly: the indices, and the rest of each."""
        joined = "".join(image_urls)
        has_stream_info = ")" in joined and "streaminfo" in joined.lower()
        if "\\" not in joined and "\0" not in joined and not has_stream_info:
            parts = [image_url.rpartition("/") for image_url in image_urls]
            starts = [start or slash for start, slash, _ in parts]  # "/" for files in the root
            names = [name for _, _, name in parts]
            if self._by_start.keys() >= set(starts) and _NO_FILE_NAMES.isdisjoint(names):
                return list(map(self._by_start.__getitem__, starts)), names
        places = list(map(self.resolve, image_urls))
        return [folder for folder, _ in places], [name for _, name in places]
