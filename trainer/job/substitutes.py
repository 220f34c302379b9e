"""Replaces the models of MMDetection in Azure's catalog by the nearest ones of this project.

MMDetection itself is not part of this project.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import JobError, Problem
from trainer.job.sweep import MODEL_NAME

PREFIX = "mmd-3x-"
"""Prefix of MMDetection's names in Azure's catalog."""
_ARCHITECTURES = r"deformable[-_]detr|sparse[-_]rcnn|vfnet|yolof|mask[-_]rcnn_swin|rtmdet|mask2former_swin"
_NAME = re.compile(rf"(?<![\w./-])(?:{PREFIX}[\w.-]+|(?:{_ARCHITECTURES})[\w.-]*_coco)(?![\w./-])")
"""Azure's names; the first versions of its catalog have no prefix."""
_BACKBONE = "backbone"


@dataclass(frozen=True, slots=True)
class Substitute:
    """The model of this project that comes nearest to a model of MMDetection.

    Attributes:
        model: its name in the catalog.
        reason: why it is the nearest, and how it differs. AP is on COCO, as published: box AP unless it says
            mask AP.
        backbone: the setting of this name; "" for the model's own.
        is_same: it is the same network, so no permission is needed.
    """

    model: str
    reason: str
    backbone: str = ""
    is_same: bool = False

    @property
    def words(self) -> str:
        """The model and its backbone as `fit` takes them."""
        return f"{self.model} --backbone {self.backbone}" if self.backbone else self.model


# AP of the originals: the tables next to MMDetection 3's configs. Of ours: torchvision's table of weights,
# RT-DETRv2's README (whose R18 was trained again after the paper), Deformable DETR's README, and RF-DETR's
# page of benchmarks.
_SUBSTITUTES = {
    r"deformable[-_]detr_(refine_twostage|twostage_refine)_r50": Substitute(
        "deformable-detr-two-stage",
        "the same network, which starts from its authors' weights; 46.9 AP instead of 47.0",
        is_same=True,
    ),
    r"sparse[-_]rcnn_r(50|101)": Substitute(
        "fasterrcnn_resnet50_fpn_v2",
        "also two stages on a ResNet with a feature pyramid; 46.7 AP instead of 45.0 (r50) or 46.2 (r101)",
    ),
    r"vfnet_r50": Substitute(
        "rtdetrv2-r18",
        "the nearest in accuracy; 48.1 AP instead of 47.8",
    ),
    r"vfnet_x101": Substitute(
        "rtdetrv2-r34",
        "the nearest in accuracy; 49.9 AP instead of 50.4",
    ),
    r"yolof_r50": Substitute(
        "fcos_resnet50_fpn",
        "also one stage on a ResNet-50, but with a feature pyramid; 39.2 AP instead of 37.5",
    ),
    r"mask[-_]rcnn_swin-t": Substitute(
        "maskrcnn_resnet50_fpn",
        "the same network, but only the backbone's weights can be loaded, which were trained on ImageNet",
        backbone="timm/swin_tiny_patch4_window7_224",
        is_same=True,
    ),
    **{
        rf"mask2former_swin-{size}-(?!.*panoptic)": Substitute(
            f"mask2former-swin-{size}",
            "the same network, with its authors' weights, which exclude commercial use (CC-BY-NC-4.0)",
            is_same=True,
        )
        for size in "ts"
    },
    r"rtmdet-ins_x": Substitute(
        "rfdetr-seg-medium",
        "the nearest in accuracy; 45.3 mask AP instead of 44.6",
    ),
}
"""By a pattern of the start of MMDetection's names."""


def find(name: str) -> Substitute | None:
    """The substitute of a model of MMDetection; None if there is none."""
    own = name.removeprefix(PREFIX)
    return next((each for start, each in _SUBSTITUTES.items() if re.match(start, own)), None)


def notes(replaced: Mapping[str, str]) -> list[str]:
    """Notes on the models that replace models of MMDetection, for the log.

    Args:
        replaced: the `substitutes` of a job.
    """
    found = {name: find(name) for name in replaced}
    return [
        f"{replaced[name]} replaces {name}: {substitute.reason}"
        for name, substitute in found.items()
        if substitute is not None
    ]


def replace_models(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace MMDetection's names among a job's values by models that run here.

    The replacements are added to `substitutes`. Only a different network needs allow_substitute_models.

    Args:
        values: the fields of a Job, with unchecked values.

    Raises:
        JobError: a name has no substitute, or only one that is not allowed.
    """
    changed = dict(values)
    replaced: dict[str, str] = {}
    settings = values.get("settings")
    model = values.get("model")
    if isinstance(model, str) and (name := _only_name(model)):
        substitute = _allowed(name, values)
        changed["model"] = substitute.model
        replaced[name] = substitute.words
        if substitute.backbone:
            given = settings if isinstance(settings, Mapping) else {}
            changed["settings"] = {_BACKBONE: substitute.backbone, **given}
    spaces = values.get("search_space")
    spaces = [spaces] if isinstance(spaces, Mapping) else spaces
    if isinstance(spaces, list | tuple) and all(isinstance(space, Mapping) for space in spaces):
        changed["search_space"] = tuple(_replaced_in(space, values, replaced) for space in spaces)
    if replaced:
        changed["substitutes"] = {**dict(values.get("substitutes") or {}), **replaced}
    return changed


def _only_name(text: str) -> str:
    return text if _NAME.fullmatch(text) else ""


def _replaced_in(space: Mapping[Any, Any], values: Mapping[str, Any], replaced: dict[str, str]) -> Any:
    """A sub-space with the models that run here."""
    expression = space.get(MODEL_NAME)
    names = dict.fromkeys(_names(expression))
    if not names:
        return space
    substitutes = {name: _allowed(name, values) for name in names}
    replaced |= {name: substitute.words for name, substitute in substitutes.items()}
    backbones = {substitute.backbone for substitute in substitutes.values()} - {""}
    changed = {**space, MODEL_NAME: _rewritten(expression, substitutes)}
    if backbones:
        if len(substitutes) > 1 or not _is_alone(expression):
            rule = f"{next(name for name, each in substitutes.items() if each.backbone)} needs a sub-space"
            rule += " of its own: it sets backbone, which the other models of the sub-space do not share"
            raise JobError("the job cannot be run:", [Problem("", f"search_space.{MODEL_NAME}", rule)])
        changed.setdefault(_BACKBONE, backbones.pop())
    return changed


def _names(expression: Any) -> list[str]:
    if isinstance(expression, Mapping):
        return [name for value in expression.values() for name in _names(value)]
    if isinstance(expression, list | tuple):
        return [name for value in expression for name in _names(value)]
    return _NAME.findall(expression) if isinstance(expression, str) else []


def _is_alone(expression: Any) -> bool:
    """Whether an expression has one value."""
    if isinstance(expression, Mapping):
        return _is_alone(expression.get("values"))
    if isinstance(expression, list | tuple):
        return len(expression) == 1
    return isinstance(expression, str) and "," not in expression


def _rewritten(expression: Any, substitutes: Mapping[str, Substitute]) -> Any:
    if isinstance(expression, Mapping):
        return {key: _rewritten(value, substitutes) for key, value in expression.items()}
    models = [substitute.model for substitute in substitutes.values()]
    if isinstance(expression, list | tuple):
        values = [_rewritten(value, substitutes) for value in expression]
        return [
            value for index, value in enumerate(values) if not (value in models and value in values[:index])
        ]
    if isinstance(expression, str):
        return _each_once(models, _NAME.sub(lambda found: substitutes[found[0]].model, expression))
    return expression


def _each_once(models: Sequence[str], expression: str) -> str:
    """An expression such as choice('a', 'b') that names each of these models once.

    Several models of MMDetection may have one substitute.
    """
    seen: set[str] = set()

    def once(found: re.Match[str]) -> str:
        is_repeated = found[2] in seen and found[2] in models
        seen.add(found[2])
        return "" if is_repeated else found[0]

    return re.sub(r"""(?:,\s*)?(['"])([^'"]*)\1""", once, expression)


def _allowed(name: str, values: Mapping[str, Any]) -> Substitute:
    substitute = find(name)
    if substitute is None:
        rule = f"{name} is a model of MMDetection, which is not supported, and has no substitute"
        hint = "`trainer models` lists the models"
    elif substitute.is_same or _is_on(values.get("allow_substitute_models")):
        return substitute
    else:
        rule = (
            f"{name} is a model of MMDetection, which is not supported; the substitute is "
            f"{substitute.words}: {substitute.reason}"
        )
        hint = "--allow-substitute-models trains it (in a job file: local: {allow_substitute_models: true})"
    raise JobError("the job cannot be run:", [Problem("", MODEL_NAME, rule, hint=hint)])


def _is_on(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes", "on")
