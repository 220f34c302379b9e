"""The settings of a model: which apply to it, its defaults, and a user's values checked against both."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainer.errors import JobError, Problem, did_you_mean, problem_of
from trainer.models import catalog
from trainer.models.card import ModelEntry
from trainer.scoring import MASK_PARAMETERS
from trainer.settings import ABOUT_WEIGHTS, NAMES, AdvancedSettings, Settings, means_default, shown
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.models.family import Family

BY_IMAGES = ("number_of_epochs", "training_batch_size")
"""The settings whose defaults depend on the number of training images under the modern recipe."""
_LONGEST_LIST = 6
"""Architectures and models that a list names rather than their family."""
_OF_EARLY_STOPPING = {"early_stopping_patience", "early_stopping_delay"}
"""Settings that ask for early stopping."""


def takes(entry: ModelEntry, name: str) -> bool:
    """Whether a setting applies to a model."""
    if name in MASK_PARAMETERS:
        return Task.SEGMENTATION in entry.tasks
    return name in (*entry.card.settings, *entry.settings) or not models_taking(name)


def models_taking(name: str) -> str:
    """The models to which a setting applies, in words; "" if it applies to all."""
    if name in MASK_PARAMETERS:
        return "models for instance-segmentation"
    families = [card.words for card in catalog.CARDS.values() if name in card.settings]
    models = [entry.name for entry in catalog.MODELS.values() if name in entry.settings]
    return _listed(list(dict.fromkeys(families + _by_family(models, at_most=len(models)))))


def default_settings(task: Task, model: str, recipe: str = "reference") -> dict[str, Any]:
    """The defaults of a model for a task.

    Raises:
        JobError: no model has this name, or it cannot be trained for the task.
    """
    entry = catalog.find(model, task)
    general = {name: info.get_default() for name, info in Settings.model_fields.items()}
    defaults = general | entry.defaults_for(task)
    return defaults | {"recipe": recipe} | entry.modern_for(task) if recipe == "modern" else defaults


def without_effect(settings: Settings, family: Family) -> list[str]:
    """Notes on settings of boxes that differ from the model's defaults but have no effect on its network."""
    model = family.spec.model
    defaults = default_settings(family.spec.task, model)
    threshold, most = settings.nms_iou_threshold, settings.box_detections_per_image
    notes: list[str] = []
    if not family.has_nms and threshold != defaults["nms_iou_threshold"]:
        notes.append(f"nms_iou_threshold: {threshold} has no effect: {model} has no NMS")
    # An image in tiles may have more boxes than the network predicts for a tile.
    limit = None if settings.tile_grid_size else family.max_boxes
    if limit is not None and most > limit and most != defaults["box_detections_per_image"]:
        rule = f"acts as {limit}, the number of boxes that {model} predicts for an image"
        notes.append(f"box_detections_per_image: {most} {rule}")
    return notes


def has_recipes(entry: ModelEntry) -> bool:
    """Whether the model's modern recipe differs from the reference recipe."""
    return bool(entry.modern_for(entry.tasks[0]))


def left_to_images(entry: ModelEntry, settings: Settings, chosen: Collection[str]) -> tuple[str, ...]:
    """The settings whose values `values_for_images` chooses, given those that the user has chosen."""
    is_searched = settings.training_batch_size == "auto"
    if entry.card.sizing is None or settings.recipe != "modern" or is_searched:
        return ()
    # The defaults are for epochs of fine-tuning; a head that is a probe alone has none.
    left = BY_IMAGES if settings.number_of_epochs else ()
    return tuple(name for name in left if name not in chosen)


def values_for_images(
    task: Task, model: str, settings: Settings, chosen: Collection[str], images: int
) -> dict[str, Any]:
    """The defaults of the modern recipe that depend on the number of training images.

    Batches of dozens give a hundred images few steps, so the batch comes down with the images. The learning
    rate stays: benchmarks/RESULTS.md has it for batches of 8 and 16.

    Args:
        settings: resolved, with the recipe's values for many images.
        chosen: names of the settings that the user has chosen, which stay.
        images: training images of each device.
    """
    entry = catalog.find(model, task)
    left = left_to_images(entry, settings, chosen)
    sizing = entry.card.sizing
    if not left or sizing is None:
        return {}
    batch = int(settings.training_batch_size)
    usual_batch = default_settings(task, model, settings.recipe)["training_batch_size"]
    accumulated = settings.gradient_accumulation_step
    if "training_batch_size" in left:
        most = images // (sizing.steps_per_epoch * accumulated)
        power = 2 ** max(0, min(most, usual_batch).bit_length() - 1)
        batch = min(usual_batch, max(sizing.min_batch, power))
    steps = max(1, math.ceil(images / (batch * accumulated)))
    epochs = min(sizing.max_epochs, math.ceil(sizing.min_steps / steps))
    values = {
        "training_batch_size": batch,
        "number_of_epochs": max(settings.number_of_epochs, epochs),
    }
    return {name: values[name] for name in left}


def default_in_words(name: str) -> str:
    """A setting's general default, and those of the models that have another: `15; 30 for YOLO models`."""
    general = Settings.model_fields[name].get_default()
    if name == "recipe":
        modern = {card.words: None for card in catalog.CARDS.values() if card.usual_recipe == "modern"}
        return f"{general}; modern for {_listed(list(modern))}, except in job files"
    others: dict[tuple[Any, bool], dict[str, None]] = {}
    for entry in catalog.MODELS.values():
        defaults = {task: entry.defaults_for(task).get(name, general) for task in entry.tasks}
        depends_on_task = len(set(defaults.values())) > 1
        for task, value in defaults.items():
            if value != general:
                multilabel_only = depends_on_task and task is Task.MULTILABEL
                others.setdefault((value, multilabel_only), {})[entry.name] = None
    text = "{}" if isinstance(general, AdvancedSettings) else shown(general)
    for (value, multilabel_only), names in others.items():
        suffix = " (multilabel)" if multilabel_only else ""
        text += f"; {shown(value)} for {models_in_words(list(names))}{suffix}"
    return text


def models_in_words(names: Sequence[str]) -> str:
    """List models in words: `resnet18, resnet34 and YOLO models`.

    More than three models of a family are named by the family or, if they are all of some of its
    architectures, by these: `rfdetr-*`.
    """
    return _listed(_by_family(names))


def _by_family(names: Sequence[str], at_most: int = 3) -> list[str]:
    """The models' names, or those of whole architectures; for more than `at_most` others, their family's."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(catalog.MODELS[name].card.words, []).append(name)
    short: list[str] = []
    for words, members in families.items():
        architectures = _architectures(words, members) if len(members) > 3 else []
        short += architectures or ([words] if len(members) > at_most else members)
    return short


def _architectures(words: str, names: Sequence[str]) -> list[str]:
    """`rfdetr-*`, `lwdetr-*`, `dfine-m`: whole architectures of a family, and what is left of the names.

    Empty if these are all of the family's models, or if that is not much shorter.
    """
    family = [entry.name for entry in catalog.MODELS.values() if entry.card.words == words]
    if len(names) == len(family):
        return []
    short: dict[str, None] = {}
    for name in names:
        start = name.partition("-")[0]
        whole = [other for other in family if other.partition("-")[0] == start]
        short[f"{start}-*" if len(whole) > 1 and set(whole) <= set(names) else name] = None
    return list(short) if len(short) < len(names) and len(short) <= _LONGEST_LIST else []


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


_AUGMENTATION_OFF: dict[str, Any] = {
    "random_augment": False,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "large_scale_jitter": False,
    "advanced_settings": AdvancedSettings(
        apply_automl_train_augmentations=False, apply_mosaic_for_yolo=False
    ),
}
"""The settings of the recipe's augmentation where an augmentation file replaces it."""


def resolve(
    task: Task,
    model: str,
    values: Mapping[str, Any],
    where: str = "",
    *,
    augments_itself: bool = True,
    from_scratch: bool = False,
    published: Mapping[str, Any] | None = None,
) -> Settings:
    """Complete a user's settings with the model's defaults.

    Args:
        values: the user's values alone, under any of the settings' names.
        where: the file that they come from, for error messages.
        augments_itself: whether the recipe's augmentation is used; an augmentation file may replace it.
        from_scratch: there are no weights to start from.
        published: defaults that the model's own files set.

    Raises:
        JobError: unknown names, settings that do not apply to the model, values out of range; all at once.
    """
    entry = catalog.find(model, task)
    problems: list[Problem] = []
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in values.items():
        given = str(key)
        name = NAMES.get(given)
        if name is None:
            hint = did_you_mean(given, NAMES, otherwise="`trainer fit --help-all` lists all")
            problems.append(Problem(where, given, "is not a setting", hint=hint))
        elif means_default(name, value):
            continue
        elif not takes(entry, name):
            rule = f"applies only to {models_taking(name)}, not to {model}"
            problems.append(Problem(where, given, rule, hint="remove it"))
        elif name in chosen and chosen[name] != value:
            problems.append(
                Problem(where, given, f"contradicts {origins[name]}, its other name", repr(value), "keep one")
            )
        else:
            chosen[name], origins[name] = value, given
    is_modern = str(chosen.get("recipe", "")).lower() == "modern"
    merged = default_settings(task, model, "modern" if is_modern else "reference")
    merged |= published or {}
    resize_per_crop = merged["validation_resize_size"] / merged["validation_crop_size"]
    merged |= _defaults_of_the_start(entry, chosen, from_scratch=from_scratch)
    merged |= ({} if augments_itself else _AUGMENTATION_OFF) | chosen
    if "early_stopping" not in chosen and chosen.keys() & _OF_EARLY_STOPPING:
        merged["early_stopping"] = True  # which the modern recipe turns off
    crop = str(chosen.get("validation_crop_size", ""))
    if crop.isdecimal() and int(crop) and "validation_resize_size" not in chosen:
        merged["validation_resize_size"] = round(int(crop) * resize_per_crop)
    clips = ("gradient_clip_value", "gradient_clip_norm")
    if all(chosen.get(name) is not None for name in clips):
        problems.append(Problem(where, clips[1], f"cannot be combined with {clips[0]}; give one of them"))
    for name, other in (clips, clips[::-1]):
        if chosen.get(name) is not None:
            merged[other] = chosen.get(other)  # the user's way of clipping replaces the model's
    if _is_zero(merged["number_of_epochs"]) and not _is_on(merged["probe_first"]):
        may_probe = takes(entry, "probe_first")
        hint = "0 is a probe alone, which needs weights and probe_first" if may_probe else ""
        epochs = repr(merged["number_of_epochs"])
        problems.append(Problem(where, "number_of_epochs", "input should be greater than 0", epochs, hint))
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        problems += [_problem(item, where) for item in error.errors()]
    else:
        for name, lack in ABOUT_WEIGHTS.items() if from_scratch else ():
            if getattr(settings, name):
                rule = f"needs weights to start from: a network from scratch {lack}"
                hint = "remove it, or start from weights (--weights)"
                problems.append(Problem(where, name, rule, "true", hint))
        if entry.equal_crops and settings.training_crop_size != settings.validation_crop_size:
            rule = f"must equal validation_crop_size ({settings.validation_crop_size}) for {model}"
            problems.append(Problem(where, "training_crop_size", rule, str(settings.training_crop_size)))
        if not augments_itself:
            settings, still_on = _replaced(settings, where)
            problems += still_on
    if problems:
        raise JobError("the settings cannot be used:", problems)
    return settings


def _defaults_of_the_start(
    entry: ModelEntry, chosen: Mapping[str, Any], *, from_scratch: bool
) -> dict[str, Any]:
    """Defaults that depend on whether there are weights to start from, or whether only the head learns."""
    if from_scratch:
        # Do not freeze or slow down layers that start from random values, unless the user asks for it.
        return {"layers_to_freeze": None, "layer_decay": 1.0, **dict.fromkeys(ABOUT_WEIGHTS, False)}
    freezes = str(chosen.get("layers_to_freeze", "")).lower() == "backbone"
    if not (freezes or _is_zero(chosen.get("number_of_epochs"))) or not can_probe(entry, chosen):
        return {}
    # Without augmentation, no step from the probe could lower the loss that it minimises.
    return {"probe_first": True, "number_of_epochs": 0}


def can_probe(entry: ModelEntry, chosen: Mapping[str, Any]) -> bool:
    """Whether a model that starts from weights can be a probe: the user has not turned it off.

    Args:
        chosen: the user's settings, not validated yet.
    """
    return takes(entry, "probe_first") and _is_on(chosen.get("probe_first", True))


def _is_zero(value: Any) -> bool:
    """Whether a number, not validated yet, is 0."""
    return str(value) in ("0", "0.0")


def _is_on(value: Any) -> bool:
    """Whether a switch, not validated yet, is on."""
    return str(value).lower() not in ("false", "0", "no", "off")


def _replaced(settings: Settings, where: str) -> tuple[Settings, list[Problem]]:
    """The settings without the recipe's augmentation, and what a user has turned on of it."""
    advanced = settings.advanced_settings
    own = {name: getattr(settings, name) for name in _AUGMENTATION_OFF if name != "advanced_settings"}
    on = [name for name, value in own.items() if value]
    switches = ("apply_automl_train_augmentations", "apply_mosaic_for_yolo")
    on += [
        f"advanced_settings.{n}" for n in switches if n in advanced.model_fields_set and getattr(advanced, n)
    ]
    rule = "must be off, since the augmentation file replaces the recipe's augmentation"
    hint = "turn it off, or write `extends: recipe` in the file"
    off = advanced.model_copy(update=dict.fromkeys(switches, False))
    problems = [Problem(where, name, rule, hint=hint) for name in on]
    return settings.model_copy(update={"advanced_settings": off}), problems


def _problem(item: Any, where: str) -> Problem:
    if item["type"] == "extra_forbidden":
        field = ".".join(map(str, item["loc"]))
        rule = f"is not a key of advanced_settings; there are {', '.join(AdvancedSettings.model_fields)}"
        return Problem(where, field, rule, repr(item["input"]))
    problem = problem_of(item, where)
    return replace(problem, got=repr(item["input"])) if item["loc"] else problem
