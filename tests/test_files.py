from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from trainer.files import atomic_writer, describe_lookalike, distinct_names, write_atomically


def test_write_atomically_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    write_atomically(path, "näw\n")
    assert path.read_text("utf-8") == "näw\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_writer(path, "wb") as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("existing", "missing", "difference"),
    [
        ("a/IMG_1.JPG", "a/img_1.jpg", "upper and lower case"),
        ("Images/b/1.jpg", "images/B/1.jpg", "upper and lower case"),
        ("a/caf\u00e9.jpg", "a/cafe\u0301.jpg", "Unicode form (NFC, not NFD)"),
        ("a/cafe\u0301.jpg", "a/caf\u00e9.jpg", "Unicode form (NFD, not NFC)"),
        (unicodedata.normalize("NFD", "사진/1.jpg"), "사진/1.jpg", "Unicode form (NFD, not NFC)"),
        ("a/Cafe\u0301.JPG", "a/caf\u00e9.jpg", "upper and lower case and Unicode form (NFD, not NFC)"),
        ("a/9.41\u202fAM.png", "a/9.41 AM.png", "the character U+202F"),  # as macOS names screenshots
        ("a/Straße.jpg", "a/STRASSE.jpg", "upper and lower case"),
    ],
)
def test_a_lookalike_of_a_missing_file_is_named(
    existing: str, missing: str, difference: str, tmp_path: Path
) -> None:
    (tmp_path / existing).parent.mkdir(parents=True)
    (tmp_path / existing).touch()
    if (tmp_path / missing).exists():
        pytest.skip("this file system takes both for one")
    assert (
        describe_lookalike(tmp_path / missing)
        == f"{tmp_path / existing} exists, which differs in {difference}"
    )


def test_files_unlike_a_missing_one_are_not_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert describe_lookalike(tmp_path / "b.jpg") == ""
    assert describe_lookalike(tmp_path / "A.jpg" / "1.jpg") == ""
    assert describe_lookalike(tmp_path / "no" / "a.jpg") == ""


def test_a_lookalike_is_found_in_a_folder_that_was_changed(tmp_path: Path) -> None:
    assert describe_lookalike(tmp_path / "a.jpg") == ""
    (tmp_path / "A.jpg").touch()
    assert "A.jpg exists" in describe_lookalike(tmp_path / "a.jpg")


def test_paths_get_as_many_parents_in_their_names_as_tell_them_apart() -> None:
    assert distinct_names([Path("/runs/one"), Path("/runs/two")]) == ["one", "two"]
    assert distinct_names([Path("/a/x/model"), Path("/b/y/model")]) == ["x/model", "y/model"]
