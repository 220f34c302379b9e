"""Checks of images: what validation, a run's checks and training say of images that cannot be used."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.datasets import RecordExamples
from trainer.data.image_scan import Scan, scan
from trainer.data.quality.known_scans import KNOWN_SCANS, SCANS_FILE, known_scans, write_scans
from trainer.data.training_data import load
from trainer.data.validate import validate
from trainer.errors import DataError
from trainer.tasks import Task

WriteLines = Callable[..., Path]


def damaged_png() -> bytes:
    """A PNG with one wrong byte in its pixels and a correct header."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.fixture
def lines(write_lines: WriteLines) -> Path:
    """8 images of 2 classes, the fourth of which is damaged."""
    entries = [{"image_url": f"{number}.png", "label": "ab"[number % 2]} for number in range(8)]
    path = write_lines(entries, images=True)
    (path.parent / "3.png").write_bytes(damaged_png())
    return path


def test_pixels_that_do_not_decode_are_an_error_of_the_check(lines: Path) -> None:
    report = validate(Task.CLASSIFICATION, [lines], images=True)
    (problem,) = report.problems
    assert str(problem).startswith(
        f"{lines}:4: image_url: must name a readable image, got '3.png': the image is dam"
    )
    with pytest.raises(DataError, match="leave them out with --skip-invalid"):
        load(Task.CLASSIFICATION, [lines], progress=False)


def test_images_that_do_not_decode_can_be_skipped(lines: Path) -> None:
    data = load(Task.CLASSIFICATION, [lines], skip_invalid=True, progress=False)
    assert data.skipped.lines == 1
    for records in (data.train, data.validation):
        examples = RecordExamples(records, data.classes, quickly=True)
        assert all(examples[index].image.shape == (6, 8, 3) for index in range(len(records)))


def test_images_that_a_sweep_has_scanned_are_not_decoded_again_unless_they_change(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(Task.CLASSIFICATION, [lines], skip_invalid=True, progress=False)
    write_scans(tmp_path / SCANS_FILE, [first.train, first.validation])
    decoded: list[str] = []

    def watched(source: str) -> Scan:
        decoded.append(Path(source).name)
        return scan(source)

    monkeypatch.setattr("trainer.data.quality.image_checks.scan", watched)
    monkeypatch.setenv(KNOWN_SCANS, str(tmp_path / SCANS_FILE))
    again = load(Task.CLASSIFICATION, [lines], skip_invalid=True, progress=False)
    assert decoded == ["3.png"]
    assert again.train.scans is not None
    assert first.train.scans is not None
    np.testing.assert_array_equal(again.train.scans.hashes, first.train.scans.hashes)
    np.testing.assert_array_equal(again.train.scans.sizes, first.train.scans.sizes)
    (lines.parent / "5.png").write_bytes(damaged_png())
    assert load(Task.CLASSIFICATION, [lines], skip_invalid=True, progress=False).skipped.lines == 2


def test_scanned_images_at_addresses_are_known_by_these(tmp_path: Path) -> None:
    addresses = [f"https://example.org/{name}.jpg" for name in ("scanned", "not-scanned", "new")]
    scans = SimpleNamespace(sizes=np.array([[4, 3], [0, 0]]), hashes=np.array([[1, 2], [0, 0]]))
    records: Any = SimpleNamespace(scans=scans, source=addresses.__getitem__)
    write_scans(tmp_path / SCANS_FILE, [records])
    known = known_scans({KNOWN_SCANS: str(tmp_path / SCANS_FILE)})
    assert [known(address) for address in addresses] == [Scan((4, 3), (1, 2)), None, None]


def save_deep(path: Path, largest: float, kind: str) -> None:
    Image.fromarray(np.linspace(0, largest, 48).reshape(6, 8).astype(kind)).save(path)


@pytest.mark.parametrize(
    ("names", "kind", "largest", "said"),
    [
        (["1.png", "2.png"], "u2", [3540, 4095], "got 0 to 3,540 in '1.png'; 2 images are … 0 to 4,095 (2)"),
        (
            ["1.tif", "2.tif", "3.tif"],
            "f4",
            [3000, 900, 900],
            "got 0 to 3,000 in '1.tif'; 3 images are … 0 to 1,023 (2), 0 to 4,095 (1)",
        ),
        (["1.png", "2.png"], "u2", [65535, 200], "got 0 to 200 in '2.png'; 1 image is … 0 to 255 (1)"),
    ],
)
def test_guessed_ranges_are_one_warning_per_file(
    names: list[str], kind: str, largest: list[float], said: str, write_lines: WriteLines
) -> None:
    entries = [{"image_url": name, "label": "ab"[index % 2]} for index, name in enumerate(names)]
    path = write_lines(entries)
    for name, value in zip(names, largest, strict=True):
        save_deep(path.parent / name, value, kind)
    report = validate(Task.CLASSIFICATION, [path], images=True)
    (problem,) = report.problems
    assert problem.warning
    assert said.replace("…", "scaled by the range each uses, in training and in scoring:") in str(problem)


def test_known_ranges_give_no_warning(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": f"{name}.tif", "label": name} for name in "abc"])
    for name, kind, largest in (("a", "u2", 65535), ("b", "f4", 1), ("c", "f4", 255)):
        save_deep(path.parent / f"{name}.tif", largest, kind)
    assert validate(Task.CLASSIFICATION, [path], images=True).problems == []


@pytest.mark.parametrize("images", [True, False])
def test_a_name_in_another_case_is_told(images: bool, write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": f"{name}.png", "label": name} for name in "ab"], images=True)
    (path.parent / "b.png").rename(path.parent / "B.PNG")
    problem = validate(Task.CLASSIFICATION, [path], images=images).problems[0]
    assert "the image file does not exist; " in str(problem)
    assert "B.PNG exists, which differs in upper and lower case" in str(problem)


def test_a_folder_in_another_case_is_told(write_lines: WriteLines) -> None:
    path = write_lines([{"image_url": f"Images/{name}.png", "label": name} for name in "ab"], images=True)
    (path.parent / "Images").rename(path.parent / "images")
    report = validate(Task.CLASSIFICATION, [path])
    assert f"{path.parent / 'images'} exists, which differs in upper and lower case; the first of 2" in str(
        report.problems[0]
    )
