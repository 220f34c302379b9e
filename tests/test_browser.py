"""The browser that tests of pages use: it tells what a page asked for and what went wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import OpenPage, chromium


def page_with(tmp_path: Path, body: str) -> str:
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{body}", encoding="utf-8")
    return file.as_uri()


def test_a_page_is_rendered_and_its_scripts_run(open_page: OpenPage, tmp_path: Path) -> None:
    visit = open_page(page_with(tmp_path, "<p id=a></p><script>a.textContent = 6 * 7</script>"))
    assert visit.page.inner_text("#a") == "42"
    assert [method for method, _ in visit.requests] == ["GET"]
    assert visit.foreign_requests() == []


def test_what_a_page_does_wrong_is_recorded(open_page: OpenPage, tmp_path: Path) -> None:
    body = (
        "<img src='https://example.com/a.png'>"
        "<script>console.error('odd'); console.log('fine'); throw Error('broken')</script>"
    )
    visit = open_page(page_with(tmp_path, body))
    assert visit.foreign_requests() == [("GET", "https://example.com/a.png")]
    assert any("broken" in error for error in visit.errors)
    assert any("odd" in error for error in visit.errors)
    assert not any("fine" in error for error in visit.errors)
    # or this test would fail when it is over
    visit.errors.clear()
    visit.requests.clear()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_playwright_skips_or_fails_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fixture = chromium.__wrapped__(lambda program, install: Path(program))  # type: ignore[attr-defined]
    with pytest.raises(outcome, match=r"needs playwright, .* pip install playwright"):
        next(fixture)
