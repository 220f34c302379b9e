"""docs/licences.md lists the packages of the base installation, and none under the GPL."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

from tests.conftest import ROOT
from tools import licences_page

PAGE = (ROOT / "docs" / "licences.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", PAGE, re.MULTILINE))
DUE = "it is due: make docs"


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def test_page_lists_the_base_installation() -> None:
    ROWS.pop("package", None)
    names = set(licences_page.closure(licences_page.base_requirements()))
    assert names - ROWS.keys() == set(), DUE
    # Others may be those of another platform.
    assert {name for name in ROWS.keys() - names if is_installed(name)} == set(), DUE


def test_nothing_in_the_base_installation_is_under_the_gpl() -> None:
    assert len(ROWS) > 100
    assert {name: text for name, text in ROWS.items() if "GPL" in text} == {}
    assert not {"ultralytics", "ultralytics-thop", "ultralytics-platform", "polars"} & ROWS.keys()


def test_licences_of_the_agpl_are_told_by_the_metadata() -> None:
    """What the check of the base installation would see."""
    packages = licences_page.closure(["ultralytics"]) if is_installed("ultralytics") else {}
    for name in ("ultralytics", "ultralytics-thop"):
        if name in packages:
            assert "AGPL" in licences_page.licence(packages[name])


def test_all_has_every_extra_of_users() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.fullmatch(r"image-trainer\[(.*)\]", everything)[1].split(","))
    assert named == extras.keys() - {"all", "bench", "test", "dev"}


def test_markers_and_extras_are_followed() -> None:
    names = set(licences_page.closure(["fsspec[http]>=2024", "uvloop; sys_platform == 'nowhere'"]))
    assert "aiohttp" in names
    assert "uvloop" not in names
    assert "aiohttp" not in licences_page.closure(["fsspec"])
