"""`settings.json` of a packaged model: what it holds, and that edited values apply wherever it is loaded."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from serving.inference_settings import apply_settings, settings_of
from serving.package import signature
from serving.parameters import set_by_request
from serving.payload import parse_rows
from serving.scorer import Scorer, read_family, read_spec
from trainer.errors import RunError
from trainer.evaluating import model_changes
from trainer.models import Family, create
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

Packaged = Callable[..., Path]

DOCUMENTED: dict[tuple[Task, str], dict[str, Any]] = {
    (Task.CLASSIFICATION, ""): {"valid_resize_size": 40, "valid_crop_size": 32},
    (Task.MULTILABEL, ""): {"valid_resize_size": 40, "valid_crop_size": 32},
    (Task.DETECTION, ""): {"min_size": 64, "max_size": 96},
    (Task.DETECTION, "yolo11n"): {"img_size": 64},
    (Task.SEGMENTATION, ""): {
        "min_size": 64,
        "max_size": 96,
        "mask_pixel_score_threshold": 0.5,
        "max_number_of_polygon_points": 100,
    },
}
BOXES = {
    "box_score_thresh": 0.0,
    "nms_iou_thresh": 0.5,
    "box_detections_per_img": 7,
    "tile_grid_size": None,
    "tile_overlap_ratio": 0.25,
    "tile_predictions_nms_thresh": 0.25,
}


def edited(model: Path, folder: Path, settings: Any) -> Path:
    """A copy of a packaged model with other settings, as a user leaves it."""
    copied = folder / "model"
    if not copied.exists():
        shutil.copytree(model, copied)
    (copied / "artifacts" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return copied


@pytest.mark.parametrize(("task", "model"), list(DOCUMENTED))
def test_packaged_model_has_the_documented_settings(task: Task, model: str, packaged: Packaged) -> None:
    settings = json.loads((packaged(task, model) / "artifacts/settings.json").read_text("utf-8"))
    assert settings == DOCUMENTED[task, model] | (BOXES if task.has_boxes else {})


def test_settings_have_the_tiling_of_the_training_run(packaged: Packaged) -> None:
    spec = read_spec(packaged(Task.DETECTION) / "artifacts")
    parameters = spec.parameters.model_copy(update={"tile_grid_size": "3x2"})
    assert settings_of(spec.model_copy(update={"parameters": parameters}))["tile_grid_size"] == "3x2"


@pytest.mark.parametrize("name", ["box_score_thresh", "box_score_threshold", "boxScoreThreshold"])
def test_edited_threshold_applies_to_every_way_of_scoring(
    name: str, packaged: Packaged, make_image: Any, tmp_path: Path
) -> None:
    model = packaged(Task.DETECTION)
    image = make_image(1)
    scores = [box["score"] for box in Scorer.load(model / "artifacts").score(rows([image]), {})[0]["boxes"]]
    assert len(scores) == 7
    middle = (scores[2] + scores[3]) / 2
    # As a script changes it that does not know which name the file uses.
    settings = {**json.loads((model / "artifacts/settings.json").read_text("utf-8")), name: middle}
    changed = edited(model, tmp_path, settings)
    scorer = Scorer.load(changed / "artifacts")
    assert len(scorer.score(rows([image]), {})[0]["boxes"]) == 3
    loaded = mlflow.pyfunc.load_model(str(changed))
    table = pd.DataFrame({"image": [image]})
    assert len(loaded.predict(table)["boxes"][0]) == 3
    # A request still decides, even for the value that the model was packaged with.
    for given in ({"box_score_threshold": 0.0}, {"box_score_thresh": 0.0}):
        assert len(scorer.score(rows([image]), given)[0]["boxes"]) == 7
        assert len(loaded.predict(table, params=given)["boxes"][0]) == 7


def rows(values: list[Any]) -> Any:
    return parse_rows(values, Task.CLASSIFICATION)


@pytest.mark.parametrize(
    ("task", "model", "settings", "shape"),
    [
        (Task.CLASSIFICATION, "", {"valid_crop_size": 48, "valid_resize_size": 50}, (3, 48, 48)),
        (Task.MULTILABEL, "", {"validation_crop_size": "24"}, (3, 24, 24)),
        (Task.DETECTION, "", {"min_size": 32, "max_size": 33.0}, (3, 22, 33)),
        (Task.DETECTION, "yolo11n", {"img_size": 90}, (3, 96, 96)),  # whole strides
    ],
)
def test_edited_sizes_change_the_preprocessing(
    task: Task,
    model: str,
    settings: dict[str, Any],
    shape: tuple[int, ...],
    packaged: Packaged,
    tmp_path: Path,
) -> None:
    changed = edited(packaged(task, model), tmp_path, settings)
    scorer = Scorer.load(changed / "artifacts")
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    assert scorer.preprocess(image)[0].shape == shape
    assert len(scorer.score_images([image], scorer.parameters({}))) == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"box_score_thresh": 1.5}, r"box_score_thresh must be a number in \[0, 1\], got 1.5"),
        ({"box_score_thresh": True}, r"box_score_thresh must be a number in \[0, 1\], got true"),
        ({"box_detections_per_img": 10**12}, "box_detections_per_img must be a whole number over 0"),
        ({"tile_grid_size": "1x1"}, "tile_grid_size must be columns and rows"),
        ({"min_size": "large"}, "min_size must be a whole number of pixels up to 65536, got 'large'"),
        ({"min_size": 0}, "min_size must be a whole number of pixels"),
        ({"nms_iou_thresh": 0.3, "box_nms_thresh": 0.4}, "contradicts nms_iou_thresh, its other name"),
        ([1], "must be a JSON object, got "),
    ],
)
def test_wrong_settings_are_rejected_with_the_file(
    settings: Any, reason: str, packaged: Packaged, tmp_path: Path
) -> None:
    changed = edited(packaged(Task.DETECTION), tmp_path, settings)
    with pytest.raises(RunError, match=rf"artifacts/settings\.json: .*{reason}"):
        read_family(changed / "artifacts")
    (changed / "artifacts/settings.json").write_text('{"min_size": 300, "min_size": 400}')
    with pytest.raises(RunError, match="the key 'min_size' occurs twice in one object"):
        read_family(changed / "artifacts")
    (changed / "artifacts/settings.json").write_text('{"min_size": ')
    with pytest.raises(RunError, match=r"settings\.json: cannot be read as JSON.*delete it for the defaults"):
        read_family(changed / "artifacts")


def test_settings_without_a_meaning_are_named_once(
    packaged: Packaged, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = edited(
        packaged(Task.DETECTION), tmp_path, {"img_size": 640, "number_of_epochs": 3, "min_size": None}
    )
    with caplog.at_level(logging.INFO, logger="trainer"):
        family = read_family(changed / "artifacts")
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "settings without effect on this model: img_size, number_of_epochs"
    ]
    assert family.spec == read_spec(changed / "artifacts")


def test_model_of_an_older_version_keeps_its_values(packaged: Packaged, tmp_path: Path) -> None:
    changed = edited(packaged(Task.DETECTION), tmp_path, {})
    (changed / "artifacts/settings.json").unlink()
    assert read_family(changed / "artifacts").spec == read_spec(packaged(Task.DETECTION) / "artifacts")


def test_network_of_a_fixed_size_rejects_another(tmp_path: Path, packaged: Packaged) -> None:
    spec = read_spec(packaged(Task.CLASSIFICATION) / "artifacts")
    vit = create(spec.model_copy(update={"model": "vits16r224"}))
    path = tmp_path / "settings.json"
    path.write_text('{"valid_crop_size": 64}')
    with pytest.raises(RunError, match=r"settings\.json: vits16r224 takes only images of 32 pixels.*not 64"):
        apply_settings(vit, path)
    path.write_text('{"valid_crop_size": 32, "valid_resize_size": 64}')
    changed: Family = apply_settings(vit, path)
    assert (changed.spec.options["crop_size"], changed.spec.options["resize_size"]) == (32, 64)


def test_model_size_is_named_and_cannot_be_changed(tmp_path: Path, packaged: Packaged) -> None:
    spec = read_spec(packaged(Task.DETECTION, "yolo11n") / "artifacts")
    options = {**spec.options, "architecture": "yolov5x"}
    family = create(spec.model_copy(update={"model": "yolov5", "options": options}))
    assert settings_of(family.spec)["model_size"] == "extra_large"
    path = tmp_path / "settings.json"
    path.write_text('{"model_size": "xlarge", "img_size": 128}')
    assert apply_settings(family, path).spec.options == {**options, "image_size": 128}
    path.write_text('{"model_size": "small"}')
    with pytest.raises(RunError, match=r"settings\.json: model_size cannot be changed.*as extra_large"):
        apply_settings(family, path)


def test_edited_threshold_replaces_those_of_classes(packaged: Packaged, tmp_path: Path) -> None:
    model = model_changes.apply_thresholds(packaged(Task.DETECTION), {"can": 0.4}, tmp_path / "model")
    spec = read_spec(model / "artifacts")
    assert spec.class_score_thresholds["can"] == 0.4
    assert settings_of(spec)["box_score_thresh"] == 0.0
    changed = edited(model, tmp_path, {"box_score_thresh": 0.2, "min_size": 32})
    family = read_family(changed / "artifacts")
    assert family.spec.class_score_thresholds == {}
    assert family.spec.parameters.box_score_threshold == 0.2
    # Thresholds that are applied later start from the edited values.
    model_changes.apply_thresholds(changed, {"can": 0.6})
    later = read_spec(changed / "artifacts")
    assert later.class_score_thresholds == {"can": 0.6, "carton": 0.2, "우유병": 0.2}
    assert later.options["min_size"] == 32


def test_signature_declares_no_defaults(packaged: Packaged) -> None:
    """MLflow would fill them in, and an edited setting would never apply."""
    declared = signature(read_spec(packaged(Task.SEGMENTATION) / "artifacts")).params or []
    assert {"box_score_threshold", "box_score_thresh", "mask_pixel_score_threshold"} <= {
        each.name for each in declared
    }
    assert {each.default for each in declared} == {None}


def test_defaults_that_older_signatures_fill_in_are_not_set_by_the_request() -> None:
    own = ScoringParameters(box_score_threshold=0.2)
    filled = {
        **own.model_dump(),
        "tile_grid_size": "none",
        "nms_iou_threshold": 0.4,
        "box_score_thresh": None,
    }
    assert set_by_request(filled, own, are_filled_in=True) == {"nms_iou_threshold": 0.4}
    given = {"box_score_threshold": 0.2, "nms_iou_threshold": None, "tile_grid_size": "none"}
    expected = {"box_score_threshold": 0.2, "tile_grid_size": "none"}
    assert set_by_request(given, own, are_filled_in=False) == expected
