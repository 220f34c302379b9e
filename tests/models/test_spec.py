"""A stored spec is read back, whichever release wrote it, or the error names the release that can read it."""

from __future__ import annotations

import json
import runpy
from importlib import metadata
from typing import Any

import pytest

from trainer import api
from trainer.models.spec import SPEC_FORMAT, Spec
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

SPEC = Spec(
    family="classifiers",
    model="resnet18",
    task=Task.CLASSIFICATION,
    classes=("can", "우유병"),
    options={"crop_size": 32},
    parameters=ScoringParameters(),
)


def stored(**changes: Any) -> str:
    return json.dumps({**json.loads(SPEC.to_json()), **changes})


def test_a_stored_spec_is_read_back() -> None:
    assert Spec.from_json(SPEC.to_json()) == SPEC
    assert Spec.from_json(SPEC.model_dump_json()) == SPEC
    assert json.loads(SPEC.to_json())["format"] == SPEC_FORMAT


def test_a_spec_without_a_number_is_of_format_1() -> None:
    before = json.loads(SPEC.to_json())
    del before["format"], before["written_by"]
    assert Spec.from_json(json.dumps(before)).format == 1


def test_a_checkout_that_is_not_installed_writes_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert Spec.from_json(SPEC.to_json()) == SPEC
    assert runpy.run_path(str(api.__file__))["__version__"] == "0+unknown"


def test_a_newer_format_is_rejected_with_the_release_that_reads_it() -> None:
    newer = stored(format=SPEC_FORMAT + 1, written_by="image-trainer 9.9", another_key=1)
    with pytest.raises(ValueError, match=rf"format is {SPEC_FORMAT + 1}.*use image-trainer 9\.9"):
        Spec.from_json(newer)


@pytest.mark.parametrize("text", ["", "[]", "{}", stored(format=0), stored(format="1x"), stored(surplus=1)])
def test_anything_else_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Spec.from_json(text)
