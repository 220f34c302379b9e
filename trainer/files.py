"""Writes files whole or not at all, and finds what a path as written means."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8. Readers see the old file or the new one, never a part of either.

    Raises:
        OSError: the disk is full or the directory is not writable.
    """
    with atomic_writer(path) as file:
        file.write(text)


@contextmanager
def atomic_writer(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file next to `path` and rename it to `path` once the block has ended without an error.

    Args:
        mode: "w" for text in UTF-8, "wb" for bytes.
        options: passed to `open`, such as newline.

    Raises:
        OSError: the disk is full or the directory is not writable.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # processes may write the same file
    encoding = None if "b" in mode else "utf-8"
    try:
        with partial.open(mode, encoding=encoding, **options) as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # writing to an open file does not name it
        raise
    finally:
        partial.unlink(missing_ok=True)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name paths by their last part, with as many parents as are needed to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts)) and len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def is_prefixed_path(path: str, folder: Path) -> bool:
    """Whether `azureml:` precedes a path on this machine, as Azure's Python SDK writes local inputs.

    What follows is a path if it starts with a dot, has a slash, which no registered name has, or exists in
    `folder`.
    """
    prefix, _, rest = path.partition(":")
    if prefix != "azureml" or rest.startswith(("//", "/subscriptions/")):
        return False
    return re.search(r"^\.|[/\\]", rest) is not None or (rest != "" and os.path.exists(folder / rest))


def without_prefix(path: str, folder: Path) -> str:
    """A path or URL without `azureml:` or `file:`, which Azure's tools write before both, and without `~`.

    Args:
        folder: what a path is relative to.
    """
    if path.startswith("azureml:") and (
        "://" in path.removeprefix("azureml:") or is_prefixed_path(path, folder)
    ):
        path = path.removeprefix("azureml:")
    return os.path.expanduser(path.removeprefix("file:") if re.match(r"file:(?!//)", path) else path)


def describe_lookalike(path: str | os.PathLike[str]) -> str:
    """Name the existing path that differs from a missing one only in Unicode form or case.

    Returns:
        "photos/é.jpg exists, which differs in …"; "" if there is none.
    """
    missing = os.path.abspath(path)
    names: list[str] = []
    existing = missing
    while not os.path.isdir(existing):
        existing, name = os.path.split(existing)
        if not name:
            return ""
        names.insert(0, name)
    differences: dict[str, None] = {}
    for name in names:
        same = os.path.join(existing, name)
        if not os.path.lexists(same):
            lookalike = _names_in(existing, os.stat(existing).st_mtime_ns).get(_without_form(name))
            if lookalike is None:
                return ""
            differences |= dict.fromkeys(_differences(name, lookalike))
            same = os.path.join(existing, lookalike)
        existing = same
    return f"{existing} exists, which differs in {' and '.join(differences)}" if differences else ""


def _without_form(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


@functools.lru_cache(maxsize=128)
def _names_in(folder: str, modified: int) -> dict[str, str]:  # noqa: ARG001 (lists a modified folder again)
    """A folder's names by what they are without Unicode form and case.

    Args:
        modified: when the folder was modified last.
    """
    try:
        return {_without_form(name): name for name in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return {}


def _differences(name: str, other: str) -> Iterator[str]:
    """How two names differ that are the same apart from Unicode form and case."""
    if unicodedata.normalize("NFKC", name) != unicodedata.normalize("NFKC", other):
        yield "upper and lower case"
    if name.casefold() != other.casefold():
        form, other_form = (
            next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, text)), "mixed")
            for text in (name, other)
        )
        codes = ", ".join(f"U+{ord(character):04X}" for character in sorted({*other} - {*name}))
        yield f"Unicode form ({other_form}, not {form})" if form != other_form else f"the character {codes}"
