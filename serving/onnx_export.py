"""Exports a packaged model as a self-contained ONNX file for `trainer export`.

Classifiers return probabilities; all detectors return the same outputs, with thresholds and NMS in the graph.
The file describes its inputs and outputs itself, as JSON under METADATA_KEY in its metadata.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.locate import find_artifacts
from serving.parameters import parameters_of
from serving.scorer import load_network
from trainer.errors import JobError, Problem, RunError
from trainer.models import Family
from trainer.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.onnx import ONNXProgram

METADATA_KEY = "image-trainer"
INPUT = "images"

_PACKAGES = ("onnx", "onnxscript")
_REFUSED = "the model cannot be exported:"
_MIN_OPSET = 18  # the oldest that torch writes
_EXAMPLE_SIZE = (320, 448)  # for images of varying size: every level of a feature pyramid has several cells

_OUTPUTS = {
    "probs": "float32 [N, C]: each class's probability, in the order of `classes`",
    "boxes": "float32 [n, 4]: left, top, right, bottom in pixels of the resized image",
    "scores": "float32 [n], in descending order",
    "labels": "int64 [n]: index into `classes`",
    "masks": "bool [n, height, width]: each object's pixels in the resized image",
}
_PARAMETERS = (
    "box_score_threshold",
    "nms_iou_threshold",
    "box_detections_per_image",
    "mask_pixel_score_threshold",
)

log = logging.getLogger("trainer")


def export(
    run_or_model: Path, output: Path, *, opset: int | None = None, normalize: bool | None = None
) -> dict[str, Any]:
    """Write a packaged model as an ONNX file; weights of over 2 GB go into a second file next to it.

    Args:
        output: the file; an existing file is replaced.
        opset: version of ONNX's operators; None takes torch's default.
        normalize: the file takes uint8 images in [0, 255] and normalises them itself; if False, it takes
            normalised float32 images; None takes the model's `enable_onnx_normalization`.

    Returns:
        The file's description.

    Raises:
        JobError: a package is not installed, or the opset is not supported.
        RunError: there is no model, its network cannot be exported, or the file cannot be written.
        WeightsError: its weights are damaged.
    """
    _check(opset)
    family, network = load_network(find_artifacts(run_or_model), "cpu")
    if normalize is None:
        normalize = family.spec.enable_onnx_normalization
    if family.spec.parameters.tile_grid_size is not None and family.spec.task.has_boxes:
        log.warning("the file scores images as a whole; tile_grid_size is not exported")
    program = to_onnx(family, network, normalize=normalize, opset=opset)
    try:
        _write(program, output.absolute())
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error}") from error
    return describe(family, normalize=normalize)


def describe(family: Family, *, normalize: bool) -> dict[str, Any]:
    """The description of an exported file: task, classes, thresholds, image preparation, outputs.

    `input.normalization` is None if the file normalises images itself; otherwise the input must be
    (pixel / `scale` − `mean`) / `std`. `input.size` is None if it depends on the image.
    """
    spec, preparation = family.spec, family.preparation()
    outputs = ["probs"] if spec.task.is_classification else ["boxes", "scores", "labels"]
    outputs += ["masks"] if spec.task is Task.SEGMENTATION else []
    parameters = [name for name in parameters_of(spec.task) if name in _PARAMETERS]
    normalization = {"scale": 255, "mean": list(preparation.mean), "std": list(preparation.std)}
    return {
        "model": spec.model,
        "task": spec.task.value,
        "classes": list(spec.classes),
        "input": {
            "name": INPUT,
            "type": "uint8" if normalize else "float32",
            "layout": "NCHW, RGB",
            "images": "any number" if spec.task.is_classification else "one",
            "size": preparation.size and list(preparation.size),
            "resizing": preparation.resizing,
            "normalization": None if normalize else normalization,
        },
        "outputs": {name: _OUTPUTS[name] for name in outputs},
        "parameters": {name: getattr(spec.parameters, name) for name in parameters},
        "class_score_thresholds": spec.class_score_thresholds,
        # For information: the file's own scores are calibrated.
        **({"calibration": spec.calibration.model_dump()} if spec.calibration else {}),
    }


def to_onnx(family: Family, network: nn.Module, *, normalize: bool, opset: int | None = None) -> ONNXProgram:
    """Export a network, in eval mode and on the CPU, as an ONNX program with its description.

    Raises:
        JobError: the opset is not supported.
        RunError: the network cannot be exported.
    """
    import torch
    from torch.onnx import OnnxExporterError

    description = describe(family, normalize=normalize)
    graph = _graph(family, network, normalize=normalize).eval()
    height, width = description["input"]["size"] or _EXAMPLE_SIZE
    count = 2 if family.spec.task.is_classification else 1  # torch would export a 1 as a constant
    dtype = torch.uint8 if normalize else torch.float32
    example = torch.zeros(count, 3, height, width, dtype=dtype)
    varying: dict[int, str] = {0: "batch"} if family.spec.task.is_classification else {}
    if description["input"]["size"] is None:
        varying |= {2: "height", 3: "width"}
    try:
        with _quiet(), torch.no_grad():
            graph(example)  # some networks compute constants in their first run
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=[INPUT],
                output_names=list(description["outputs"]),
                opset_version=opset,
                dynamic_shapes=(varying,),
                custom_translation_table=_translations(),
                dynamo=True,
                verbose=False,
            )
    except (OnnxExporterError, NotImplementedError) as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise RunError(
            f"{family.spec.model}: torch {torch.__version__} cannot export this network to ONNX: {cause}"
        ) from error
    assert program is not None, "torch's dynamo exporter returns a program"
    _finish(program, description, opset)
    return program


def _graph(family: Family, network: nn.Module, *, normalize: bool) -> nn.Module:
    import torch

    class Graph(torch.nn.Module):
        """Images, as the file takes them, to its outputs, as a tuple."""

        mean: Tensor
        std: Tensor
        lowest: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            preparation = family.preparation()
            self.shifts = preparation.mean != (0.0,) * 3 or preparation.std != (1.0,) * 3
            for name in ("mean", "std"):
                value = torch.tensor(getattr(preparation, name))[:, None, None]
                self.register_buffer(name, value, persistent=False)
            self.network_parameters = family.network_parameters(family.spec.parameters)
            thresholds = family.lowest_scores(family.spec.parameters) if family.spec.task.has_boxes else None
            self.has_thresholds = thresholds is not None
            lowest = torch.zeros(0) if thresholds is None else torch.from_numpy(thresholds)
            self.register_buffer("lowest", lowest, persistent=False)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            if normalize:
                images = images.float() / 255
                if self.shifts:
                    images = (images - self.mean) / self.std
            outputs = family.graph(self.network, images, self.network_parameters)
            if family.spec.calibration is not None and family.spec.task.has_boxes:
                scores = family.spec.calibration.apply_to_tensor(outputs["scores"])
                outputs = {**outputs, "scores": scores}
            if self.has_thresholds:
                is_kept = outputs["scores"] >= self.lowest[outputs["labels"]]
                outputs = {name: output[is_kept] for name, output in outputs.items()}
            return tuple(outputs.values())

    return Graph()


def _translations() -> dict[Any, Any]:
    """What stands in ONNX for operators of PyTorch that its exporter lacks."""
    import torch

    return {
        torch.ops.aten.sort.stable: _stable_sort,
        torch.ops.aten._is_all_true.default: _is_all_true,
    }


def _stable_sort(values: Any, *, dim: int = -1, descending: bool = False, **_: bool) -> Any:
    """Translate aten::sort.stable, which torch cannot; TopK keeps the order of equal values."""
    import onnxscript

    op: Any = onnxscript.opset18
    size = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


def _is_all_true(values: Any) -> Any:
    """Translate aten::_is_all_true, which torch cannot."""
    import onnxscript

    op: Any = onnxscript.opset18
    integers = op.Cast(values, to=7)  # TensorProto.INT64
    return op.Cast(op.ReduceMin(integers, keepdims=0), to=9)  # TensorProto.BOOL


def _finish(program: ONNXProgram, description: dict[str, Any], opset: int | None) -> None:
    """Add the metadata; remove symbol names and the source paths of this machine."""
    model = program.model
    got = model.opset_imports[""]
    if opset is not None and got != opset:
        rule = "is not supported for this network by torch and onnx"
        problem = Problem("--opset", "", rule, str(opset), f"use {got}")
        raise JobError(_REFUSED, [problem])
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = json.dumps(description, ensure_ascii=False)
    model.producer_name = "image-trainer"
    if "probs" not in description["outputs"]:
        for value in model.graph.outputs:
            if value.shape is not None:
                value.shape[0] = "n"
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None


def _write(program: ONNXProgram, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory, so that the move stays on one disk.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        program.save(str(Path(scratch, output.name)))
        for file in sorted(Path(scratch).iterdir()):
            shutil.move(file, output.parent / file.name)


def _check(opset: int | None) -> None:
    problems = [
        Problem("", "", f"needs {name}, which is not installed", hint="pip install 'image-trainer[onnx]'")
        for name in _PACKAGES
        if find_spec(name) is None
    ]
    if opset is not None and opset < _MIN_OPSET:
        problems.append(Problem("--opset", "", f"must be at least {_MIN_OPSET}", str(opset)))
    if problems:
        raise JobError(_REFUSED, problems)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and model libraries print about their own code during tracing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
