"""A packaged model is self-contained: MLflow loads it anywhere, with its code and requirements."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from serving.locate import find_model
from serving.package import carried_code, requirements, write_model
from serving.payload import parse_rows
from serving.scorer import Scorer, read_spec
from tests.serving.checks import assert_close, assert_differ
from trainer.errors import RunError, WeightsError
from trainer.fields import camel_case
from trainer.models import create
from trainer.scoring import OLDER_NAMES
from trainer.tasks import Task

Encode = Callable[[bytes], str]
Packaged = Callable[..., Path]
MakeImage = Callable[..., bytes]

ISOLATED = """
import json, sys, warnings
warnings.simplefilter("ignore")
# As on another machine: neither an installation nor a checkout of this project is importable.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import mlflow, pandas
model_dir, rows = json.loads(sys.argv[1])
model = mlflow.pyfunc.load_model(model_dir)
answers = model.predict(pandas.DataFrame({"image": rows}))
# Some libraries replace Pillow's open, and then no longer say that a file is no image.
try:
    model.predict(pandas.DataFrame({"image": ["QUFB"]}))
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
explained = json.dumps({"image_base64": rows[0], "model_explainability": True,
                        "xai_parameters": {"n_steps": 2, "n_masks": 10, "xai_algorithm": sys.argv[2]}})
explanation = model.predict(pandas.DataFrame({"image": [explained]}))
import serving, trainer
loaded = [name for name in ("lightning", "optuna", "ultralytics", "serving.service", "trainer.settings")
          if name in sys.modules]
print(json.dumps({"code": [trainer.__file__, serving.__file__], "loaded": loaded, "refusal": refusal,
                  "explained": "visualizations" in explanation,
                  "answers": answers.to_dict(orient="records")}))
"""


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (Task.CLASSIFICATION, "resnet18"),
        pytest.param(Task.SEGMENTATION, "maskrcnn_resnet18_fpn", marks=pytest.mark.slow),
        pytest.param(Task.DETECTION, "yolo11n", marks=pytest.mark.slow),
    ],
)
def test_packaged_model_runs_elsewhere_with_its_own_code(
    task: Task, model: str, packaged: Packaged, make_image: MakeImage, encode: Encode, tmp_path: Path
) -> None:
    moved = tmp_path / "다른 곳" / "model"
    shutil.copytree(packaged(task, model), moved)
    rows = [encode(make_image(seed)) for seed in range(3)]
    method = "xrai" if task.is_classification else "drise"
    done = subprocess.run(
        [sys.executable, "-I", "-c", ISOLATED, json.dumps([str(moved), rows]), method],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert all(Path(file).is_relative_to(moved) for file in told["code"])
    assert told["loaded"] == (["ultralytics"] if model == "yolo11n" else [])
    assert told["explained"]
    assert told["refusal"].startswith("MlflowException: row 0: not an image")
    scorer = Scorer.load(moved / "artifacts", device="cpu")
    assert_close(told["answers"], scorer.score(rows_of(rows), {}))


def rows_of(values: list[Any]) -> Any:
    from serving.payload import parse_rows

    return parse_rows(values, Task.CLASSIFICATION)


def test_carried_code_is_what_the_family_needs(packaged: Packaged) -> None:
    code = packaged(Task.CLASSIFICATION) / "code"
    modules = {file.stem for file in (code / "trainer" / "models").glob("*.py")}
    assert "classifiers" in modules
    assert not {"rcnn", "yolo", "rtdetr", "detr", "published", "listing"} & modules
    assert (code / "serving" / "explain" / "xrai.py").is_file()
    assert not (code / "serving" / "polygons.py").exists()
    assert not {"service", "predict.py", "package.py"} & {file.name for file in (code / "serving").iterdir()}
    segmentation = packaged(Task.SEGMENTATION) / "code"
    assert (segmentation / "serving" / "polygons.py").is_file()
    assert not (segmentation / "serving" / "explain" / "xrai.py").exists()


def test_a_detector_carries_the_code_of_its_backbone_alone(packaged: Packaged) -> None:
    spec = read_spec(packaged(Task.SEGMENTATION) / "artifacts")
    assert spec.family == "rcnn"
    on_timm = spec.model_copy(update={"options": {**spec.options, "backbone": "timm/test_resnet"}})
    module = Path("trainer/models/timm_backbone.py")
    assert module not in carried_code(spec).files
    assert module in carried_code(on_timm).files
    new = {name.split("==")[0] for name in requirements(on_timm)}
    assert new - {name.split("==")[0] for name in requirements(spec)} == {"timm"}
    assert Path("trainer/models/classifiers.py") not in carried_code(on_timm).files


TWO_MODELS = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import mlflow, pandas
model_dirs, image = json.loads(sys.argv[1])
table = pandas.DataFrame({"image": [image]})
first = mlflow.pyfunc.load_model(model_dirs[0])
before = first.predict(table).to_dict(orient="records")
second = mlflow.pyfunc.load_model(model_dirs[1]).predict(table).to_dict(orient="records")
try:
    mlflow.pyfunc.load_model(model_dirs[2])
    refusal = ""
except Exception as error:
    refusal = str(error)
after = first.predict(table).to_dict(orient="records")
print(json.dumps({"before": before, "second": second, "refusal": refusal, "after": after}))
"""


def test_two_models_in_one_process_share_equal_code_and_reject_different_code(
    packaged: Packaged, make_image: MakeImage, encode: Encode, tmp_path: Path
) -> None:
    # Copies, because loading a model writes bytecode into its directory.
    classifier, detector, changed = (tmp_path / name for name in ("classifier", "detector", "changed"))
    for task, copied in ((Task.CLASSIFICATION, classifier), (Task.DETECTION, detector)):
        shutil.copytree(packaged(task), copied)
    shutil.copytree(classifier, changed)
    with (changed / "code" / "serving" / "answers.py").open("a") as file:
        file.write("\n# of another version\n")
    image = make_image()
    models = [str(model) for model in (classifier, detector, changed)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", TWO_MODELS, json.dumps([models, encode(image)])],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    scorer = Scorer.load(detector / "artifacts", device="cpu")
    assert_close(told["second"], scorer.score(rows_of([image]), {}))
    assert told["before"] == told["after"]
    differs = f"its {Path('serving', 'answers.py')} differs from that of {classifier}"
    assert differs in told["refusal"]
    assert "load the models in separate processes" in told["refusal"]


def test_requirements_pin_what_the_carried_code_imports(packaged: Packaged) -> None:
    classifier = (packaged(Task.CLASSIFICATION) / "requirements.txt").read_text().split()
    names = [line.split("==")[0] for line in classifier]
    always = {"mlflow", "torch", "numpy", "pandas", "pillow", "pydantic"}
    assert set(names) == always | {"torchvision", "timm", "scikit-image", "scipy"}
    assert all("==" in line and "+" not in line for line in classifier)
    assert f"torch=={torch.__version__.split('+')[0]}" in classifier
    spec = read_spec(packaged(Task.SEGMENTATION) / "artifacts")
    names = [line.split("==")[0] for line in requirements(spec)]
    assert "opencv-python" in names
    assert not {"timm", "ultralytics", "lightning", "optuna"} & set(names)


def test_model_directory_contains_no_local_paths(packaged: Packaged) -> None:
    directory = packaged(Task.CLASSIFICATION)
    for file in directory.rglob("*"):
        if file.is_file() and file.suffix != ".pt":
            assert str(directory.parent) not in file.read_text(encoding="utf-8"), file
            assert ".model." not in file.read_text(encoding="utf-8"), file
    assert not list(directory.rglob("__pycache__"))
    # Only the finished directory is left of the writing.
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("task", list(Task))
def test_signature_has_the_column_and_the_tasks_parameters(
    task: Task, load_model: Callable[[Task], Any]
) -> None:
    signature = load_model(task).metadata.signature
    assert signature.inputs.to_dict() == [{"type": "string", "name": "image", "required": True}]
    params = {each.name for each in signature.params or []}
    expected: set[str] = set()
    if task.has_boxes:
        expected = {
            "box_score_threshold",
            "nms_iou_threshold",
            "box_detections_per_image",
            "tile_grid_size",
            "tile_overlap_ratio",
            "tile_predictions_nms_threshold",
        }
    if task is Task.SEGMENTATION:
        expected |= {"mask_pixel_score_threshold", "max_number_of_polygon_points"}
    expected |= {older for name in expected for older in OLDER_NAMES.get(name, ())}
    assert params == {*expected, *map(camel_case, expected)}
    outputs = [each.name for each in signature.outputs]
    explained = ["visualizations", "attributions"]
    assert outputs == (["probs", "labels", *explained] if task.is_classification else ["boxes"])
    assert [each.name for each in signature.outputs if not each.required] == (
        explained if task.is_classification else []
    )


@pytest.mark.parametrize("task", list(Task))
def test_predict_takes_base64_bytes_and_json_and_answers_in_order(
    task: Task, load_model: Callable[[Task], Any], make_image: MakeImage, encode: Encode
) -> None:
    model = load_model(task)
    first, second = make_image(1), make_image(2, (90, 50), "JPEG")
    alone = [model.predict(pd.DataFrame({"image": [encode(image)]})) for image in (first, second)]
    forms = [encode(first), second, json.dumps({"image_base64": encode(first)}), [encode(second)]]
    answers = model.predict(pd.DataFrame({"image": forms}))
    assert list(answers.columns) == list(alone[0].columns)
    assert len(answers) == 4
    for row in range(4):
        assert_close(answers.iloc[row].to_dict(), alone[row % 2].iloc[0].to_dict())
    assert_differ(answers.iloc[0].to_dict(), answers.iloc[1].to_dict())


def test_predict_takes_the_other_forms_of_a_table(
    load_model: Callable[[Task], Any], make_image: MakeImage, encode: Encode
) -> None:
    model = load_model(Task.CLASSIFICATION)
    text = encode(make_image(1))
    expected = model.predict(pd.DataFrame({"image": [text, text]})).to_dict()
    for table in (
        {"image": [text, text]},
        [{"image": text}, {"image": text}],
        {"image": np.array([text] * 2)},
    ):
        assert model.predict(table).to_dict() == expected
    assert len(model.predict({"image": text})) == 1
    indexed = pd.DataFrame({"image": [text, text]}, index=[7, 3])
    assert len(model.predict(indexed)) == 2


def test_signature_takes_an_image_as_binary_or_string(
    load_model: Callable[[Task], Any], make_image: MakeImage, encode: Encode
) -> None:
    model = load_model(Task.CLASSIFICATION)
    image = make_image(1)
    expected = model.predict(pd.DataFrame({"image": [encode(image)]})).to_dict()
    explainable = json.dumps({"image_base64": encode(image), "model_explainability": False})
    for column in (
        [image],
        [base64.encodebytes(image)],
        np.array([image]),
        pd.array([encode(image)], dtype="string"),
        [explainable],
    ):
        table = pd.DataFrame({"image": column})
        mlflow.models.validate_schema(table, model.metadata.signature.inputs)
        assert model.predict(table).to_dict() == expected
    assert model.predict({"image": image}).to_dict() == expected
    assert model.predict([{"image": image}]).to_dict() == expected


def test_predict_takes_parameters(
    load_model: Callable[[Task], Any], make_image: MakeImage, encode: Encode
) -> None:
    model = load_model(Task.SEGMENTATION)
    table = pd.DataFrame({"image": [encode(make_image(1))]})
    assert len(model.predict(table)["boxes"][0]) == 7
    # MLflow fills in the default of every name, and ignores a name that the signature lacks.
    for name in ("box_detections_per_image", "box_detections_per_img", "boxDetectionsPerImage"):
        assert len(model.predict(table, params={name: 2})["boxes"][0]) == 2, name
    assert model.predict(table, params={"box_score_threshold": 1})["boxes"][0] == []
    coarse = model.predict(table, params={"max_number_of_polygon_points": 4})["boxes"][0]
    assert all(len(segment) <= 8 for found in coarse for segment in found["polygon"])


@pytest.mark.parametrize(
    ("rows", "params", "reason"),
    [
        (["GOOD", "http://example.com/a.png"], {}, "row 1: not base64"),
        (["GOOD", base64.b64encode(b"no image").decode()], {}, "row 1: not an image"),
        ([None, "GOOD"], {}, "row 0: an image must be a base64 string"),
        (["GOOD"], {"box_score_threshold": 3.0}, "box_score_threshold must be a number in"),
        (["GOOD"], {"box_detections_per_image": 0}, "box_detections_per_image must be a whole number over 0"),
        (["GOOD"], {"tile_grid_size": "1x1"}, "tile_grid_size must be columns and rows"),
        (["GOOD"], {"tile_grid_size": 3}, "tile_grid_size"),
    ],
)
def test_wrong_row_or_parameter_is_a_client_error(
    rows: list[str],
    params: dict[str, Any],
    reason: str,
    load_model: Callable[[Task], Any],
    make_image: MakeImage,
    encode: Encode,
) -> None:
    from mlflow.exceptions import MlflowException

    table = pd.DataFrame({"image": [encode(make_image()) if row == "GOOD" else row for row in rows]})
    with pytest.raises(MlflowException, match=reason) as caught:
        load_model(Task.DETECTION).predict(table, params=params)
    assert caught.value.get_http_status_code() == 400


def test_request_can_enable_tiling(
    load_model: Callable[[Task], Any], packaged: Packaged, make_image: MakeImage, encode: Encode
) -> None:
    model, content = load_model(Task.DETECTION), make_image(1, (200, 120))
    table = pd.DataFrame({"image": [encode(content), encode(make_image(2))]})

    def boxes(**params: Any) -> list[Any]:
        return list(model.predict(table, params={"box_detections_per_image": 5, **params})["boxes"])

    plain, tiled = boxes(), boxes(tile_grid_size="3x2")
    assert_differ(tiled[0], plain[0])
    assert [len(found) for found in tiled] == [5, 5]
    assert_close(boxes(tile_grid_size="(3, 2)"), tiled)
    assert_close(boxes(tile_grid_size="none"), plain)
    assert_close(boxes(tile_grid_size=None), plain)
    assert_differ(boxes(tile_grid_size="3x2", tile_overlap_ratio=0.6)[0], tiled[0])
    merged, unmerged = (
        boxes(tile_grid_size="3x2", box_detections_per_image=500, tile_predictions_nms_threshold=threshold)
        for threshold in (0, 1)
    )
    assert len(merged[0]) < len(unmerged[0])
    # The same by the scorer of `trainer serve` and `trainer predict`.
    scorer = Scorer.load(packaged(Task.DETECTION) / "artifacts")
    parameters = {"tile_grid_size": "3x2", "box_detections_per_image": 5}
    (answer,) = scorer.score(parse_rows([content], Task.DETECTION), parameters)
    assert_close(answer["boxes"], tiled[0])


def test_write_model_is_quiet_and_rejects_existing_directories(
    packaged: Packaged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = read_spec(packaged(Task.CLASSIFICATION) / "artifacts")
    network = create(spec).build()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="already exists"):
        write_model(tmp_path / "model", spec, network)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine.txt"]
    (tmp_path / "model" / "mine.txt").unlink()
    capfd.readouterr()
    written = write_model(tmp_path / "model", spec, network.state_dict())
    assert capfd.readouterr() == ("", "")
    assert find_model(tmp_path) == written


def test_failed_write_leaves_nothing(packaged: Packaged, tmp_path: Path) -> None:
    spec = read_spec(packaged(Task.CLASSIFICATION) / "artifacts")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_model(tmp_path / "file" / "model", spec, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saving_and_loading_change_no_prediction(packaged: Packaged, make_image: MakeImage) -> None:
    scorer = Scorer.load(packaged(Task.SEGMENTATION) / "artifacts", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = create(scorer.spec).build().eval()
    rows = rows_of([make_image(seed) for seed in range(3)])
    assert Scorer(create(scorer.spec), network).score(rows, {}) == scorer.score(rows, {})
    assert scorer.score(rows, {}) == scorer.score(rows, {})


def test_damaged_artifacts_raise(packaged: Packaged, tmp_path: Path) -> None:
    source = packaged(Task.CLASSIFICATION) / "artifacts"
    with pytest.raises(RunError, match=r"spec\.json: does not exist"):
        Scorer.load(tmp_path)
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(RunError, match="is not a model's spec"):
        Scorer.load(tmp_path)
    shutil.copy(source / "spec.json", tmp_path)
    with pytest.raises(WeightsError, match=r"weights\.pt: does not exist"):
        Scorer.load(tmp_path)
    weights = (source / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(WeightsError, match="is damaged"):
        Scorer.load(tmp_path)
    spec = json.loads((source / "spec.json").read_text(encoding="utf-8"))
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "classes": ["one", "two"]}))
    (tmp_path / "weights.pt").write_bytes(weights)
    with pytest.raises(WeightsError, match="belongs to another network"):
        Scorer.load(tmp_path)


def test_find_model_accepts_run_and_model_directories(packaged: Packaged, tmp_path: Path) -> None:
    directory = packaged(Task.CLASSIFICATION)
    assert find_model(directory) == find_model(directory.parent) == directory
    with pytest.raises(RunError, match="does not exist"):
        find_model(tmp_path / "no")
    with pytest.raises(RunError, match="looked for MLmodel and model/MLmodel"):
        find_model(tmp_path)
    (tmp_path / "MLmodel").write_text("")
    with pytest.raises(RunError, match=r"lacks artifacts/spec\.json"):
        find_model(tmp_path)
