"""Hyperparameters: names, ranges and defaults of the reference, and what is said of wrong ones."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainer import settings
from trainer.errors import JobError
from trainer.models import catalog, defaults
from trainer.models.card import ModelEntry
from trainer.models.defaults import resolve
from trainer.settings import AdvancedSettings, Settings, canonical
from trainer.tasks import Task

CLASSIFICATION, MULTILABEL, DETECTION, SEGMENTATION = Task
RESNET, VIT = (CLASSIFICATION, "resnet18"), (CLASSIFICATION, "vitb16r224")
FASTER, MASK = (DETECTION, "fasterrcnn_resnet50_fpn"), (SEGMENTATION, "maskrcnn_resnet50_fpn")
YOLOV5, YOLO11 = (DETECTION, "yolov5"), (DETECTION, "yolo11n")

# Settings that all models of each kind share, as the reference gives them.
GENERAL = {
    "gradient_accumulation_step": 1,
    "early_stopping": True,
    "early_stopping_patience": 5,
    "early_stopping_delay": 5,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "beta1": 0.9,
    "beta2": 0.999,
    "ams_gradient": False,
    "learning_rate_scheduler": "warmup_cosine",
    "step_lr_gamma": 0.5,
    "step_lr_step_size": 5,
    "warmup_cosine_lr_cycles": 0.45,
    "warmup_cosine_lr_warmup_epochs": 2,
    "evaluation_frequency": 1,
    "checkpoint_frequency": None,
    "checkpoint_run_id": None,
    "weighted_loss": 0,
    "distributed": True,
    "random_seed": None,
}
CLASSIFIERS = {
    "validation_resize_size": 256,
    "validation_crop_size": 224,
    "training_crop_size": 224,
    "number_of_workers": 8,
    "number_of_epochs": 15,
    "layers_to_freeze": None,
}
BOXES = {
    "nms_iou_threshold": 0.5,
    "validation_metric_type": "voc",
    "validation_iou_threshold": 0.5,
    "log_validation_loss": "Enable",
}
RCNN = BOXES | {
    "number_of_epochs": 15,
    "training_batch_size": 2,
    "validation_batch_size": 1,
    "learning_rate": 0.005,
    "number_of_workers": 4,
    "min_size": 600,
    "max_size": 1333,
    "box_score_threshold": 0.3,
    "box_detections_per_image": 100,
    "layers_to_freeze": 2,  # conv1 and layer1
    "gradient_clip_value": 5.0,
    "gradient_clip_norm": None,
}
YOLO = BOXES | {
    "number_of_epochs": 30,
    "training_batch_size": 16,
    "validation_batch_size": 16,
    "learning_rate": 0.01,
    "number_of_workers": 8,
    "image_size": 640,
    "model_size": "medium",
    "multi_scale": False,
    "box_score_threshold": 0.1,
    "box_detections_per_image": 300,
    "layers_to_freeze": None,
    "gradient_clip_value": 5.0,
}
MASKS = {"mask_pixel_score_threshold": 0.5, "max_number_of_polygon_points": 100}


def sized(training: int, validation: int, rate: float, *, norm: float | None = None) -> dict[str, Any]:
    return {
        "training_batch_size": training,
        "validation_batch_size": validation,
        "learning_rate": rate,
        "gradient_clip_norm": norm,
        "gradient_clip_value": 5.0 if norm is None else None,
    }


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        *((CLASSIFICATION, m, CLASSIFIERS | sized(78, 78, 0.01)) for m in ("resnet18", "seresnext")),
        *((MULTILABEL, m, CLASSIFIERS | sized(78, 78, 0.035)) for m in ("mobilenetv2", "resnest101")),
        (CLASSIFICATION, "vits16r224", CLASSIFIERS | sized(128, 128, 0.0125, norm=1.0)),
        (CLASSIFICATION, "vitb16r224", CLASSIFIERS | sized(48, 48, 0.0125, norm=1.0)),
        (CLASSIFICATION, "vitl16r224", CLASSIFIERS | sized(10, 10, 0.001, norm=1.0)),
        (MULTILABEL, "vits16r224", CLASSIFIERS | sized(128, 128, 0.025, norm=1.0)),
        (MULTILABEL, "vitb16r224", CLASSIFIERS | sized(48, 48, 0.025, norm=1.0)),
        (MULTILABEL, "vitl16r224", CLASSIFIERS | sized(10, 10, 0.002, norm=1.0)),
        (*FASTER, RCNN),
        (DETECTION, "fasterrcnn_resnet152_fpn", RCNN),
        (*MASK, RCNN | MASKS),
        (*YOLOV5, YOLO),
        (*YOLO11, YOLO),
    ],
)
def test_defaults_are_those_of_the_reference(task: Task, model: str, expected: dict[str, Any]) -> None:
    resolved = resolve(task, model, {}).model_dump()
    wanted = GENERAL | expected
    assert {name: resolved[name] for name in wanted} == wanted
    assert resolved["advanced_settings"] == {
        "stream_image_files": False,
        "apply_automl_train_augmentations": True,
        "apply_mosaic_for_yolo": True,
    }


@pytest.mark.parametrize("entry", catalog.MODELS.values(), ids=lambda entry: entry.name)
def test_every_models_defaults_resolve(entry: ModelEntry) -> None:
    for task in entry.tasks:
        for recipe in ("reference", "modern"):
            resolved = resolve(task, entry.name, {"recipe": recipe})
            expected = Settings(**defaults.default_settings(task, entry.name, recipe))
            assert resolved.model_dump() == expected.model_dump()
            assert resolved.recipe == recipe


@pytest.mark.parametrize(
    ("old", "name", "value", "model"),
    [
        ("grad_accumulation_step", "gradient_accumulation_step", 4, RESNET),
        ("amsgrad", "ams_gradient", True, RESNET),
        ("lr_scheduler", "learning_rate_scheduler", "step", RESNET),
        ("num_workers", "number_of_workers", 0, RESNET),
        ("seed", "random_seed", 7, RESNET),
        ("valid_resize_size", "validation_resize_size", 300, RESNET),
        ("valid_crop_size", "validation_crop_size", 192, RESNET),
        ("train_crop_size", "training_crop_size", 192, RESNET),
        ("box_score_thresh", "box_score_threshold", 0.2, FASTER),
        ("nms_iou_thresh", "nms_iou_threshold", 0.2, YOLOV5),
        ("box_detections_per_img", "box_detections_per_image", 5, MASK),
        ("img_size", "image_size", 320, YOLOV5),
        ("box_iou_thresh", "nms_iou_threshold", 0.75, YOLOV5),
        ("box_nms_thresh", "nms_iou_threshold", 0.75, MASK),
        ("tile_predictions_nms_thresh", "tile_predictions_nms_threshold", 0.3, FASTER),
    ],
)
def test_older_names_set_the_same_setting(old: str, name: str, value: Any, model: tuple[Task, str]) -> None:
    resolved = resolve(*model, {old: value})
    assert getattr(resolved, name) == value
    assert resolved == resolve(*model, {name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", "-Infinity"])
@pytest.mark.parametrize("name", ["learning_rate", "momentum", "gradient_clip_value", "number_of_epochs"])
def test_nan_and_infinity_are_rejected(name: str, value: Any) -> None:
    with pytest.raises(JobError) as caught:
        resolve(*RESNET, {name: value})
    assert caught.value.problems[0].field == name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"learning_rate": "1e-3"}, {"learning_rate": 0.001}),  # YAML 1.1 reads 1e-3 as text
        ({"number_of_epochs": "3"}, {"number_of_epochs": 3}),
        ({"number_of_epochs": 3.0}, {"number_of_epochs": 3}),
        ({"training_batch_size": "16"}, {"training_batch_size": 16}),
        ({"training_batch_size": "Auto"}, {"training_batch_size": "auto"}),
        ({"weighted_loss": "2"}, {"weighted_loss": 2}),
        ({"early_stopping": 0}, {"early_stopping": False}),
        ({"early_stopping": "0"}, {"early_stopping": False}),
        ({"early_stopping": "False"}, {"early_stopping": False}),
        ({"optimizer": "Sgd"}, {"optimizer": "sgd"}),
        ({"optimizer": "AdamW"}, {"optimizer": "adamw"}),
        ({"optimizer": "Adamw"}, {"optimizer": "adamw"}),
        ({"learning_rate_scheduler": "WarmupCosine"}, {"learning_rate_scheduler": "warmup_cosine"}),
        ({"valid_crop_size": "448"}, {"validation_crop_size": 448, "validation_resize_size": 512}),
    ],
)
def test_values_as_rest_yaml_and_flags_write_them(given: dict[str, Any], meant: dict[str, Any]) -> None:
    resolved = resolve(*RESNET, given)
    assert {name: getattr(resolved, name) for name in meant} == meant


@pytest.mark.parametrize(
    "none", ["none", "None", "NONE", "StochasticOptimizer.NONE", "LearningRateScheduler.NONE", None]
)
@pytest.mark.parametrize(
    ("model", "name", "default"),
    [
        (RESNET, "optimizer", "sgd"),
        (RESNET, "learning_rate_scheduler", "warmup_cosine"),
        (RESNET, "lr_scheduler", "warmup_cosine"),
        (FASTER, "validation_metric_type", "voc"),
        (YOLOV5, "model_size", "medium"),
        (FASTER, "model_size", "medium"),  # of another model, but not chosen
    ],
)
def test_none_of_an_enumeration_means_the_default(
    none: Any, model: tuple[Task, str], name: str, default: str
) -> None:
    assert getattr(resolve(*model, {name: none}), canonical(name)) == default


def test_none_leaves_the_recipes_optimizer() -> None:
    assert resolve(*RESNET, {"recipe": "modern", "optimizer": "None"}).optimizer == "adamw"


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        *((value, "Enable") for value in ("LogTrainingMetrics.ENABLE", "ENABLE", "enable", True, "true")),
        *((value, "Disable") for value in ("LogValidationLoss.DISABLE", "DISABLE", "Disable", False)),
    ],
)
def test_switches_of_the_sdk_are_read(value: Any, meant: str) -> None:
    resolved = resolve(*FASTER, {"log_training_metrics": value, "log_validation_loss": value})
    assert (resolved.log_training_metrics, resolved.log_validation_loss) == (meant, meant)


@pytest.mark.parametrize("spelled", ["xlarge", "extra_large", "ExtraLarge", "EXTRA_LARGE"])
def test_the_largest_yolov5_has_several_spellings(spelled: str) -> None:
    assert resolve(*YOLOV5, {"model_size": spelled}).model_size == "extra_large"


def test_the_rest_form_of_metric_types_is_read() -> None:
    assert resolve(*FASTER, {"validation_metric_type": "CocoVoc"}).validation_metric_type == "coco_voc"


@pytest.mark.parametrize("name", ["number_of_epochs", "learning_rate", "weighted_loss", "optimizer", "seed"])
def test_booleans_are_rejected_for_numbers(name: str) -> None:
    with pytest.raises(JobError, match="must not be a boolean, got True"):
        resolve(*RESNET, {name: True})


@pytest.mark.parametrize(
    ("model", "name", "value", "takers"),
    [
        (YOLO11, "mixup_alpha", 0.2, "classifiers"),
        (RESNET, "large_scale_jitter", True, "R-CNNs and mask transformers"),
        (RESNET, "min_size", 600, "R-CNNs"),
        (RESNET, "img_size", 640, "YOLO models, RT-DETRs, DETRs and mask transformers"),
        (RESNET, "box_score_threshold", 0.5, "R-CNNs, YOLO models, RT-DETRs, DETRs and mask transformers"),
        (
            RESNET,
            "validation_metric_type",
            "coco",
            "R-CNNs, YOLO models, RT-DETRs, DETRs and mask transformers",
        ),
        (VIT, "log_validation_loss", "Enable", "R-CNNs, YOLO models, RT-DETRs, DETRs and mask transformers"),
        (FASTER, "focal_gamma", 2, "classifiers"),
        (YOLO11, "test_time_flip", True, "classifiers"),
        (FASTER, "model_size", "small", "yolov5"),
        (
            FASTER,
            "multi_scale",
            True,
            "YOLO models, RT-DETRs, DETRs, mask2former-swin-t and mask2former-swin-s",
        ),
        (FASTER, "mask_pixel_score_threshold", 0.5, "models for instance-segmentation"),
        (YOLO11, "mask_pixel_score_threshold", 0.5, "models for instance-segmentation"),
        (YOLO11, "model_size", "small", "yolov5"),  # its size is part of its name
        (YOLOV5, "max_size", 1000, "R-CNNs"),
        (MASK, "valid_crop_size", 224, "classifiers"),
    ],
)
def test_inapplicable_setting_is_rejected_with_the_models_that_support_it(
    model: tuple[Task, str], name: str, value: Any, takers: str
) -> None:
    with pytest.raises(JobError) as caught:
        resolve(*model, {name: value})
    (problem,) = caught.value.problems
    assert problem.field == name
    assert problem.rule == f"applies only to {takers}, not to {model[1]}"


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("learning_rte", "learning_rate"),
        ("numer_of_epochs", "number_of_epochs"),
        ("batch_size", "training_batch_size"),
        ("learning-rate", "learning_rate"),
        ("Number-Of-Epochs", "number_of_epochs"),
        ("학습률", None),
        (3, None),
    ],
)
def test_unknown_setting_gets_close_names_as_a_hint(typo: Any, meant: str | None) -> None:
    with pytest.raises(JobError) as caught:
        resolve(*RESNET, {typo: 1})
    (problem,) = caught.value.problems
    assert (problem.field, problem.rule) == (str(typo), "is not a setting")
    if meant:
        assert problem.hint.startswith("did you mean ")
        assert meant in problem.hint
    else:
        assert "trainer fit --help-all" in problem.hint


def test_problems_are_reported_at_once_with_their_place() -> None:
    wrong = {
        "learning_rte": 0.1,
        "min_size": 600,
        "number_of_epochs": 0,
        "momentum": "much",
        "advanced_settings": '{"apply_mosaic": false, "stream_image_files": "sometimes"}',
    }
    with pytest.raises(JobError) as caught:
        resolve(*YOLO11, wrong, where="job.yml")
    assert {problem.field for problem in caught.value.problems} == {
        "learning_rte",
        "min_size",
        "number_of_epochs",
        "momentum",
        "advanced_settings.apply_mosaic",
        "advanced_settings.stream_image_files",
    }
    assert all(problem.where == "job.yml" for problem in caught.value.problems)
    assert "apply_mosaic_for_yolo" in str(caught.value)  # the keys that there are


def test_contradicting_names_of_a_setting_are_rejected() -> None:
    with pytest.raises(JobError) as caught:
        resolve(*RESNET, {"lr_scheduler": "step", "learning_rate_scheduler": "warmup_cosine"})
    (problem,) = caught.value.problems
    assert problem.field == "learning_rate_scheduler"
    assert problem.rule == "contradicts lr_scheduler, its other name"
    agreed = resolve(*RESNET, {"lr_scheduler": "step", "learning_rate_scheduler": "step"})
    assert agreed.learning_rate_scheduler == "step"


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        (RESNET, {"valid_resize_size": 200}, r"validation_resize_size \(200\) must be at least"),
        (RESNET, {"valid_crop_size": 256, "valid_resize_size": 224}, r"validation_crop_size \(256\)"),
        (FASTER, {"max_size": 500}, r"max_size \(500\) must be at least min_size \(600\)"),
        (FASTER, {"min_size": 1400}, r"max_size \(1333\) must be at least min_size \(1400\)"),
        (VIT, {"training_crop_size": 256}, "must equal validation_crop_size"),
        (VIT, {"validation_crop_size": 384}, "must equal validation_crop_size"),
        (RESNET, {"gradient_clip_value": 1, "gradient_clip_norm": 1}, "cannot be combined"),
    ],
)
def test_contradictions_are_rejected(model: tuple[Task, str], values: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        resolve(*model, values)


def test_vit_takes_another_crop_if_both_crops_are_equal() -> None:
    resolved = resolve(*VIT, {"training_crop_size": 448, "validation_crop_size": 448})
    assert resolved.validation_resize_size == 512  # keeps the relation to the crop


def test_resnet_takes_different_crops() -> None:
    assert resolve(*RESNET, {"training_crop_size": 192}).validation_crop_size == 224


def test_clipping_one_way_replaces_the_models_own_way() -> None:
    by_value = resolve(*VIT, {"gradient_clip_value": 2})
    assert (by_value.gradient_clip_value, by_value.gradient_clip_norm) == (2, None)
    by_norm = resolve(*RESNET, {"gradient_clip_norm": 2})
    assert (by_norm.gradient_clip_value, by_norm.gradient_clip_norm) == (None, 2)
    off = resolve(*RESNET, {"gradient_clip_value": None})
    assert (off.gradient_clip_value, off.gradient_clip_norm) == (None, None)


def test_advanced_settings_are_a_json_string_or_a_mapping() -> None:
    text = resolve(*YOLOV5, {"advanced_settings": '{"apply_mosaic_for_yolo": false}'})
    assert text == resolve(*YOLOV5, {"advanced_settings": {"apply_mosaic_for_yolo": False}})
    assert text.advanced_settings == AdvancedSettings(apply_mosaic_for_yolo=False)
    for wrong, rule in (("{a: 1}", "must be a JSON object"), ('{"a": 1, "a": 2}', "duplicate key 'a'")):
        with pytest.raises(JobError, match=rule):
            resolve(*YOLOV5, {"advanced_settings": wrong})


def test_unknown_model_or_wrong_task_is_a_job_error() -> None:
    with pytest.raises(JobError, match="did you mean resnet18"):
        resolve(CLASSIFICATION, "resnet-18", {})
    with pytest.raises(JobError, match="not for object-detection"):
        resolve(DETECTION, "resnet18", {})


def test_defaults_in_words_name_the_models_that_differ() -> None:
    assert (
        defaults.default_in_words("number_of_epochs")
        == "15; 30 for YOLO models, RT-DETRs, DETRs and mask transformers"
    )
    assert defaults.default_in_words("layers_to_freeze") == "none; 2 for R-CNNs"
    assert defaults.default_in_words("early_stopping") == "true"
    assert "0.002 for vitl16r224 (multilabel)" in defaults.default_in_words("learning_rate")


def test_every_setting_has_a_heading_and_a_help_text() -> None:
    for name, info in Settings.model_fields.items():
        assert settings.group_of(name)
        assert info.description, name


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve(*RESNET, {}).learning_rate = 0.5
