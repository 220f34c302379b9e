"""Every hyperparameter: name, older names, type, range, default and help text.

Flags, checks and docs/settings.md derive from these definitions. `trainer.models.defaults` knows which models
a setting applies to, and their defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer.errors import ProblemsError
from trainer.fields import details, enum_member, option
from trainer.scoring import OLDER_NAMES, ScoringParameters
from trainer.strict_yaml import load_json

# Each declares a setting under one heading of the help.
_schedule = partial(option, group="Schedule")
_optimizer = partial(option, group="Optimizer")
_learning_rate = partial(option, group="Learning rate")
_model = partial(option, group="Model")
_images = partial(option, group="Images")
_evaluation = partial(option, group="Evaluation")
_hardware = partial(option, group="Hardware")


class AdvancedSettings(BaseModel):
    """The JSON object in the setting `advanced_settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream_image_files: bool = False
    """Has no effect, accepted for compatibility: images are always read when they are needed."""
    apply_automl_train_augmentations: bool = True
    apply_mosaic_for_yolo: bool = True


CHOICES = ("optimizer", "learning_rate_scheduler", "model_size", "validation_metric_type")
"""The settings that Azure's interfaces define as enumerations, each with a member None: not chosen."""


def means_default(name: str, value: Any) -> bool:
    """Whether a value leaves a setting to its default: null where that is no value of its own, or for CHOICES
    none in any spelling."""
    if value is None:
        return name in CHOICES or type(None) not in get_args(Settings.model_fields[name].annotation)
    return name in CHOICES and str(enum_member(value)).lower() == "none"


def chosen_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A user's values, by any of the settings' names, without those that leave a setting to its default."""
    return {
        name: value
        for name, value in values.items()
        if name not in NAMES or not means_default(NAMES[name], value)
    }


class Settings(ScoringParameters):
    """The hyperparameters of one run, all of them set.

    `trainer.models.defaults.resolve` makes them from a user's values and a model's defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    number_of_epochs: int = _schedule(15, ge=0)
    """Number of passes over the training data. 0 packages a classifier's probe (probe_first) as it is."""
    recipe: Literal["reference", "modern"] = _schedule("reference")
    """Origin of the other settings' defaults: Azure AutoML for Images, or current fine-tuning practice. The
    modern recipe uses adamw and averaged weights; label smoothing and weighted losses for classifiers,
    layer-wise learning rates for ViTs, and large-scale jitter for R-CNNs. docs/settings.md lists its
    values."""
    training_batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = _schedule(78)
    """Images per training batch on each device; auto finds the largest power of two that fits the GPU."""
    validation_batch_size: int = _schedule(78, gt=0)
    """Images per validation batch on each device."""
    gradient_accumulation_step: int = _schedule(1, aliases=("grad_accumulation_step",), gt=0)
    """Number of batches whose gradients are accumulated before the optimizer steps."""
    evaluation_frequency: int = _schedule(1, gt=0)
    """Evaluate every N epochs."""
    checkpoint_frequency: int | None = _schedule(None, gt=0)
    """Also keep a checkpoint every N epochs. The best and the last epoch's checkpoints are always kept."""
    early_stopping: bool = _schedule(True)
    """Stop when the primary metric no longer improves."""
    early_stopping_patience: int = _schedule(5, gt=0)
    """Stop after this many evaluations without improvement."""
    early_stopping_delay: int = _schedule(5, ge=0)
    """Epochs to train before early stopping starts to count evaluations."""

    learning_rate: float = _optimizer(0.01, ge=0, le=1)
    """Peak learning rate."""
    optimizer: Literal["sgd", "adam", "adamw"] = _optimizer("sgd")
    """Optimizer."""
    momentum: float = _optimizer(0.9, ge=0, le=1)
    """Momentum of sgd."""
    nesterov: bool = _optimizer(True)
    """Use Nesterov momentum with sgd."""
    weight_decay: float = _optimizer(1e-4, ge=0, le=1)
    """Weight decay. Biases and weights of norm layers have none."""
    beta1: float = _optimizer(0.9, ge=0, lt=1)
    """beta1 of adam and adamw."""
    beta2: float = _optimizer(0.999, ge=0, lt=1)
    """beta2 of adam and adamw."""
    ams_gradient: bool = _optimizer(False, aliases=("amsgrad",))
    """Use the AMSGrad variant of adam and adamw."""
    gradient_clip_value: float | None = _optimizer(5.0, gt=0)
    """Clip each gradient element to [-value, value]."""
    gradient_clip_norm: float | None = _optimizer(None, gt=0)
    """Scale gradients down to this total norm."""

    learning_rate_scheduler: Literal["warmup_cosine", "step"] = _learning_rate(
        "warmup_cosine", aliases=("lr_scheduler",)
    )
    """Learning-rate schedule."""
    step_lr_gamma: float = _learning_rate(0.5, ge=0, le=1)
    """step: factor by which the learning rate is multiplied at each step."""
    step_lr_step_size: int = _learning_rate(5, gt=0)
    """step: number of epochs between steps."""
    warmup_cosine_lr_cycles: float = _learning_rate(0.45, ge=0, le=1)
    """warmup_cosine: fraction of a full cosine cycle; 0.5 ends at 0."""
    warmup_cosine_lr_warmup_epochs: int = _learning_rate(2, ge=0)
    """warmup_cosine: number of epochs of linear warm-up."""

    model_size: Literal["small", "medium", "large", "extra_large"] = _model("medium")
    """Size of yolov5."""
    backbone: str | None = _model(None)
    """Backbone that replaces the ResNet in an R-CNN's name: timm/NAME, any network of timm with feature maps
    of strides 4 to 32, such as timm/convnext_tiny. Published weights then cover the backbone alone."""
    checkpoint_run_id: str | None = _model(None, min_length=1)
    """Start from the weights of an earlier run of the same model: its directory or its MLflow run id.
    --weights overrides it."""
    probe_first: bool = _model(False)
    """Start from a probe: before the first epoch, the head becomes a logistic regression on the features of
    the training images, its strength chosen by cross-validation on them. It is evaluated as epoch 0, and
    packaged if no epoch is better. Needs weights to start from; those of a run with the same task and
    classes keep their head instead, unless number_of_epochs is 0."""
    layers_to_freeze: Annotated[int, Field(gt=0)] | Literal["backbone"] | None = _model(
        None, aliases=("freeze",)
    )
    """Number of layer groups to freeze, counted from the input; 0 freezes none. backbone freezes all of them,
    and in a classifier everything but the head, which is then a probe without epochs unless
    number_of_epochs or probe_first says otherwise."""
    layer_decay: float = _model(1.0, gt=0, le=1)
    """Factor of the learning rate from each layer group to the one before it, so that groups near the input
    learn more slowly. Groups are those of layers_to_freeze; 1, the default from scratch, gives all the same
    rate."""
    freeze_batch_norm: bool = _model(False)
    """Keep the batch-norm statistics of the weights to start from, instead of updating them from batches.
    Scales and shifts are still trained. For few images or small batches."""
    average_weights: bool = _model(False)
    """Evaluate and package a moving average of the weights."""
    weighted_loss: Literal[0, 1, 2] = _model(0)
    """Weight the loss of each class by its rarity: 0 off, 1 by the square root of the weights, 2 by the
    weights. It takes effect if the most frequent class is over twice as frequent as the rarest. For
    detectors, it weights the classification loss of each object, with a mean weight of 1 over the objects."""
    focal_gamma: float = _model(0.0, ge=0)
    """Focal loss: reduce the loss of images that are classified well already, by the factor (1 - p) ** gamma
    for the probability p of the right answer; 2 is common, 0 turns it off."""
    label_smoothing: float = _model(0.0, ge=0, lt=1)
    """Fraction of each target spread evenly over all classes; for multilabel, over present and absent."""
    balanced_sampling: bool = _images(False)
    """Sample images of rare classes more often, so that all classes are seen equally often."""

    validation_resize_size: int = _images(256, aliases=("valid_resize_size",), gt=0)
    """Short side, in pixels, to which images are resized before the centre crop."""
    validation_crop_size: int = _images(224, aliases=("valid_crop_size",), gt=0)
    """Side of the centre crop that the network sees, in pixels."""
    training_crop_size: int = _images(224, aliases=("train_crop_size",), gt=0)
    """Side of the random crop in training, in pixels."""
    interpolation: Literal["bilinear", "bicubic", "published"] = _images("bilinear")
    """Interpolation by which images are resized in training, validation and scoring; published takes the one
    that the published weights were trained with."""
    test_time_flip: bool = _images(False)
    """Average the logits of each image and its mirror image, in validation and scoring, which take twice the
    time."""
    min_size: int = _images(600, gt=0)
    """Short side to which images are resized, in pixels. It is less where the long side would exceed
    max_size."""
    max_size: int = _images(1333, gt=0)
    """Maximum long side in pixels. Images that min_size would make longer are resized to it instead."""
    image_size: int = _images(640, aliases=("img_size",), ge=32)
    """Side of the square that images are fitted into, in pixels."""
    multi_scale: bool = _images(False)
    """Vary the image size by ±50 % from batch to batch."""
    random_augment: bool = _images(False)
    """Use RandAugment, two random changes of colour or geometry, instead of colour jitter."""
    mixup_alpha: float = _images(0.0, ge=0)
    """Blend pairs of images by a fraction drawn from Beta(alpha, alpha); 0 turns it off."""
    cutmix_alpha: float = _images(0.0, ge=0)
    """Paste a part of one image, its area drawn from Beta(alpha, alpha), into another; 0 turns it off. With
    mixup_alpha, each batch uses one of the two."""
    large_scale_jitter: bool = _images(False)
    """Scale each image by ×0.1 to ×2, then crop or pad it to its size, instead of cropping and expanding
    it."""
    advanced_settings: AdvancedSettings = _images(AdvancedSettings())
    """JSON object with apply_automl_train_augmentations (true), apply_mosaic_for_yolo (true) and
    stream_image_files (false)."""

    validation_metric_type: Literal["coco", "voc", "coco_voc"] = _evaluation("voc")
    """Detection metrics to compute at each evaluation."""
    validation_iou_threshold: float = _evaluation(0.5, ge=0.1, le=1)
    """Minimum IoU at which a predicted box matches an object."""
    log_validation_loss: Literal["Enable", "Disable"] = _evaluation("Enable")
    """Also compute the loss at each evaluation."""

    log_training_metrics: Literal["Enable", "Disable"] = _evaluation("Disable")
    """Also compute the metrics of the training images at each evaluation."""

    number_of_workers: int = _hardware(8, aliases=("num_workers",), ge=0)
    """Worker processes per device that decode and augment images, at most its share of the cores."""
    image_cache_megabytes: int = _hardware(256, ge=0)
    """Memory in MB in which each worker process caches decoded training images, for YOLO resized ones; 0
    turns the cache off."""
    random_seed: int | None = _hardware(None, aliases=("seed",), ge=0, le=2**32 - 1)  # NumPy's maximum
    """Seed of the data split, augmentation and initial weights. Without one, it is drawn at random. YOLO's
    mosaics of more than 256 images also depend on number_of_workers and image_cache_megabytes."""
    distributed: bool = _hardware(True)
    """Use all GPUs that were asked for; false uses one."""
    sync_batch_norm: bool = _hardware(False)
    """Compute batch-norm statistics over the batches of all GPUs instead of each GPU's own."""
    enable_onnx_normalization: bool = _images(False)
    """Let the ONNX file of `trainer export` take images in [0, 255] and normalise them itself."""
    compile: bool = _hardware(False)
    """Compile the network with torch.compile before training."""

    @field_validator("training_batch_size", "layers_to_freeze", mode="wrap")
    @classmethod
    def _count_or_word(cls, value: Any, validate: Any, info: ValidationInfo) -> Any:
        """Report one problem instead of one for each kind of value."""
        try:
            return validate(value.lower() if isinstance(value, str) else value)
        except ValidationError as error:
            word = "auto" if info.field_name == "training_batch_size" else "backbone"
            raise ValueError(f"must be a whole number greater than 0, or {word}") from error

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject booleans for numbers: YAML reads `yes` as a boolean, which pydantic would take as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be a boolean")
        return value

    @field_validator("backbone")
    @classmethod
    def _of_timm(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"timm/\S+", value):
            raise ValueError("must be timm/NAME, the name of a network of timm, such as timm/convnext_tiny")
        return value

    @field_validator("layers_to_freeze", mode="before")
    @classmethod
    def _none_frozen(cls, value: Any) -> Any:
        """Azure's example jobs choose between 0 and 2."""
        return None if value in (0, "0") and not isinstance(value, bool) else value

    @field_validator("log_training_metrics", "log_validation_loss", mode="before")
    @classmethod
    def _enable_or_disable(cls, value: Any) -> Any:
        member = str(enum_member(value)).capitalize()
        member = {"True": "Enable", "False": "Disable"}.get(member, member)
        return member if member in ("Enable", "Disable") else value

    @field_validator(*CHOICES, "recipe", "interpolation", mode="before")
    @classmethod
    def _choice(cls, value: Any, info: ValidationInfo) -> Any:
        """Read the REST form's camel case: Sgd, WarmupCosine, ExtraLarge."""
        if means_default(str(info.field_name), value):
            return cls.model_fields[str(info.field_name)].default
        if not isinstance(value, str):
            return value
        value = enum_member(value)
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
            return load_json(value, "")
        except ProblemsError as error:
            reason = error.problems[0].rule.removeprefix("must be JSON: ")
            raise ValueError(f"must be a JSON object, but {reason}") from error

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
ABOUT_WEIGHTS = {
    "freeze_batch_norm": "has no statistics to keep",
    "probe_first": "has no features to probe",
}
"""The settings that have no meaning without weights to start from: what a network from scratch lacks."""

_INHERITED_GROUP = "Scoring"


def group_of(name: str) -> str:
    """The heading under which help and docs show a setting."""
    return str(details(Settings.model_fields[name]).get("group", _INHERITED_GROUP))


def aliases_of(name: str) -> tuple[str, ...]:
    """Older names of a setting."""
    return OLDER_NAMES.get(name) or tuple(details(Settings.model_fields[name]).get("aliases", ()))


def canonical(name: str) -> str:
    """The present name of a setting, given any of its names; other names are returned unchanged."""
    return NAMES.get(name, name)


def shown(value: Any) -> str:
    """A value as job files write it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


NAMES = {alias: name for name in Settings.model_fields for alias in (name, *aliases_of(name))}
"""Every name of every setting, older names included → its present name."""
