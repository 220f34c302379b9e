"""MLflow runs a copy of this file, image_model.py, when it loads a packaged model; nothing imports it.

A model carries the code that it was packaged with, in its directory `code`, which MLflow puts on the import
path. A process has only one `trainer` and one `serving`, so a second model uses the first one's code. It is
loaded if that code is the same, and may add modules, such as another family; otherwise it is rejected.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from mlflow.models import set_model


def share_code(code: Path) -> None:
    """Make the carried code importable in a process that may have loaded another model's code.

    An installation of this project is used as it is: it has every family, and the spec's format number says
    whether it can read the model.

    Raises:
        ImportError: another model's code is loaded and has a file that differs.
    """
    packages = [entry.name for entry in code.iterdir() if entry.is_dir() and entry.name in sys.modules]
    places = (Path(place).parent for name in packages for place in sys.modules[name].__path__)
    loaded = list(dict.fromkeys(places))
    if not all((place.parent / "MLmodel").is_file() for place in loaded):
        return
    files = [file for name in packages for file in sorted((code / name).rglob("*.py"))]
    for place in loaded:
        for file in files:
            other = place / file.relative_to(code)
            if other.is_file() and other.read_bytes() != file.read_bytes():
                raise ImportError(
                    f"{code.parent}: its {file.relative_to(code)} differs from that of {place.parent}, whose "
                    "code this process uses; load the models in separate processes, or package both with the "
                    "same version"
                )
    for file in files:
        if file.name == "__init__.py":
            package = import_module(".".join(file.parent.relative_to(code).parts))
            if str(file.parent) not in package.__path__:
                package.__path__.append(str(file.parent))


if __name__ != "serving.mlflow_loader":  # as MLflow runs it
    share_code(Path(__file__).parent / "code")
    from serving.model import ImageModel

    set_model(ImageModel())
