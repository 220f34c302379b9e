"""The page of `trainer validate --report`, also in a real browser."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image as Pillow

from tests.browser import OpenPage
from trainer import cli
from trainer.data.samples import make
from trainer.tasks import Task


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The report of digits with a leaked image, a duplicate, a tiny box, and markup in a class name."""
    folder = tmp_path_factory.mktemp("data")
    data = make(Task.DETECTION, folder / "digits", images=20, seed=3)
    train = [json.loads(line) for line in data.train.read_text().splitlines()]
    validation = [json.loads(line) for line in data.validation.read_text().splitlines()]
    images = data.train.parent
    Pillow.open(images / train[0]["image_url"]).resize((120, 90)).save(images / "leaked.png")
    Pillow.open(images / train[1]["image_url"]).save(images / "copy.jpg", quality=60)
    validation.append({**train[0], "image_url": "leaked.png", "image_details": {}})
    train.append({**train[1], "image_url": "copy.jpg", "image_details": {}})
    tiny = {"label": "<b>two & a half</b>", "topX": 0.5, "topY": 0.5, "bottomX": 0.505, "bottomY": 0.6}
    train[2]["label"].append(tiny)
    for path, lines in ((data.train, train), (data.validation, validation)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [
        "validate",
        "--task",
        "object-detection",
        str(data.train),
        "--report",
        str(folder / "report"),
    ]
    with pytest.raises(SystemExit) as ended:
        cli.app([*arguments, "--validation-data", str(data.validation)])
    assert not ended.value.code
    return folder / "report"


def test_planted_problems_are_found_by_file_and_line(reported: Path) -> None:
    def rows(name: str) -> list[list[str]]:
        with (reported / f"finding-{name}.csv").open(newline="") as file:
            return list(csv.reader(file))[1:]

    assert [Path(row[0]).name for row in rows("leakage")] == ["validation.jsonl:5"]
    assert "train.jsonl:1" in rows("leakage")[0][1]
    assert [Path(row[0]).name for row in rows("duplicates")] == ["train.jsonl:17"]
    assert [Path(row[0]).name for row in rows("tiny-boxes")] == ["train.jsonl:3"]


def test_charts_are_written_as_files(reported: Path) -> None:
    charts = {path.name for path in reported.glob("*.svg")}
    assert {"classes.svg", "image-sizes.svg", "aspect-ratios.svg", "object-sizes.svg"} <= charts
    for chart in reported.glob("*.svg"):
        ElementTree.parse(chart)


def test_page_is_one_small_file(reported: Path) -> None:
    text = (reported / "report.html").read_text("utf-8")
    assert len(text) < 1_500_000
    assert 'src="http' not in text
    assert "<b>two" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_on_a_desktop_follows_the_colour_scheme(
    open_page: OpenPage, reported: Path, scheme: str
) -> None:
    """The fixture fails on console errors and on requests to other hosts."""
    visit = open_page((reported / "report.html").as_uri(), color_scheme=scheme)
    page = visit.page
    assert len(visit.requests) == 1
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('.plot .label')).fill")
    assert (brightness(ground) > 128) == (scheme == "light")
    assert (brightness(ink) > 128) == (scheme == "dark")
    for picture in page.query_selector_all("svg[role=img]"):
        told = picture.get_attribute("aria-label") or picture.get_attribute("aria-labelledby")
        assert told
    # Every image that is shown a second time is embedded.
    assert page.evaluate(
        "[...document.querySelectorAll('use')].every(u => document.querySelector(u.getAttribute('href')))"
    )


def test_click_on_a_heading_sorts_its_table(open_page: OpenPage, reported: Path) -> None:
    page = open_page((reported / "report.html").as_uri()).page
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    table = page.locator("#table-classes")
    heading = table.get_by_role("button", name="training")

    def column() -> list[float]:
        return [float(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]

    heading.click()
    assert column() == sorted(column(), reverse=True)
    heading.click()
    assert column() == sorted(column())
    assert table.locator("th[aria-sort=ascending]").count() == 1
    table.get_by_role("button", name="class", exact=True).click()
    names = table.locator("tbody tr td:nth-child(1)").all_inner_texts()
    assert names == sorted(names)
    assert len(names) > 3


def test_page_without_scripts_fits_a_phone(open_page: OpenPage, reported: Path) -> None:
    options: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "java_script_enabled": False}
    visit = open_page((reported / "report.html").as_uri(), **options)
    # Without scripts the page cannot be queried, so use the browser's own measurements.
    wide = [
        box["width"] + box["x"]
        for each in visit.page.locator("section").all()
        if (box := each.bounding_box())
    ]
    assert wide
    assert max(wide) <= 360
    assert visit.page.locator("table.sortable th").first.text_content()


def test_page_on_a_phone_never_scrolls_sideways(open_page: OpenPage, reported: Path) -> None:
    page = open_page((reported / "report.html").as_uri(), viewport={"width": 360, "height": 740}).page
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def brightness(color: str) -> float:
    numbers = [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    return sum(numbers) / 3


def test_data_without_a_valid_line_are_reported(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"image_url": "a.png"}\n')
    with pytest.raises(SystemExit) as ended:
        cli.app(
            [
                "validate",
                "--task",
                "image-classification",
                str(tmp_path / "train.jsonl"),
                "--report",
                str(tmp_path),
            ]
        )
    assert ended.value.code == 1
    assert "train.jsonl:1" in (tmp_path / "report.html").read_text("utf-8")
