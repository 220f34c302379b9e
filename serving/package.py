"""Writes the MLflow model directory: a plain pyfunc that carries its weights, its code and its pins.

MLmodel  conda.yaml  python_env.yaml  requirements.txt  input_example.json
artifacts/spec.json  artifacts/weights.pt      what serving.scorer loads
code/                                          what scoring needs of trainer and serving
"""

from __future__ import annotations

import base64
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image as PILImage

from serving.parameters import parameters_of
from serving.payload import COLUMN
from serving.scorer import SPEC_FILE, WEIGHTS_FILE
from trainer.errors import RunError
from trainer.models import Spec, create
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from torch import Tensor, nn

_REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pillow", "pydantic")

_CODE = {
    "trainer": (
        "__init__.py",
        "annotations.py",
        "errors.py",
        "scoring.py",
        "tasks.py",
        "data/__init__.py",
        "data/images.py",
        "models/*.py",
        "models/weights/*.py",
        "drawing/__init__.py",
        "drawing/fonts.py",
    ),
    "serving": (
        "__init__.py",
        "answers.py",
        "model.py",
        "payload.py",
        "polygons.py",
        "scorer.py",
        "shown.py",
        "explain/*.py",
    ),
}

# MLflow runs this file to get the model; unlike a pickle it does not depend on the Python release.
_LOADER_FILE = "image_model.py"
_LOADER = '''"""Run by MLflow when it loads this model."""

from mlflow.models import set_model

from serving.model import ImageModel

set_model(ImageModel())
'''


def write_model(
    directory: Path,
    spec: Spec,
    network: nn.Module | Mapping[str, Tensor],
    *,
    example: bytes | None = None,
) -> Path:
    """Package a trained network as an MLflow model directory.

    The directory appears at once and whole. It can be moved anywhere and needs neither the training data
    nor this project.

    Args:
        directory: is made; must not exist yet, or be empty.
        spec: of the network, with its scoring defaults.
        network: it, or its state dict, on any device.
        example: an image file's content, kept as the model's input example; None draws a small one.

    Raises:
        RunError: the directory is taken, or cannot be written to.
    """
    directory = directory.absolute()
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RunError(f"{directory}: already exists; a model is only written into a new directory")
        directory.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the renaming stays on one disk.
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            staging = Path(scratch)
            _write_artifacts(staging / "artifacts", spec, network)
            _copy_code(staging / "code")
            (staging / _LOADER_FILE).write_text(_LOADER, encoding="utf-8")
            _save(staging / "model", staging, spec, example or _drawn_example())
            (staging / "model").replace(directory)
    except OSError as error:
        raise RunError(f"{directory}: the model cannot be written: {error}") from error
    return directory


def _write_artifacts(artifacts: Path, spec: Spec, network: nn.Module | Mapping[str, Tensor]) -> None:
    import torch

    state = network.state_dict() if isinstance(network, torch.nn.Module) else network
    # Cloned, since a view would be saved with all of the memory it looks into.
    weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    artifacts.mkdir()
    torch.save(weights, artifacts / WEIGHTS_FILE)
    (artifacts / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")


def _copy_code(target: Path) -> None:
    for package, patterns in _CODE.items():
        # Found without importing `trainer`, whose public names lead to the whole of it.
        found = find_spec(package)
        assert found is not None, "both packages are installed together"
        assert found.origin is not None, "both packages have an __init__.py"
        source = Path(found.origin).parent
        for pattern in patterns:
            for file in sorted(source.glob(pattern)):
                copy = target / package / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def _save(target: Path, staging: Path, spec: Spec, example: bytes) -> None:
    text = base64.b64encode(example).decode("ascii")
    with _quiet_mlflow():
        import mlflow.pyfunc
        from mlflow.models import Model

        model = Model()
        mlflow.pyfunc.save_model(
            path=str(target),
            mlflow_model=model,
            python_model=str(staging / _LOADER_FILE),
            artifacts={
                "spec": (staging / "artifacts" / SPEC_FILE).as_uri(),
                "weights": (staging / "artifacts" / WEIGHTS_FILE).as_uri(),
            },
            code_paths=[str(staging / "code" / package) for package in _CODE],
            signature=signature(spec),
            input_example=pd.DataFrame({COLUMN: [text]}),
            pip_requirements=list(requirements(spec)),
            metadata={"task": spec.task.value, "model": spec.model},
        )
        # MLflow notes where the files came from; those places are gone, and not for others to read.
        flavor = model.flavors["python_function"]
        flavor["model_code_path"] = _LOADER_FILE
        for artifact in flavor["artifacts"].values():
            artifact["uri"] = artifact["path"]
        model.save(str(target / "MLmodel"))


def requirements(spec: Spec) -> tuple[str, ...]:
    """What the packaged model needs, pinned to what is installed here, by name.

    Local version tags (`+cu132`) are left out: the package index does not have them.
    """
    names = {*_REQUIREMENTS, *create(spec).requirements}
    if spec.task is Task.SEGMENTATION:
        names.add("opencv-python")
    if spec.task.is_classification:
        names |= {"scikit-image", "scipy"}  # of explanations
    return tuple(f"{name}=={version(name).partition('+')[0]}" for name in sorted(names))


def signature(spec: Spec) -> ModelSignature:
    """Column `image` in, the answer's columns out, the task's scoring parameters with their defaults."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array, Object, Property

    if spec.task.is_classification:
        outputs: list[ColSpec | TensorSpec] = [
            ColSpec(Array(DataType.double), "probs"),
            ColSpec(Array(DataType.string), "labels"),
        ]
    else:
        sides = [Property(side, DataType.double) for side in ("topX", "topY", "bottomX", "bottomY")]
        properties = [
            Property("box", Object(sides)),
            Property("label", DataType.string),
            Property("score", DataType.double),
        ]
        if spec.task is Task.SEGMENTATION:
            properties.append(Property("polygon", Array(Array(DataType.double))))
        outputs = [ColSpec(Array(Object(properties)), "boxes")]
    params = []
    for name in parameters_of(spec.task):
        annotation, default = ScoringParameters.model_fields[name].annotation, getattr(spec.parameters, name)
        if annotation is int or annotation is float:
            kind = DataType.long if annotation is int else DataType.double
            params.append(ParamSpec(name, kind, default))
        else:  # a text; null is no default that every client of MLflow's understands
            params.append(ParamSpec(name, DataType.string, default or "none"))
    inputs = Schema([ColSpec(DataType.string, COLUMN)])
    if not params:
        return ModelSignature(inputs, Schema(outputs))
    return ModelSignature(inputs, Schema(outputs), ParamSchema(params))


def _drawn_example() -> bytes:
    file = io.BytesIO()
    PILImage.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return file.getvalue()


# While saving: no telemetry, no progress bars, no search for a uv project in the working directory.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
}


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Keep MLflow from telling of each step, and from warning of what its own code does.

    It warns of its own type hints as it is imported, and of its own use of pandas as it saves.
    """
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    before = {name: os.environ.get(name) for name in _MLFLOW_SETTINGS}
    logger.setLevel(logging.WARNING)
    os.environ.update(_MLFLOW_SETTINGS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
