"""Every hyperparameter: name, older names, range, default, help. Flags, checks and docs derive from here."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from trainer.scoring import ScoringParameters


def _setting(
    default: Any,
    description: str,
    group: str,
    *,
    aliases: tuple[str, ...] = (),
    **bounds: Any,
) -> Any:
    """A field with its heading in the help and its older names.

    To which models a setting applies, the cards in `trainer.models.catalog` say.
    """
    extra: dict[str, Any] = {"group": group, "aliases": list(aliases)}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


class AdvancedSettings(BaseModel):
    """The JSON object in the setting `advanced_settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream_image_files: bool = False
    """Accepted for compatibility: images are always read when they are needed."""
    apply_automl_train_augmentations: bool = True
    apply_mosaic_for_yolo: bool = True


class Settings(ScoringParameters):
    """The hyperparameters of one run, all of them set.

    `trainer.models.defaults.resolve` makes them from a user's values and a model's defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    number_of_epochs: int = _setting(15, "Passes over the training data.", "Schedule", gt=0)
    recipe: Literal["reference", "modern"] = _setting(
        "reference",
        "Which defaults the others start from: those of Azure AutoML for Images, or today's for fine-tuning: "
        "adamw, averaged weights; label smoothing, mixup and RandAugment for classifiers, layer-wise rates "
        "for ViTs, large-scale jitter for R-CNNs. docs/settings.md lists them.",
        "Schedule",
    )
    training_batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = _setting(
        78,
        "Images in a training batch, on each device; auto: the largest power of two that fits the GPU.",
        "Schedule",
    )
    validation_batch_size: int = _setting(
        78, "Images in a validation batch, on each device.", "Schedule", gt=0
    )
    gradient_accumulation_step: int = _setting(
        1,
        "Batches whose gradients are added up before the optimizer steps.",
        "Schedule",
        aliases=("grad_accumulation_step",),
        gt=0,
    )
    evaluation_frequency: int = _setting(1, "Evaluate every so many epochs.", "Schedule", gt=0)
    checkpoint_frequency: int | None = _setting(
        None,
        "Also keep a checkpoint every so many epochs; the best and the last are kept anyway.",
        "Schedule",
        gt=0,
    )
    early_stopping: bool = _setting(True, "Stop when the primary metric no longer rises.", "Schedule")
    early_stopping_patience: int = _setting(
        5, "Stop after so many evaluations without a new best.", "Schedule", gt=0
    )
    early_stopping_delay: int = _setting(
        5, "Count no evaluation for early stopping before this epoch is over.", "Schedule", ge=0
    )

    learning_rate: float = _setting(0.01, "Peak learning rate.", "Optimizer", ge=0, le=1)
    optimizer: Literal["sgd", "adam", "adamw"] = _setting("sgd", "Optimizer.", "Optimizer")
    momentum: float = _setting(0.9, "Momentum of sgd.", "Optimizer", ge=0, le=1)
    nesterov: bool = _setting(True, "Nesterov's momentum, with sgd.", "Optimizer")
    weight_decay: float = _setting(
        1e-4, "Weight decay, not of norm weights and biases.", "Optimizer", ge=0, le=1
    )
    beta1: float = _setting(0.9, "beta1 of adam and adamw.", "Optimizer", ge=0, lt=1)
    beta2: float = _setting(0.999, "beta2 of adam and adamw.", "Optimizer", ge=0, lt=1)
    ams_gradient: bool = _setting(
        False, "The AMSGrad variant of adam and adamw.", "Optimizer", aliases=("amsgrad",)
    )
    gradient_clip_value: float | None = _setting(5.0, "Clip each gradient to ± this.", "Optimizer", gt=0)
    gradient_clip_norm: float | None = _setting(
        None, "Scale gradients down to this total norm.", "Optimizer", gt=0
    )

    learning_rate_scheduler: Literal["warmup_cosine", "step"] = _setting(
        "warmup_cosine", "Course of the learning rate.", "Learning rate", aliases=("lr_scheduler",)
    )
    step_lr_gamma: float = _setting(0.5, "step: factor at each step.", "Learning rate", ge=0, le=1)
    step_lr_step_size: int = _setting(5, "step: epochs between steps.", "Learning rate", gt=0)
    warmup_cosine_lr_cycles: float = _setting(
        0.45, "warmup_cosine: part of a full cosine cycle; .5 ends at 0.", "Learning rate", ge=0, le=1
    )
    warmup_cosine_lr_warmup_epochs: int = _setting(
        2, "warmup_cosine: epochs of linear warm-up.", "Learning rate", ge=0
    )

    model_size: Literal["small", "medium", "large", "extra_large"] = _setting(
        "medium", "Which of yolov5's sizes.", "Model"
    )
    checkpoint_run_id: str | None = _setting(
        None,
        "Go on from the weights of an earlier run of the same model: its directory, or an MLflow run id; "
        "--weights goes before it.",
        "Model",
        min_length=1,
    )
    layers_to_freeze: int | None = _setting(
        None, "Groups of layers, counted from the input, that are not trained.", "Model", gt=0
    )
    layer_decay: float = _setting(
        1.0,
        "Factor of the learning rate from each group of layers, as layers_to_freeze counts them, to the one "
        "before it, so that groups near the input learn more slowly; 1: all alike.",
        "Model",
        gt=0,
        le=1,
    )
    average_weights: bool = _setting(False, "Evaluate and package a moving average of the weights.", "Model")
    weighted_loss: Literal[0, 1, 2] = _setting(
        0,
        "Weigh classes by rarity: 0 off, 1 square root of the weights, 2 the weights; acts when the "
        "most frequent class is over twice as frequent as the rarest.",
        "Model",
    )
    label_smoothing: float = _setting(
        0.0,
        "Part of each target spread evenly over the classes; with several labels, over yes and no.",
        "Model",
        ge=0,
        lt=1,
    )
    balanced_sampling: bool = _setting(
        False, "Draw images of rare classes more often, so that each class is seen equally often.", "Images"
    )

    validation_resize_size: int = _setting(
        256,
        "Short side to which images are resized before the crop.",
        "Images",
        aliases=("valid_resize_size",),
        gt=0,
    )
    validation_crop_size: int = _setting(
        224,
        "Side of the centre crop that the network sees.",
        "Images",
        aliases=("valid_crop_size",),
        gt=0,
    )
    training_crop_size: int = _setting(
        224,
        "Side of the random crop in training.",
        "Images",
        aliases=("train_crop_size",),
        gt=0,
    )
    min_size: int = _setting(
        600,
        "Short side to which images are resized, or less where the long side would exceed max_size.",
        "Images",
        gt=0,
    )
    max_size: int = _setting(
        1333,
        "Limit of the long side; images that min_size would make longer are resized to it instead.",
        "Images",
        gt=0,
    )
    image_size: int = _setting(
        640,
        "Side of the square that images are fitted into.",
        "Images",
        aliases=("img_size",),
        ge=32,
    )
    multi_scale: bool = _setting(False, "Vary the image size by ±50 % from batch to batch.", "Images")
    random_augment: bool = _setting(
        False,
        "RandAugment, two random changes of colour or place, instead of the colour jitter.",
        "Images",
    )
    mixup_alpha: float = _setting(
        0.0,
        "Blend pairs of images, by a share drawn from Beta(alpha, alpha); 0: never.",
        "Images",
        ge=0,
    )
    cutmix_alpha: float = _setting(
        0.0,
        "Paste a part of one image into another, its area drawn from Beta(alpha, alpha); 0: never. With "
        "mixup_alpha, each batch takes one of the two.",
        "Images",
        ge=0,
    )
    large_scale_jitter: bool = _setting(
        False,
        "Scale each image by ×0.1 to ×2, cropped or padded to its size, instead of crop and expansion.",
        "Images",
    )
    advanced_settings: AdvancedSettings = _setting(
        AdvancedSettings(),
        "JSON object with apply_automl_train_augmentations (true), apply_mosaic_for_yolo (true), "
        "stream_image_files (false).",
        "Images",
    )

    validation_metric_type: Literal["none", "coco", "voc", "coco_voc"] = _setting(
        "voc", "Which detection figures each evaluation computes.", "Evaluation"
    )
    validation_iou_threshold: float = _setting(
        0.5,
        "IoU from which a box is found.",
        "Evaluation",
        aliases=("box_iou_thresh",),
        ge=0.1,
        le=1,
    )
    log_validation_loss: Literal["Enable", "Disable"] = _setting(
        "Enable", "Also compute the loss at each evaluation.", "Evaluation"
    )

    log_training_metrics: Literal["Enable", "Disable"] = _setting(
        "Disable",
        "Also compute the figures on the training images at each evaluation.",
        "Evaluation",
    )

    number_of_workers: int = _setting(
        8,
        "Processes that decode and augment, for each device; never more than its share of the cores.",
        "Hardware",
        aliases=("num_workers",),
        ge=0,
    )
    image_cache_megabytes: int = _setting(
        256,
        "Memory in which each of the number_of_workers processes of each device keeps decoded training "
        "images, YOLO's resized; 0 for none.",
        "Hardware",
        ge=0,
    )
    random_seed: int | None = _setting(
        None,
        "Makes split, augmentation and initial weights repeatable; YOLO's mosaics of more than 256 images "
        "where as many workers load them into as large a cache.",
        "Hardware",
        aliases=("seed",),
        ge=0,
        le=2**32 - 1,  # the generators of NumPy take no more
    )
    distributed: bool = _setting(True, "Use every GPU asked for; false: one.", "Hardware")
    sync_batch_norm: bool = _setting(
        False, "Batch norms learn from the batches of all GPUs together, not from their own.", "Hardware"
    )
    enable_onnx_normalization: bool = _setting(
        False,
        "`trainer export`: the ONNX file takes images in [0, 255] and normalises them itself.",
        "Images",
    )
    compile: bool = _setting(False, "Compile the network by torch.compile before it is trained.", "Hardware")

    @field_validator("training_batch_size", mode="wrap")
    @classmethod
    def _count_or_auto(cls, value: Any, validate: Any) -> Any:
        """One error in place of one for each kind of value."""
        try:
            return validate(value.lower() if isinstance(value, str) else value)
        except ValidationError as error:
            raise ValueError("must be a whole number greater than 0, or auto") from error

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML makes `yes` and `on` booleans, which pydantic would take for the number 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be a boolean")
        return value

    @field_validator(
        "optimizer",
        "learning_rate_scheduler",
        "model_size",
        "validation_metric_type",
        "recipe",
        mode="before",
    )
    @classmethod
    def _choice(cls, value: Any) -> Any:
        """The REST form spells choices in camel case: Sgd, WarmupCosine, ExtraLarge."""
        if not isinstance(value, str):
            return value
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", value).lower().replace("adam_w", "adamw")
        return "extra_large" if snake == "xlarge" else snake

    @field_validator("weighted_loss", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        return int(value) if value in ("0", "1", "2") else value

    @field_validator("advanced_settings", mode="before")
    @classmethod
    def _read_json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"must be a JSON object, but {error}") from error

    @model_validator(mode="after")
    def _sizes_fit(self) -> Settings:
        if self.max_size < self.min_size:
            raise ValueError(f"max_size ({self.max_size}) must be at least min_size ({self.min_size})")
        if self.validation_resize_size < self.validation_crop_size:
            raise ValueError(
                f"validation_resize_size ({self.validation_resize_size}) must be at least "
                f"validation_crop_size ({self.validation_crop_size})"
            )
        return self


RUN_ID = "checkpoint_run_id"
"""The setting that names the run whose weights to start from."""

_INHERITED_GROUP = "Scoring"
_SCORING_ALIASES = {
    "box_score_threshold": ("box_score_thresh",),
    "nms_iou_threshold": ("nms_iou_thresh",),
    "box_detections_per_image": ("box_detections_per_img",),
    "tile_predictions_nms_threshold": ("tile_predictions_nms_thresh",),
}


def group_of(name: str) -> str:
    """The heading under which help and docs show a setting."""
    return str(_extra(name).get("group", _INHERITED_GROUP))


def aliases_of(name: str) -> tuple[str, ...]:
    """Older names of a setting."""
    return _SCORING_ALIASES.get(name) or tuple(_extra(name).get("aliases", ()))


def canonical(name: str) -> str:
    """The present name of a setting, given any of its names; other names are returned unchanged."""
    return NAMES.get(name, name)


def shown(value: Any) -> str:
    """A value as job files write it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def _extra(name: str) -> dict[str, Any]:
    info: FieldInfo = Settings.model_fields[name]
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


NAMES = {alias: name for name in Settings.model_fields for alias in (name, *aliases_of(name))}
"""Every name of every setting, older names included → its present name."""
