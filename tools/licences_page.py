"""Generates docs/licences.md from the metadata of the installed packages; `make docs` runs it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

_INTRODUCTION = """\
# Licences of the base installation

`pip install .` installs these packages. None of them is under the GPL or the AGPL. `make docs` generates this
page from the packages' metadata, on Linux with PyTorch's CUDA build; `nvidia-` packages are under NVIDIA's
own licence.

Metadata do not cover the libraries bundled in wheels. Wheels of opencv-python contain FFmpeg and Qt, which
are under the LGPL. Those of NumPy, SciPy, scikit-learn and opencv-python contain parts of GCC's runtime,
which are under the GPL with an exception for programs that use them.

Extras add packages under other licences:

- `yolo`: ultralytics, ultralytics-thop and ultralytics-platform are under the AGPL-3.0
  ([what that means](../README.md#licences)).
- `heif`: the wheels of pillow-heif contain x265 under the GPL.
- `postgresql`: psycopg2-binary is under the LGPL.

The other extras that `pip install '.[all]'` installs are under permissive licences: Apache-2.0, MIT or BSD.

Published weights are in no package; `trainer models` and `trainer weights` name their licences. Those of
`deimv2-s` and of timm's models with `dinov3` in their names come from DINOv3, under
[Meta's own licence](https://ai.meta.com/resources/models-and-libraries/dinov3-license/).

| package | licence |
|---|---|
"""

# Words of a licence's text and its name, for packages whose metadata name no licence.
_TEXTS = {
    "Permission is hereby granted, free of charge": "MIT",
    "Apache License": "Apache-2.0",
    "Redistribution and use in source and binary forms": "BSD",
}
_MAX_NAME = 40
"""Characters. A longer field `License` holds the licence's text instead of its name."""


def base_requirements() -> list[str]:
    """The dependencies that pyproject.toml names, without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return list(project["dependencies"])


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The installed distributions of requirements and of all their dependencies, by normalised name, sorted.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    pending = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    distributions: dict[str, Distribution] = {}
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            marker, name = requirement.marker, normalised(requirement.name)
            if (name, extra) in seen or (marker is not None and not marker.evaluate({"extra": ""})):
                continue
            seen.add((name, extra))
            found = distributions[name] = distribution(requirement.name)
            for needed in map(Requirement, found.requires or ()):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    needed.marker = None
                    pending.append(needed)
    return dict(sorted(distributions.items()))


def normalised(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str:
    """A distribution's licence, as its metadata state it or else as its licence file's text shows."""
    fields = package.metadata
    if "License-Expression" in fields:
        return fields["License-Expression"]
    classifiers = [
        name.rpartition(" :: ")[2]
        for name in fields.get_all("Classifier") or ()
        if name.startswith("License ::") and not name.endswith("OSI Approved")
    ]
    field = fields["License"].strip() if "License" in fields else ""
    if len(classifiers) < 2 and field and len(field) <= _MAX_NAME and "\n" not in field:
        return field
    return " or ".join(classifiers) or _by_text(package) or "not stated"


def _by_text(package: Distribution) -> str:
    files = [file for file in package.files or () if re.match(r"(LICEN[CS]E|COPYING)", file.name)]
    paths = [path for file in files if (path := Path(str(package.locate_file(file)))).is_file()]
    texts = [path.read_text("utf-8", errors="replace") for path in paths]
    return next((name for words, name in _TEXTS.items() if any(words in text for text in texts)), "")


def page() -> str:
    """The content of docs/licences.md."""
    rows = (f"| {name} | {licence(package)} |\n" for name, package in closure(base_requirements()).items())
    return _INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
