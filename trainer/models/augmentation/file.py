"""Reads augmentation files: torchvision's transforms in YAML, or a pipeline that Albumentations saved.

What can be checked without torch is checked here; `trainer.models.augmentation.pipeline` builds the
transforms, which checks their arguments.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import JobError, Problem, ProblemsError, did_you_mean
from trainer.strict_yaml import Lines, load_json, load_with_lines

SUMMARY = "the augmentation cannot be used:"

TRANSFORMS = (
    *("CenterCrop", "ColorJitter", "Compose", "ElasticTransform", "GaussianBlur", "GaussianNoise"),
    *("Grayscale", "Identity", "JPEG", "Pad", "RGB", "RandomAdjustSharpness", "RandomAffine"),
    *("RandomApply", "RandomAutocontrast", "RandomChannelPermutation", "RandomChoice", "RandomCrop"),
    *("RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert"),
    *("RandomIoUCrop", "RandomOrder", "RandomPerspective", "RandomPhotometricDistort", "RandomPosterize"),
    *("RandomResize", "RandomResizedCrop", "RandomRotation", "RandomShortestSize", "RandomSolarize"),
    *("RandomVerticalFlip", "RandomZoomOut", "Resize", "SanitizeBoundingBoxes", "ScaleJitter"),
    *("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide"),
)
"""torchvision's transforms, by their names in torchvision.transforms.v2, that a file may list."""

_DONE_BY_TRAINER = "the trainer does this itself, after the file's transforms; remove it"
REJECTED = {
    **dict.fromkeys(("MixUp", "CutMix"), "it mixes batches; set mixup_alpha or cutmix_alpha instead"),
    **dict.fromkeys(("FiveCrop", "TenCrop"), "it makes several images of one; use RandomCrop instead"),
    **dict.fromkeys(
        (
            *(
                "Normalize",
                "ToDtype",
                "ConvertImageDtype",
                "ToImage",
                "ToTensor",
                "PILToTensor",
                "ToPILImage",
            ),
            *("ToPureTensor", "ClampBoundingBoxes", "ToTensorV2", "ToFloat", "FromFloat"),
        ),
        _DONE_BY_TRAINER,
    ),
    **dict.fromkeys(("Lambda", "LinearTransformation"), "a file cannot hold functions or tensors"),
}
"""Transforms that are known and not taken, and why."""

_MODES = ("replaces", "extends")
_RECIPE = "recipe"


@dataclass(frozen=True)
class Augmentation:
    """An augmentation file's content.

    Attributes:
        path: the file.
        replaces: whether it replaces the recipe's augmentation, instead of coming before it.
        content: of Albumentations the saved pipeline; of torchvision the list of transforms.
        lines: the lines of the file's values, by the keys and indices that lead to them.
    """

    path: Path
    replaces: bool
    library: Literal["torchvision", "albumentations"]
    content: Any
    lines: Lines = field(default_factory=dict, repr=False)

    def problem(self, path: tuple[str | int, ...], rule: str, got: str = "", hint: str = "") -> Problem:
        """A problem of one of the file's values, with its line.

        Args:
            path: the keys and indices that lead to the value.
        """
        line = next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)
        where = str(self.path) if line is None else f"{self.path}:{line}"
        return Problem(where, _in_words(path), rule, got, hint)

    def in_words(self) -> str:
        """What the file does, for the log."""
        does = "replaces the recipe's augmentation" if self.replaces else "comes before the recipe's own"
        return f"{self.path} ({self.library}) {does}"


def read(path: str | Path) -> Augmentation:
    """Read an augmentation file, YAML or JSON.

    Raises:
        JobError: the file cannot be read, or has another form; each problem names the line.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        rule = f"must be a readable file ({error.strerror})"
        raise JobError(SUMMARY, [Problem("", "augmentation", rule, str(path))]) from error
    lines: Lines = {}
    try:
        if path.suffix.lower() == ".json":
            value = load_json(content, str(path))
            lines = _lines_of_json(content)
        else:
            value, lines = load_with_lines(content, str(path))
    except ProblemsError as error:
        raise JobError(SUMMARY, error.problems) from error
    return _parsed(path, value, lines)


def copy_into(directory: Path, file: Path) -> str:
    """Copy an augmentation file into a run's directory; returns the absolute path of the copy."""
    suffix = ".json" if file.suffix.lower() == ".json" else ".yaml"
    copied = directory.absolute() / f"augmentation{suffix}"
    if file != copied:
        shutil.copyfile(file, copied)
    return str(copied)


def _lines_of_json(content: bytes) -> Lines:
    """The lines of JSON's values, as far as YAML, which allows no tabs, can read it."""
    try:
        return load_with_lines(content, "")[1]
    except ProblemsError:
        return {}


def _parsed(path: Path, value: Any, lines: Lines) -> Augmentation:
    form = "a list of transforms, or a mapping with `transforms`"
    draft = Augmentation(path, True, "torchvision", [], lines)
    if isinstance(value, list):
        value = {"transforms": value}
        draft = Augmentation(path, True, "torchvision", [], {("transforms", *k): n for k, n in lines.items()})
    if not isinstance(value, Mapping):
        raise JobError(SUMMARY, [draft.problem((), f"must be {form}", type(value).__name__)])
    is_saved = "transform" in value or "__class_fullname__" in value
    keys = ("transform", "__version__") if is_saved else ("transforms",)
    known = value if "__class_fullname__" in value else (*keys, *_MODES)
    problems = [
        draft.problem((str(key),), "is not a key of augmentation files", "", _key_hint(str(key), known))
        for key in value
        if key not in known
    ]
    problems += [
        draft.problem((mode,), f"must be {_RECIPE}", repr(value[mode]), f"write `{mode}: {_RECIPE}`")
        for mode in _MODES
        if mode in value and value[mode] != _RECIPE
    ]
    if all(mode in value for mode in _MODES):
        problems.append(draft.problem((_MODES[1],), "contradicts replaces", "", "keep one of them"))
    replaces = "extends" not in value
    if is_saved:
        saved = value.get("transform", {k: v for k, v in value.items() if k not in (*_MODES, "__version__")})
        made = Augmentation(path, replaces, "albumentations", saved, draft.lines)
        if not isinstance(saved, Mapping) or "__class_fullname__" not in saved:
            rule = "must be a pipeline as albumentations.save writes it, with __class_fullname__"
            problems.append(draft.problem(("transform",), rule))
    else:
        made = Augmentation(path, replaces, "torchvision", value.get("transforms"), draft.lines)
        if "transforms" not in value:
            problems.append(draft.problem((), f"must be {form}"))
        else:
            problems += _transform_problems(made, ("transforms",), made.content)
    if problems:
        raise JobError(SUMMARY, problems)
    return made


def _key_hint(key: str, known: Any) -> str:
    if key in TRANSFORMS:
        return "list it under `transforms`"
    return did_you_mean(key, known, otherwise=f"there are {', '.join(known)}")


def _transform_problems(
    augmentation: Augmentation, path: tuple[str | int, ...], entries: Any
) -> list[Problem]:
    """What is wrong with the form and the names of a list of torchvision's transforms."""
    if not isinstance(entries, list):
        rule = "must be a list of transforms such as `- RandomHorizontalFlip: {p: 0.5}`"
        return [augmentation.problem(path, rule, repr(entries))]
    problems = []
    for index, entry in enumerate(entries):
        place = (*path, index)
        named = name_and_arguments(entry)
        if named is None:
            rule = (
                "must be a transform's name, alone or with its arguments: `- RandomHorizontalFlip: {p: 0.5}`"
            )
            hint = (
                "indent the arguments below the name" if isinstance(entry, Mapping) and len(entry) > 1 else ""
            )
            problems.append(augmentation.problem(place, rule, repr(entry), hint))
            continue
        name, arguments = named
        if name not in TRANSFORMS:
            problems.append(unknown(augmentation, place, name, "torchvision.transforms.v2", TRANSFORMS))
        elif "transforms" in arguments:
            problems += _transform_problems(
                augmentation, (*place, name, "transforms"), arguments["transforms"]
            )
    return problems


def unknown(
    augmentation: Augmentation, path: tuple[str | int, ...], name: str, library: str, known: Any
) -> Problem:
    """The problem of a transform that a file may not list."""
    if name in REJECTED:
        return augmentation.problem((*path, name), "cannot be used in a file", "", REJECTED[name])
    # Most names start alike, so compare them whatever their case.
    by_lower = {each.lower(): each for each in known}
    hint = did_you_mean(name, by_lower, otherwise="the README says which there are")
    for lower, each in by_lower.items():
        hint = hint.replace(f" {lower} ", f" {each} ").replace(f" {lower}?", f" {each}?")
    return augmentation.problem(
        (*path, name), f"is not a transform of {library} that can be used here", "", hint
    )


def name_and_arguments(entry: Any) -> tuple[str, Mapping[str, Any]] | None:
    """A transform's name and arguments; None if the entry has another form."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        (name, arguments), *_ = entry.items()
        if isinstance(name, str) and (arguments is None or isinstance(arguments, Mapping)):
            return name, {str(key): value for key, value in (arguments or {}).items()}
    return None


def _in_words(path: tuple[str | int, ...]) -> str:
    """transforms[0].RandomAffine.degrees."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.removeprefix(".")
