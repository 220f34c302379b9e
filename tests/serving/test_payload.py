"""Every form that clients send is read; everything else is rejected with its row and reason."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image as PILImage

from serving.parameters import parameters_of, parse_parameters, range_of
from serving.payload import Payload, parse_invocation, parse_json, parse_rows, parse_score_request
from trainer.errors import RequestError
from trainer.scoring import PRESENT_NAMES, ScoringParameters
from trainer.tasks import Task

CONTENT = bytes(range(256)) * 3


def request(data: Any, **more: Any) -> dict[str, Any]:
    return {"input_data": {"columns": ["image"], "data": data, **more}}


def images(payload: Payload) -> list[bytes]:
    return [row.image for row in payload.rows]


URL_SAFE = base64.urlsafe_b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(CONTENT).decode(),
        base64.encodebytes(CONTENT).decode(),
        base64.encodebytes(CONTENT).decode().replace("\n", "\r\n"),
        "  " + base64.b64encode(CONTENT).decode() + "\n\n",
        URL_SAFE,
        URL_SAFE.rstrip("="),
        "data:image/png;base64," + base64.b64encode(CONTENT).decode(),
        "data:image/jpeg;charset=utf-8;base64," + base64.encodebytes(CONTENT).decode(),
        json.dumps({"image_base64": base64.encodebytes(CONTENT).decode()}),
        json.dumps({"image_base64": URL_SAFE, "model_explainability": False, "xai_parameters": {}}),
        " \n" + json.dumps({"image_base64": URL_SAFE, "model_explainability": None}),
    ],
)
def test_reads_every_form_of_a_row(text: str) -> None:
    bare = parse_score_request(request([text, [text]]), Task.CLASSIFICATION)
    assert images(bare) == [CONTENT, CONTENT]


def test_reads_the_explainability_form_as_an_object() -> None:
    row = {"image_base64": URL_SAFE, "model_explainability": False}
    assert images(parse_score_request(request([row, [row]]), Task.MULTILABEL)) == [CONTENT, CONTENT]


def test_keeps_the_order_of_rows_and_ignores_the_values_of_the_index() -> None:
    contents = [bytes([number]) * 40 for number in range(9)]
    data = [base64.b64encode(content).decode() for content in contents]
    payload = parse_score_request(request(data, index=list(range(8, -1, -1))), Task.DETECTION)
    assert images(payload) == contents


def test_params_may_be_outside_or_inside_input_data() -> None:
    params = {"box_score_threshold": 0.4}
    inside = parse_score_request(request([URL_SAFE], params=params), Task.DETECTION)
    outside = parse_score_request({**request([URL_SAFE]), "params": params}, Task.DETECTION)
    assert inside.parameters == outside.parameters == params
    assert parse_score_request({**request([URL_SAFE]), "params": None}, Task.DETECTION).parameters == {}
    twice = {**request([URL_SAFE], params=params), "params": {"box_score_threshold": 0.5}}
    with pytest.raises(RequestError, match="is in both params and input_data"):
        parse_score_request(twice, Task.DETECTION)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "the request must be an object"),
        ({}, "must have the key 'input_data'"),
        ({"input_data": []}, "input_data must be an object"),
        ({"input_data": {"columns": ["image"]}}, "must have the key 'data'"),
        ({"input_data": {"data": [URL_SAFE]}}, r'columns must be \["image"\], got null'),
        ({"input_data": {"columns": ["picture"], "data": [URL_SAFE]}}, r"got \['picture'\]"),
        ({"input_data": {"columns": ["image", "x"], "data": [[URL_SAFE, 1]]}}, "columns must be"),
        ({"input_data": {"columns": "image", "data": [URL_SAFE]}}, "columns must be"),
        (request([]), "data is empty"),
        (request(URL_SAFE), "data must be a list"),
        (request(None), "data must be a list"),
        (request([URL_SAFE], index=[0, 1]), "index must be a list with one entry for each of the 1 rows"),
        (request([URL_SAFE], index="0"), "index must be a list"),
        (request([URL_SAFE], rows=[1]), "unknown key 'rows'"),
        ({**request([URL_SAFE]), "parameters": {}}, "unknown key 'parameters'"),
        ({**request([URL_SAFE]), "params": [1]}, "params must be an object"),
    ],
)
def test_other_forms_of_a_request_are_rejected(body: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        parse_score_request(body, Task.CLASSIFICATION)
    assert caught.value.row is None
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("http://example.com/image.png", "not base64"),
        ("file:///etc/passwd", "not base64"),
        ("~/image.png", "not base64"),
        ("ä" * 8, "not base64"),
        ("\ud800", "not base64"),
        ("abcde", "not base64"),
        ("ab=cdefg", "not base64"),
        ("data:image/png,abcd", "not base64"),
        ("", "empty"),
        ("data:image/png;base64,", "empty"),
        (b"", "empty"),
        (None, "must be a base64 string, got null"),
        (True, "got true"),
        (7, "got 7"),
        (10**400, "got a very large number"),
        (float("nan"), "NaN, a missing value"),
        ([], "one image, got a list of 0"),
        ([URL_SAFE, URL_SAFE], "one image, got a list of 2"),
        ([[URL_SAFE]], "must be a base64 string"),
        ("{", "looks like the explainability form, but is not valid JSON"),
        ('{"image_base64": NaN}', "NaN is not a JSON number"),
        ("{}", "must have the key 'image_base64'"),
        ({"image": URL_SAFE}, "unknown key 'image'"),
        ({"image_base64": None}, "must be a base64 string"),
        ({"image_base64": "http://x"}, "not base64"),
        ({"image_base64": URL_SAFE, "model_explainability": "maybe"}, "must be true or false, got 'maybe'"),
        ({"image_base64": URL_SAFE, "model_explainability": 2}, "must be true or false, got 2"),
        ({"image_base64": URL_SAFE, "xai_parameters": []}, "xai_parameters must be an object"),
        ({"image_base64": URL_SAFE, "xai_parameters": "{x"}, "xai_parameters is not valid JSON"),
        (
            {
                "image_base64": URL_SAFE,
                "model_explainability": True,
                "xai_parameters": {"n_steps": float("nan")},
            },
            "n_steps must be a whole number",
        ),
    ],
)
def test_error_names_the_wrong_row(row: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        parse_rows([URL_SAFE, URL_SAFE, row, "http://also.wrong"], Task.CLASSIFICATION)
    assert caught.value.row == 2
    assert 400 <= caught.value.status < 500
    assert len(str(caught.value)) < 300
    str(caught.value).encode("utf-8")


def explained(parameters: Any = None, wanted: Any = True, task: Task = Task.CLASSIFICATION) -> Any:
    """The explanation that the second of two rows asks for."""
    row = {"image_base64": URL_SAFE, "model_explainability": wanted, "xai_parameters": parameters}
    plain, asking = parse_rows([URL_SAFE, json.dumps(row)], task)
    assert plain.explanation is None
    assert asking.image == CONTENT
    return asking.explanation


def test_an_explanation_has_the_documented_defaults() -> None:
    for nothing in (None, {}):
        assert explained(nothing).model_dump() == {
            "xai_algorithm": "xrai",
            "visualizations": True,
            "attributions": False,
            "confidence_score_threshold_multilabel": 0.5,
            "n_steps": 50,
            "xrai_fast": True,
            "approximation_method": "riemann_middle",
            "n_masks": 300,
        }
    assert parse_rows([{"image_base64": URL_SAFE}], Task.CLASSIFICATION)[0].explanation is None
    assert explained({}, wanted=False) is None
    assert explained({"visualizations": False}) is None
    assert explained({"visualizations": False, "attributions": True}).attributions


def test_each_row_has_an_explanation_of_its_own() -> None:
    wanted = [{"xai_algorithm": "guided_backprop"}, {"n_steps": 7, "attributions": True}, {}]
    rows = parse_rows(
        [{"image_base64": URL_SAFE, "model_explainability": True, "xai_parameters": each} for each in wanted],
        Task.MULTILABEL,
    )
    assert [row.explanation.model_dump(exclude_defaults=True) for row in rows if row.explanation] == wanted


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (
            {"xai_algorithm": "lime"},
            "one of xrai, integrated_gradients, guided_gradcam, guided_backprop, got 'lime'",
        ),
        ({"xai_algorithm": "drise"}, "drise cannot explain a model for image-classification; use xrai or"),
        ({"visualizations": "some"}, "visualizations must be true or false, got 'some'"),
        ({"attributions": 2}, "attributions must be true or false, got 2"),
        ({"attributions": []}, r"attributions must be true or false, got \[\]"),
        ({"confidence_score_threshold_multilabel": 1.1}, r"a number in \[0, 1\], got 1.1"),
        ({"n_steps": 0}, r"n_steps must be a whole number in \[2, 1000\], got 0"),
        ({"n_steps": True}, "got true"),
        ({"n_steps": 5.5}, "got 5.5"),
        ({"n_steps": "5.5"}, "got '5.5'"),
        ({"n_steps": "many"}, "got 'many'"),
        ({"confidence_score_threshold_multilabel": "nan"}, "got 'nan'"),
        ({"n_steps": 5, "nSteps": 6}, "xai_parameters has two values for n_steps"),
        ({"n_steps": 10**30}, "got a very large number"),
        ({"approximation_method": "simpson"}, "must be one of riemann_left, .*gausslegendre"),
        ({"n_masks": 9}, r"in \[10, 5000\]"),
        ({"steps": 5}, "unknown key 'steps'; it may have xai_algorithm, visualizations"),
        ({"x" * 10_000: {}, "": 1}, "unknown key"),
    ],
)
def test_a_wrong_explanation_names_its_row(parameters: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        explained(parameters)
    assert (caught.value.row, caught.value.status) == (1, 400)
    assert len(str(caught.value)) < 300
    assert explained(parameters, wanted=False) is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"visualizations": "True", "attributions": "True"}, {"attributions": True}),
        ({"visualizations": 0, "attributions": 1}, {"visualizations": False, "attributions": True}),
        ({"visualizations": 0.0, "attributions": "1"}, {"visualizations": False, "attributions": True}),
        ({"visualizations": "0.0", "attributions": "1.0"}, {"visualizations": False, "attributions": True}),
        ({"xrai_fast": "no", "attributions": " yes "}, {"xrai_fast": False, "attributions": True}),
        (
            {"n_steps": "20", "confidence_score_threshold_multilabel": "0.8"},
            {"n_steps": 20, "confidence_score_threshold_multilabel": 0.8},
        ),
        (
            {"n_steps": 20.0, "confidence_score_threshold_multilabel": 1},
            {"n_steps": 20, "confidence_score_threshold_multilabel": 1.0},
        ),
        ({"xai_algorithm": "guided_gradCAM"}, {"xai_algorithm": "guided_gradcam"}),
        ({"xai_algorithm": "GuidedGradCAM"}, {"xai_algorithm": "guided_gradcam"}),
        ({"xai_algorithm": "Integrated gradients"}, {"xai_algorithm": "integrated_gradients"}),
        ({"xaiAlgorithm": "guided_backprop"}, {"xai_algorithm": "guided_backprop"}),
        ({"xai_algorithm": None, "n_steps": None}, {}),
    ],
)
def test_explanation_takes_flags_and_numbers_as_clients_write_them(
    written: dict[str, Any], meant: dict[str, Any]
) -> None:
    assert explained(written, wanted="True").model_dump(exclude_defaults=True) == meant
    assert explained(json.dumps(written)).model_dump(exclude_defaults=True) == meant


def test_model_explainability_is_taken_as_written() -> None:
    assert all(explained({}, wanted=wanted) is not None for wanted in (True, "True", "true", 1, 1.0, "1"))
    assert all(explained({}, wanted=wanted) is None for wanted in (False, "False", 0, 0.0, "0", None, "no"))


@pytest.mark.parametrize("task", [Task.DETECTION, Task.SEGMENTATION])
def test_boxes_are_explained_only_by_drise(task: Task) -> None:
    documented = ("xrai", "integrated_gradients", "guided_gradcam", "guided_backprop")
    assert explained({}, task=task) is None
    assert [explained({"xai_algorithm": name}, task=task) for name in documented] == [None] * 4
    assert explained({"attributions": True, "visualizations": "True"}, task=task) is None
    assert explained({"xai_algorithm": "drise", "n_masks": "50"}, task=task).n_masks == 50
    with pytest.raises(RequestError, match="xai_algorithm must be one of"):
        explained({"xai_algorithm": "lime"}, task=task)


def test_bytes_are_the_image_or_its_base64() -> None:
    text_image = b"P3\n1 1\n255\n9 8 7\n"
    assert PILImage.open(io.BytesIO(text_image)).format == "PPM"
    rows = [CONTENT, bytearray(CONTENT), memoryview(CONTENT), base64.encodebytes(CONTENT), text_image]
    read = [row.image for row in parse_rows(rows, Task.DETECTION)]
    assert read == [CONTENT, CONTENT, CONTENT, CONTENT, text_image]


def test_deep_nesting_is_rejected() -> None:
    for text in ("[" * 200_000, '{"a":' * 100_000, '{"input_data": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        with pytest.raises(RequestError, match="nested too deeply"):
            parse_json(text)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\xfe\xfd", b'{"a": 1, "a": 2}', b"[NaN]", b"[Infinity]", b"[1e", b"'a'", b"9" * 10_000],
)
def test_json_is_strict(text: bytes) -> None:
    with pytest.raises(RequestError, match="not valid JSON"):
        parse_json(text)


def test_reads_mlflows_forms() -> None:
    forms = {
        "dataframe_split": {"columns": ["image"], "index": [0, 1], "data": [[URL_SAFE], [URL_SAFE]]},
        "dataframe_records": [{"image": URL_SAFE}, {"image": URL_SAFE}],
        "instances": [{"image": URL_SAFE}, URL_SAFE],
        "inputs": {"image": [URL_SAFE, URL_SAFE]},
    }
    for form, table in forms.items():
        payload = parse_invocation({form: table, "params": {"nms_iou_threshold": 1}}, Task.DETECTION)
        assert images(payload) == [CONTENT, CONTENT], form
        assert payload.parameters == {"nms_iou_threshold": 1}
    assert images(parse_invocation({"inputs": {"image": URL_SAFE}}, Task.DETECTION)) == [CONTENT]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "exactly one of"),
        ({"inputs": [URL_SAFE], "instances": [URL_SAFE]}, "got instances and inputs"),
        ({"inputs": {"image": [URL_SAFE], "x": [1]}}, "unknown key 'x'"),
        ({"inputs": {"image": []}}, "data is empty"),
        ({"instances": [{"image": URL_SAFE}, {"picture": URL_SAFE}]}, "row 1: .*unknown key 'picture'"),
        ({"dataframe_records": [{}]}, "row 0: .*must have the key 'image'"),
        ({"dataframe_records": {"image": URL_SAFE}}, "must be a list"),
        (
            {"dataframe_split": {"columns": ["image"], "data": [[URL_SAFE, 3]]}},
            "row 0: a row holds one image",
        ),
    ],
)
def test_forms_other_than_mlflows_are_rejected(body: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parse_invocation(body, Task.DETECTION)


def test_parameters_override_the_defaults() -> None:
    defaults = ScoringParameters(box_score_threshold=0.1)
    given = {"nms_iou_threshold": 0, "max_number_of_polygon_points": 3}
    parameters = parse_parameters(given, Task.SEGMENTATION, defaults)
    assert parameters.nms_iou_threshold == 0
    assert parameters.max_number_of_polygon_points == 3
    assert parameters.box_score_threshold == 0.1


@pytest.mark.parametrize(
    ("spelling", "name", "value"),
    [
        *((older, name, 7 if "detections" in name else 0.9) for older, name in PRESENT_NAMES.items()),
        ("nmsIouThreshold", "nms_iou_threshold", 0.9),
        ("boxNmsThresh", "nms_iou_threshold", 0.9),
    ],
)
def test_a_request_takes_every_name_that_job_files_take(spelling: str, name: str, value: float) -> None:
    parameters = parse_parameters({spelling: value}, Task.DETECTION, ScoringParameters())
    assert getattr(parameters, name) == value
    with pytest.raises(RequestError, match=f"parameter {spelling} must be .*, got -1"):
        parse_parameters({spelling: -1}, Task.DETECTION, ScoringParameters())
    with pytest.raises(RequestError, match=f"parameter {spelling} contradicts {name}, its other name"):
        parse_parameters({name: value / 2, spelling: value}, Task.DETECTION, ScoringParameters())


def test_a_parameter_that_equals_the_default_is_set_all_the_same() -> None:
    defaults = ScoringParameters(box_score_threshold=0.25)
    for name in ("box_score_threshold", "box_score_thresh"):
        assert parse_parameters({name: 0.25}, Task.DETECTION, defaults).replaces_class_thresholds
    for given in ({}, {"nms_iou_threshold": 0.5}):
        parameters = parse_parameters(given, Task.DETECTION, defaults)
        assert (parameters.box_score_threshold, parameters.replaces_class_thresholds) == (0.25, False)


def test_a_request_switches_tiling_on_and_off() -> None:
    off, on = ScoringParameters(), ScoringParameters(tile_grid_size="2x2")
    for text in ("3x2", "3X2", "(3, 2)"):
        parameters = parse_parameters({"tile_grid_size": text, "tile_overlap_ratio": 0}, Task.DETECTION, off)
        assert (parameters.tile_grid_size, parameters.tile_overlap_ratio) == ("3x2", 0)
    for nothing in (None, "none", "None", ""):
        assert parse_parameters({"tile_grid_size": nothing}, Task.SEGMENTATION, on).tile_grid_size is None
    assert parse_parameters({"tile_overlap_ratio": 0.5}, Task.DETECTION, on).tile_grid_size == "2x2"
    with pytest.raises(RequestError, match="a model for image-classification-multilabel has none"):
        parse_parameters({"tile_grid_size": "3x2"}, Task.MULTILABEL, off)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("box_score_threshold", 1.5, r"parameter box_score_threshold must be a number in \[0, 1\], got 1.5"),
        ("box_score_threshold", -0.001, "got -0.001"),
        ("box_score_threshold", float("nan"), "got NaN"),
        ("box_score_threshold", float("inf"), "got inf"),
        ("box_score_threshold", "0.5", "got '0.5'"),
        ("box_score_threshold", True, "got true"),
        ("box_score_threshold", None, "got null"),
        ("nms_iou_threshold", [0.5], r"got \[0.5\]"),
        ("nms_iou_threshold", 10**400, "got a number over"),
        ("nms_iou_threshold", -(10**400), "got a very large number"),
        ("box_detections_per_image", 0, "must be a whole number over 0, got 0"),
        ("box_detections_per_image", 5.0, "got 5.0"),
        ("box_detections_per_image", 2**40, "got a number over"),
        ("max_number_of_polygon_points", 2, "must be a whole number of at least 3, got 2"),
        ("mask_pixel_score_threshold", {}, "got an object"),
        ("tile_grid_size", "1x1", r'must be columns and rows as text such as "3x2", .* null for none, got'),
        ("tile_grid_size", "0x2", "got '0x2'"),
        ("tile_grid_size", "999x999", "2 to 400 tiles"),
        ("tile_grid_size", "3x2\ud800", "tile_grid_size must be columns"),
        ("tile_grid_size", 3, "got 3"),
        ("tile_grid_size", True, "got true"),
        ("tile_grid_size", {}, "got an object"),
        ("tile_grid_size", [3, 2, 1], r"got \[3, 2, 1\]"),
        ("tile_overlap_ratio", 1, r"must be a number in \[0, 1\), got 1"),
        ("tile_overlap_ratio", -0.1, "got -0.1"),
        ("tile_predictions_nms_threshold", 1.1, r"must be a number in \[0, 1\], got 1.1"),
        ("tile_predictions_nms_threshold", "0.3", "got '0.3'"),
        ("threshold", 0.5, "no parameter 'threshold'; it has box_score_threshold, "),
        ("\ud800" * 500, 0.5, "no parameter "),
    ],
)
def test_error_names_parameter_range_and_value(name: str, value: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        parse_parameters({name: value}, Task.SEGMENTATION, ScoringParameters())
    str(caught.value).encode("utf-8")


def test_task_has_only_the_parameters_that_apply() -> None:
    assert parameters_of(Task.MULTILABEL) == ()
    assert "max_number_of_polygon_points" not in parameters_of(Task.DETECTION)
    assert set(parameters_of(Task.SEGMENTATION)) == set(ScoringParameters.model_fields)
    with pytest.raises(RequestError, match="a model for image-classification has none"):
        parse_parameters({"box_score_threshold": 0.5}, Task.CLASSIFICATION, ScoringParameters())
    with pytest.raises(RequestError, match="it has box_score_threshold, nms_iou_threshold, box_det"):
        parse_parameters({"mask_pixel_score_threshold": 0.5}, Task.DETECTION, ScoringParameters())


def test_every_parameter_has_a_range_in_words() -> None:
    assert {range_of(name).split(" in ")[0].split(" of ")[0] for name in ScoringParameters.model_fields} == {
        "a number",
        "a whole number over 0",
        "a whole number",
        'columns and rows as text such as "3x2", 2 to 400 tiles, or null for none',
    }
    assert range_of("tile_overlap_ratio") == "a number in [0, 1)"


def test_importing_serving_loads_no_training_library(run_python: Callable[[str], str]) -> None:
    out = run_python(
        "import sys, serving.payload, serving.answers, serving.scorer, serving.locate, serving.predict\n"
        "print(sorted({'torch', 'lightning', 'optuna', 'ultralytics', 'timm', 'cv2'} & set(sys.modules)))"
    )
    assert out.strip() == "[]"
    out = run_python(
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "import serving.model, serving.service.server, serving.package\n"
        "print(sorted({'torch', 'lightning', 'optuna', 'ultralytics', 'timm', 'cv2'} & set(sys.modules)))"
    )
    assert out.strip() == "[]"
