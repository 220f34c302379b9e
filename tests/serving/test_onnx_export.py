"""ONNX files, fed by what they say of themselves alone, against the families' own answers."""

from __future__ import annotations

import json
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import nn

from serving import onnx_export
from serving.scorer import load_network
from tests.conftest import needs_library
from trainer import cli
from trainer.annotations import Classification, Detections, Image, Mask
from trainer.errors import JobError, RunError
from trainer.models import Family, Spec, catalog, create, specify
from trainer.models.defaults import resolve
from trainer.models.geometry import Geometry
from trainer.tasks import Task

from tests.conformance.conftest import make_case  # isort: skip

CLASSIFICATION, MULTILABEL, DETECTION, SEGMENTATION = Task
MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
if MISSING and os.environ.get("CI", "").lower() != "true":
    pytest.skip(f"needs {', '.join(MISSING)}: pip install 'image-trainer[onnx]'", allow_module_level=True)

# One model of each architecture; with the normalisation in the graph, and without. What takes long to trace
# and differs little from another runs when it is asked for.
EXTENDED = pytest.mark.skipif(
    not os.environ.get("ALL_EXPORTS"), reason="minutes of tracing each; ALL_EXPORTS=1 runs them"
)
MODELS = [
    (CLASSIFICATION, "resnet18", True, ()),
    (CLASSIFICATION, "resnet18", False, ()),
    (MULTILABEL, "vits16r224", True, ()),
    (CLASSIFICATION, "hf/acme/tiny-vit", True, ()),
    (DETECTION, "yolo11n", True, ()),
    (SEGMENTATION, "yolo26n-seg", False, ()),
    (SEGMENTATION, "maskrcnn_resnet18_fpn", True, ()),
    (DETECTION, "yolov5", False, EXTENDED),
    (DETECTION, "yolo26n", True, EXTENDED),
    (SEGMENTATION, "yolo11n-seg", True, EXTENDED),
    (DETECTION, "rtdetr-resnet50", True, EXTENDED),
    (DETECTION, "rtdetr-l", False, EXTENDED),
    (DETECTION, "rfdetr-nano", True, EXTENDED),
    (DETECTION, "rtdetrv2-r18", True, EXTENDED),
    (DETECTION, "dfine-n", False, EXTENDED),
    (DETECTION, "lwdetr-tiny", True, EXTENDED),
    (DETECTION, "deimv2-n", True, EXTENDED),
    (DETECTION, "deimv2-s", False, EXTENDED),
    (DETECTION, "deformable-detr", False, EXTENDED),
    (DETECTION, "deformable-detr-two-stage", True, EXTENDED),
    (DETECTION, "conditional-detr-r50", False, EXTENDED),
    (DETECTION, "yolos-tiny", True, EXTENDED),
    (SEGMENTATION, "rfdetr-seg-nano", False, EXTENDED),
    (SEGMENTATION, "mask2former-swin-t", True, EXTENDED),
    (SEGMENTATION, "eomt-small", False, EXTENDED),
    (DETECTION, "fasterrcnn_resnet18_fpn", False, EXTENDED),
    (DETECTION, "fasterrcnn_resnet50_fpn_v2", True, EXTENDED),
    (SEGMENTATION, "maskrcnn_resnet50_fpn_v2", True, EXTENDED),
    (DETECTION, "retinanet_resnet50_fpn", False, EXTENDED),
    (DETECTION, "retinanet_resnet50_fpn_v2", True, EXTENDED),
    (DETECTION, "fcos_resnet50_fpn", True, EXTENDED),
    (DETECTION, "fasterrcnn_resnet18_fpn --backbone timm/test_efficientnet", False, EXTENDED),
    (DETECTION, "retinanet_resnet50_fpn --backbone timm/test_efficientnet", False, EXTENDED),
    (DETECTION, "fcos_resnet50_fpn --backbone timm/test_efficientnet", True, EXTENDED),
    (SEGMENTATION, "maskrcnn_resnet18_fpn --backbone timm/test_efficientnet", True, EXTENDED),
]


def write_artifacts(directory: Path, spec: Spec, network: nn.Module) -> Path:
    """What of a packaged model an export reads."""
    (directory / "artifacts").mkdir(parents=True)
    (directory / "MLmodel").touch()
    (directory / "artifacts" / "spec.json").write_text(spec.model_dump_json(), "utf-8")
    torch.save(network.state_dict(), directory / "artifacts" / "weights.pt")
    return directory


@torch.no_grad()
def enliven(family: Family, network: nn.Module, images: list[Image]) -> None:
    """Let an untrained network tell images and places apart: its batch norms have seen the images."""
    norms = [module for module in network.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    tensors = [family.preprocess(image)[0] for image in images]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    family.infer(network, tensors, family.spec.parameters)
    for norm in norms:
        norm.eval()


@torch.no_grad()
def dividing_threshold(family: Family, network: nn.Module, images: list[Image]) -> float:
    """A score that no box of one image reaches, but some of two others do; in the widest gap there is."""
    everything = family.spec.parameters.model_copy(update={"box_score_threshold": 0.0})
    found = family.predict(network, images, everything)
    of_images = [each.scores for each in found if isinstance(each, Detections)]
    least, _, enough, _ = sorted(scores.max() for scores in of_images)
    scores = np.sort(np.concatenate(of_images))
    between = scores[(scores >= least) & (scores <= enough)]
    widest = int(np.argmax(np.diff(between)))
    return float(between[widest : widest + 2].mean())


def prepared(image: Image, given: dict[str, Any]) -> np.ndarray[Any, Any]:
    """An image → the file's input [1, 3, h, w], by what the file says alone."""
    rule = given["resizing"]
    height, width = image.shape[:2]
    if rule["rule"] in ("short side, centre crop", "both sides, centre crop"):
        crop, scale = rule["crop_size"], rule["resize_size"] / min(height, width)
        size = (max(crop, round(width * scale)), max(crop, round(height * scale)))
        if rule["rule"].startswith("both"):
            size = (rule["resize_size"], rule["resize_size"])
        resampling = PILImage.Resampling[rule["interpolation"].removesuffix(", antialiased").upper()]
        resized = np.array(PILImage.fromarray(image).resize(size, resampling))
        top, left = (size[1] - crop) // 2, (size[0] - crop) // 2
        resized = resized[top : top + crop, left : left + crop]
    elif rule["rule"] == "keep the aspect ratio":
        scale = min(rule["min_size"] / min(height, width), rule["max_size"] / max(height, width))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=method)
    elif rule["rule"] == "stretch":
        resized = cv2.resize(image, (rule["side"], rule["side"]), interpolation=cv2.INTER_LINEAR)
    else:
        centre, corner = "centre in the square", "in the square's upper left corner"
        assert rule["rule"] in (f"keep the aspect ratio, {centre}", f"keep the aspect ratio, {corner}")
        side = rule["side"]
        scale = side / max(height, width)
        inner = cv2.resize(image, (round(width * scale), round(height * scale)))
        resized = np.full((side, side, 3), rule["fill"], np.uint8)
        top, left = (side - inner.shape[0]) // 2, (side - inner.shape[1]) // 2
        if rule["rule"].endswith(corner):
            top, left = 0, 0
        resized[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    pixels = resized.transpose(2, 0, 1)[None]
    norm = given["normalization"]
    if norm is None:
        return pixels.astype(given["type"])
    mean, std = (np.array(norm[name])[:, None, None] for name in ("mean", "std"))
    return ((pixels / norm["scale"] - mean) / std).astype(given["type"])


def as_input(family: Family, image: Image, normalize: bool) -> np.ndarray[Any, Any]:
    """What the family's `preprocess` makes of an image, with its normalisation undone if the file does it."""
    tensor = family.preprocess(image)[0].numpy()[None]
    if not normalize:
        return tensor
    mean, std = (
        np.array(values)[:, None, None] for values in (family.preparation().mean, family.preparation().std)
    )
    return ((tensor * std + mean) * 255).round().astype(np.uint8)


def opened(file: Path) -> tuple[Any, dict[str, Any]]:
    """onnxruntime's session of a file, on the CPU, and what the file says of itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map[onnx_export.METADATA_KEY])


def canvas(mask: Mask, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    whole = np.zeros(size, dtype=bool)
    height, width = mask.pixels.shape
    whole[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
    return whole


@pytest.mark.parametrize(
    ("task", "model", "normalize"),
    [pytest.param(*row[:3], marks=row[3], id=f"{row[1]}-{'uint8' if row[2] else 'float'}") for row in MODELS],
)
def test_a_file_answers_as_its_model_does(task: Task, model: str, normalize: bool, tmp_path: Path) -> None:
    model, _, backbone = model.partition(" --backbone ")
    library = catalog.find(model, task).card.library
    needs_library(library)
    case = make_case(task, model, **({"backbone": backbone} if backbone else {}))
    family, network, images = case.family, case.build(), case.examples.images
    enliven(family, network, images)
    if task.has_boxes:
        threshold = dividing_threshold(family, network, images)
        parameters = family.spec.parameters.model_copy(update={"box_score_threshold": threshold})
        family = create(family.spec.model_copy(update={"parameters": parameters}))
    directory = write_artifacts(tmp_path / "model", family.spec, network)
    said = onnx_export.export(directory, tmp_path / "model.onnx", normalize=normalize)
    session, described = opened(tmp_path / "model.onnx")
    assert described == said
    assert described["classes"] == list(family.spec.classes)
    names = [output.name for output in session.get_outputs()]
    inputs = [as_input(family, image, normalize) for image in images]
    for image, tensor in zip(images, inputs, strict=True):
        by_hand = prepared(image, described["input"])
        assert by_hand.dtype == tensor.dtype
        # Cropped before or after it is resized, a pixel may be rounded otherwise: by one of 255 steps.
        np.testing.assert_allclose(by_hand, tensor, atol=1 if normalize else 0.018)
        assert np.mean(abs(by_hand - tensor.astype(float)) > 1e-5) < 5e-3
    answers = [session.run(None, {"images": tensor}) for tensor in inputs]
    with torch.no_grad():
        predictions = family.predict(network, images)
        raw = [family.infer(network, [family.preprocess(i)[0]], family.spec.parameters)[0] for i in images]
    if task.is_classification:
        assert names == ["probs"]
        (together,) = session.run(None, {"images": np.concatenate(inputs[:3])})
        for index, (prediction, (probs,)) in enumerate(zip(predictions, answers, strict=True)):
            assert isinstance(prediction, Classification)
            np.testing.assert_allclose(probs[0], prediction.probs, atol=1e-4)
            if index < 3:
                np.testing.assert_allclose(together[index], prediction.probs, atol=1e-4)
        assert np.ptp([probs for (probs,) in answers], axis=0).max() > 1e-3, "the images look all the same"
        return
    assert names == ["boxes", "scores", "labels", *(["masks"] if task is SEGMENTATION else [])]
    counts = sorted(len(answer[0]) for answer in answers)
    assert counts[0] == 0
    assert counts[2] > 0
    for image, prediction, output, (boxes, scores, labels, *masks) in zip(
        images, predictions, raw, answers, strict=True
    ):
        assert isinstance(prediction, Detections)
        geometry = family.preprocess(image)[1]
        np.testing.assert_allclose(scores, prediction.scores, atol=1e-4)
        np.testing.assert_array_equal(labels, prediction.labels)
        # Boxes around masks are as exact as these, which the file has at the size of its input.
        around_masks = family.spec.family == "mask_transformers"
        slack = 1 / min(geometry.tensor_size) if around_masks else 1e-3
        np.testing.assert_allclose(geometry.boxes_to_image(boxes), prediction.boxes, atol=slack)
        if masks:
            size = geometry.tensor_size
            plain = family.postprocess(output, Geometry(size, size, (1.0, 1.0)), family.spec.parameters)
            assert isinstance(plain, Detections)
            assert plain.masks is not None
            expected = [canvas(mask, size) for mask in plain.masks]
            assert masks[0].shape == (len(boxes), *size)
            assert masks[0].dtype == np.bool_
            # OpenCV samples Mask R-CNN's masks in steps of 1/32 of a cell.
            assert len(boxes) == 0 or np.mean(masks[0] != np.array(expected)) < 2e-3
            if around_masks:
                np.testing.assert_allclose(boxes / (size[::-1] * 2), plain.boxes, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (DETECTION, "retinanet_resnet50_fpn"),
        (DETECTION, "fcos_resnet50_fpn"),
        (SEGMENTATION, "maskrcnn_resnet18_fpn"),
    ],
)
@torch.no_grad()
def test_graph_on_a_timm_backbone_answers_as_its_model_does(task: Task, model: str) -> None:
    """What is exported, without the minutes of tracing it."""
    case = make_case(task, model, backbone="timm/test_efficientnet")
    family, network, image = case.family, case.build(), case.examples.images[1]
    enliven(family, network, [image])
    some = {"box_score_threshold": 0.0, "box_detections_per_image": 10}
    parameters = family.spec.parameters.model_copy(update=some)
    tensor = family.preprocess(image)[0]
    (expected,) = family.infer(network, [tensor], parameters)
    found = family.graph(network, tensor[None], parameters)
    assert len(found["boxes"]) > 0
    torch.testing.assert_close(found["scores"], expected["scores"])
    torch.testing.assert_close(found["labels"] + family.first_label, expected["labels"])  # type: ignore[attr-defined]
    torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-3, rtol=0)
    if task is SEGMENTATION:
        assert found["masks"].shape == (len(found["boxes"]), *tensor.shape[1:])


class Checked(nn.Module):
    """What the exporter cannot translate by itself: a check of all values, and a sort that keeps order."""

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch._is_all_true(values > 0), values.sort(descending=True, stable=True)[1]


@pytest.mark.parametrize(("first", "all_positive"), [(3.0, True), (-1.0, False)])
def test_operators_that_pytorchs_exporter_lacks_are_translated(first: float, all_positive: bool) -> None:
    values = torch.tensor([first, 2.0, 5.0, 2.0])
    options: dict[str, Any] = {"custom_translation_table": onnx_export._translations(), "dynamo": True}
    program = torch.onnx.export(Checked().eval(), (values,), verbose=False, **options)
    assert program is not None
    check, order = program(values)
    assert bool(check) is all_positive
    assert order.tolist() == ([2, 0, 1, 3] if all_positive else [2, 1, 3, 0])


def with_spec(model: Path, target: Path, **changes: Any) -> Path:
    """A packaged model as an export reads it, with changes in its spec."""
    (target / "artifacts").mkdir(parents=True)
    (target / "MLmodel").touch()
    spec = json.loads((model / "artifacts" / "spec.json").read_bytes())
    (target / "artifacts" / "spec.json").write_text(json.dumps({**spec, **changes}), "utf-8")
    (target / "artifacts" / "weights.pt").symlink_to(model / "artifacts" / "weights.pt")
    return target


def run(*arguments: object) -> None:
    cli.app(["export", *map(str, arguments)], exit_on_error=False, result_action="return_value")


def test_the_command_follows_the_setting_that_the_model_was_trained_with(
    packaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    trained = with_spec(packaged(CLASSIFICATION), tmp_path / "model", enable_onnx_normalization=True)
    file = tmp_path / "new" / "file.onnx"
    run(trained, "--output", file, "--opset", 18)
    assert "images: uint8 [N, 3, 32, 32], any number at a time" in capsys.readouterr().out
    assert [path.name for path in file.parent.iterdir()] == ["file.onnx"]
    written = onnx.load(file)
    onnx.checker.check_model(written, full_check=True)
    assert [opset.version for opset in written.opset_import if not opset.domain] == [18]
    assert str(Path.cwd()).encode() not in file.read_bytes(), "paths of this machine"
    assert opened(file)[0].get_inputs()[0].type == "tensor(uint8)"
    run(trained, "--output", file, "--no-normalize")
    session, described = opened(file)
    assert session.get_inputs()[0].type == "tensor(float)"
    assert described["input"]["normalization"]["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_a_spec_carries_the_setting_and_may_lack_it() -> None:
    settings = resolve(CLASSIFICATION, "resnet18", {"enable_onnx_normalization": True})
    spec = specify(CLASSIFICATION, "resnet18", settings, ("a", "b"), pretrained=False)
    assert spec.enable_onnx_normalization
    older = json.loads(spec.model_dump_json())
    del older["enable_onnx_normalization"]
    assert not Spec.model_validate(older).enable_onnx_normalization


def test_missing_package_or_opset_is_reported_at_once(
    packaged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(JobError) as raised:
        onnx_export.export(packaged(CLASSIFICATION), tmp_path / "model.onnx", opset=11)
    assert "needs onnx, which is not installed; pip install 'image-trainer[onnx]'" in str(raised.value)
    assert "--opset: must be at least 18, got 11" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_unwritable_output_raises(packaged: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"model\.onnx: cannot be written"):
        onnx_export.export(packaged(CLASSIFICATION), tmp_path / "file" / "model.onnx")


def test_tiling_that_is_not_exported_is_logged(
    packaged: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packaged(DETECTION)
    parameters = json.loads((model / "artifacts" / "spec.json").read_bytes())["parameters"]
    tiled = with_spec(model, tmp_path / "model", parameters={**parameters, "tile_grid_size": "2x2"})
    log = logging.getLogger("trainer")
    monkeypatch.setattr(log, "propagate", True)
    # It is said before the half minute that the tracing takes, which this test spares itself.
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *_, **__: pytest.fail("too late"))
    with caplog.at_level(logging.WARNING), pytest.raises(pytest.fail.Exception):
        onnx_export.export(tiled, tmp_path / "model.onnx")
    assert "tile_grid_size is not exported" in caplog.text


def test_network_that_cannot_be_exported_is_named(
    packaged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, network = load_network(packaged(CLASSIFICATION) / "artifacts", "cpu")
    monkeypatch.setattr(type(family), "graph", Family.graph)
    with pytest.raises(RunError, match="resnet18: networks of the family classifiers cannot be exported"):
        onnx_export.to_onnx(family, network, normalize=False)

    def of_eigenvalues(network: nn.Module, images: Any, _: Any) -> dict[str, Any]:
        return {"probs": torch.linalg.eigvalsh(images[:, 0]) + network(images).sum()}

    monkeypatch.setattr(family, "graph", of_eigenvalues)
    with pytest.raises(RunError, match=r"resnet18: torch .* cannot export this network to ONNX: "):
        onnx_export.to_onnx(family, network, normalize=False)
