"""Writes the MLflow model directory: a plain pyfunc with its weights, its code and its pinned requirements.

MLmodel  conda.yaml  python_env.yaml  requirements.txt  input_example.json
artifacts/spec.json  artifacts/weights.pt      loaded by serving.scorer
artifacts/settings.json                        values that a user may edit (serving.inference_settings)
code/                                          the modules of trainer and serving that score
image_model.py                                 run by MLflow to load the model
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image as PILImage

from serving.carried_code import CarriedCode, follow_imports
from serving.explain import methods
from serving.inference_settings import SETTINGS_FILE, settings_of
from serving.parameters import signature_names
from serving.payload import COLUMN
from serving.scorer import SPEC_FILE, WEIGHTS_FILE
from trainer.errors import RunError
from trainer.fields import snake_case
from trainer.models import Spec
from trainer.models.catalog import CARDS
from trainer.scoring import PRESENT_NAMES, ScoringParameters
from trainer.tasks import Task

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from torch import Tensor, nn

_LOADER_FILE = "image_model.py"
"""Copy of serving/mlflow_loader.py. Unlike a pickle it does not depend on the Python version."""


def write_model(
    directory: Path,
    spec: Spec,
    network: nn.Module | Mapping[str, Tensor],
    *,
    example: bytes | None = None,
) -> Path:
    """Package a trained network as an MLflow model directory.

    The directory appears complete or not at all. It can be moved anywhere and needs neither the training
    data nor an installation of this project.

    Args:
        directory: created; must not exist yet, or be empty.
        spec: the network's spec, with its scoring defaults.
        network: the network or its state dict, on any device.
        example: content of an image file, stored as the model's input example; None draws a small image.

    Raises:
        RunError: the directory exists, or cannot be written to.
    """
    directory = directory.absolute()
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RunError(f"{directory}: already exists; a model is only written into a new directory")
        directory.parent.mkdir(parents=True, exist_ok=True)
        # In the same directory, so that the rename stays on one disk.
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            staging = Path(scratch)
            _write_artifacts(staging / "artifacts", spec, network)
            code = _copy_code(spec, staging / "code")
            shutil.copyfile(Path(__file__).with_name("mlflow_loader.py"), staging / _LOADER_FILE)
            _save(staging / "model", staging, code, spec, example or _drawn_example())
            (staging / "model").replace(directory)
    except OSError as error:
        raise RunError(f"{directory}: the model cannot be written: {error}") from error
    return directory


def replace_model(directory: Path, spec: Spec, network: nn.Module | Mapping[str, Tensor]) -> None:
    """Write a model in place of the one in `directory`, which stays until the new one is complete.

    Raises:
        OSError, RunError: the directory cannot be written to.
    """
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
        written = write_model(Path(scratch) / "new", spec, network)
        directory.rename(Path(scratch) / "old")
        written.rename(directory)


def _write_artifacts(artifacts: Path, spec: Spec, network: nn.Module | Mapping[str, Tensor]) -> None:
    import torch

    state = network.state_dict() if isinstance(network, torch.nn.Module) else network
    # Cloned, because a view would be saved with the whole memory it refers to.
    weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    artifacts.mkdir()
    torch.save(weights, artifacts / WEIGHTS_FILE)
    (artifacts / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    settings = json.dumps(settings_of(spec), indent=2, ensure_ascii=False)
    (artifacts / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")


def carried_code(spec: Spec) -> CarriedCode:
    """The code that scores and explains with a network of this spec."""
    card = CARDS[spec.family]
    roots = ["serving.model", card.module]
    if spec.task.is_classification:
        roots += methods.MODULES.values()
    without = [module for option, module in card.option_modules.items() if option not in spec.options]
    without.append("trainer.models.published")  # a table about every model
    if spec.task is not Task.SEGMENTATION:
        without.append("serving.polygons")
    return follow_imports(roots, without)


def _copy_code(spec: Spec, target: Path) -> list[str]:
    """Copy the carried code; returns the top-level packages and modules."""
    for path, file in carried_code(spec).files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / path)
    return [str(entry) for entry in sorted(target.iterdir())]


def _save(target: Path, staging: Path, code: list[str], spec: Spec, example: bytes) -> None:
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
                Path(name).stem: (staging / "artifacts" / name).as_uri()
                for name in (SPEC_FILE, WEIGHTS_FILE, SETTINGS_FILE)
            },
            code_paths=code,
            signature=signature(spec),
            input_example=pd.DataFrame({COLUMN: [text]}),
            pip_requirements=list(requirements(spec)),
            metadata={"task": spec.task.value, "model": spec.model},
        )
        # MLflow records the files' original paths, which no longer exist and reveal this machine's folders.
        flavor = model.flavors["python_function"]
        flavor["model_code_path"] = _LOADER_FILE
        for artifact in flavor["artifacts"].values():
            artifact["uri"] = artifact["path"]
        model.save(str(target / "MLmodel"))


def requirements(spec: Spec) -> tuple[str, ...]:
    """The distributions that the carried code imports, pinned to the installed versions, sorted by name.

    Local version tags such as `+cu132` are left out: the package index does not have them.
    """
    packages = carried_code(spec).imports - sys.stdlib_module_names | {CARDS[spec.family].library, "torch"}
    names = sorted({_distribution_of(package) for package in packages})
    return tuple(f"{name}=={metadata.version(name).partition('+')[0]}" for name in names)


def _distribution_of(package: str) -> str:
    """The name under which the package index has an installed package.

    Of several distributions that install one package, the shortest name is the usual one, as opencv-python
    next to the opencv-python-headless that Albumentations requires.
    """
    names = _distributions().get(package, [package])
    return package if package in names else min(names, key=len)


_distributions = cache(metadata.packages_distributions)


def signature(spec: Spec) -> ModelSignature:
    """Column `image` in, the answer's columns out, and the scoring parameters with their defaults."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array, Object, Property

    if spec.task.is_classification:
        # Explanations, only for rows that request them: one for the image, or one for each class.
        visualization: DataType | Array = DataType.string
        attribution = Array(Array(Array(DataType.double)))
        if spec.task is Task.MULTILABEL:
            visualization, attribution = Array(visualization), Array(attribution)
        outputs: list[ColSpec | TensorSpec] = [
            ColSpec(Array(DataType.double), "probs"),
            ColSpec(Array(DataType.string), "labels"),
            ColSpec(visualization, "visualizations", required=False),
            ColSpec(attribution, "attributions", required=False),
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
    kinds: dict[Any, DataType] = {int: DataType.long, float: DataType.double}
    params = []
    for name in signature_names(spec.task):
        key = snake_case(name)
        annotation = ScoringParameters.model_fields[PRESENT_NAMES.get(key, key)].annotation
        # The default is null, because MLflow fills it in: the model must know what the request itself sets.
        params.append(ParamSpec(name, kinds.get(annotation, DataType.string), None))
    # MLflow lets bytes pass as strings. With `binary`, its servers would decode every text as base64, but
    # the explainability form is JSON.
    inputs = Schema([ColSpec(DataType.string, COLUMN)])
    if not params:
        return ModelSignature(inputs, Schema(outputs))
    return ModelSignature(inputs, Schema(outputs), ParamSchema(params))


def _drawn_example() -> bytes:
    file = io.BytesIO()
    PILImage.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return file.getvalue()


# Set while saving: no telemetry, no progress bars, no search for a uv project in the working directory.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
}


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Silence MLflow's progress messages and its warnings about its own code.

    It warns about its own type hints on import, and about its own use of pandas when it saves.
    """
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    before = {name: os.environ.get(name) for name in _MLFLOW_SETTINGS}
    logger.setLevel(logging.WARNING)
    os.environ.update(_MLFLOW_SETTINGS)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
