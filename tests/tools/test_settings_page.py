"""docs/settings.md says what settings.py says."""

from __future__ import annotations

from pathlib import Path

from tools.settings_page import settings_table
from trainer.settings import Settings


def test_page_is_up_to_date() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
    assert page == settings_table(), "it is due: make docs"


def test_table_has_a_row_for_every_setting() -> None:
    table = settings_table()
    assert all(f"| `{name}`" in table for name in Settings.model_fields)
    assert "| `momentum` | float ≥ 0, ≤ 1 | 0.9 | all |" in table
    assert "`image_size`<br>`img_size`" in table
