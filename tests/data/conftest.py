"""Small data sets on disk for the tests of trainer.data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write JSON lines (objects, or text as it is) to a file and make its missing local images if asked."""

    def write(lines: Sequence[Any], name: str = "train.jsonl", *, images: bool = False) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        for line in lines if images else []:
            image = path.parent / line["image_url"]
            image.parent.mkdir(parents=True, exist_ok=True)
            if not image.exists():
                Image.new("RGB", (8, 6), "red").save(image)
        return path

    return write
