"""The range of every hyperparameter: what it accepts and what it rejects."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.errors import JobError
from trainer.models.defaults import resolve
from trainer.settings import Settings
from trainer.tasks import Task

CLASSIFICATION, _, DETECTION, SEGMENTATION = Task
RESNET, VIT = (CLASSIFICATION, "resnet18"), (CLASSIFICATION, "vitb16r224")
FASTER, MASK = (DETECTION, "fasterrcnn_resnet50_fpn"), (SEGMENTATION, "maskrcnn_resnet50_fpn")
YOLOV5, YOLO11 = (DETECTION, "yolov5"), (DETECTION, "yolo11n")

# name: (model, values to accept, values to reject)
RANGES: dict[str, tuple[tuple[Task, str], list[Any], list[Any]]] = {
    "number_of_epochs": (YOLO11, [1, 1000], [0, -1, 1.5]),
    "probe_first": (RESNET, [True, 0], ["last"]),
    "recipe": (RESNET, ["reference", "modern"], ["", "newest", 1]),
    "training_batch_size": (RESNET, [1, "auto"], [0, -4, 1.5, "1.5", "all"]),
    "validation_batch_size": (RESNET, [1], [0]),
    "learning_rate": (RESNET, [0, 1, 1e-5], [-1e-9, 1.01]),
    "gradient_accumulation_step": (RESNET, [1, 64], [0]),
    "early_stopping": (RESNET, [True, False, 0, 1], [2, "maybe"]),
    "early_stopping_patience": (RESNET, [1], [-1, 0.5]),
    "early_stopping_delay": (RESNET, [0, 5], [-1]),
    "optimizer": (RESNET, ["sgd", "adam", "adamw"], ["lion", "", 1]),
    "momentum": (RESNET, [0, 1], [-0.1, 1.1]),
    "nesterov": (RESNET, [True, 0], ["nesterov"]),
    "weight_decay": (RESNET, [0, 1], [-0.1, 1.1]),
    "beta1": (RESNET, [0, 0.99], [-0.1, 1.1]),
    "beta2": (RESNET, [0, 0.9999], [-0.1, 1.1]),
    "ams_gradient": (RESNET, [True, 1], [7]),
    "learning_rate_scheduler": (RESNET, ["warmup_cosine", "step"], ["cosine"]),
    "step_lr_gamma": (RESNET, [0, 1], [-0.1, 1.1]),
    "step_lr_step_size": (RESNET, [1], [0]),
    "warmup_cosine_lr_cycles": (RESNET, [0, 1], [-0.1, 1.1]),
    "warmup_cosine_lr_warmup_epochs": (RESNET, [0, 3], [-1]),
    "evaluation_frequency": (RESNET, [1, 5], [0]),
    "checkpoint_frequency": (RESNET, [1, 5, None], [0]),
    "layers_to_freeze": (RESNET, [0, 1, 5, None, "backbone", "Backbone"], [-1, "head"]),
    "layer_decay": (VIT, [1e-3, 0.75, 1], [0, -0.1, 1.1]),
    "freeze_batch_norm": (RESNET, [True, 0], ["statistics"]),
    "average_weights": (FASTER, [True, 0], ["ema"]),
    "label_smoothing": (RESNET, [0, 0.99], [-0.1, 1]),
    "focal_gamma": (RESNET, [0, 2, 0.5], [-0.1]),
    "balanced_sampling": (MASK, [True, 0], ["classes"]),
    "random_augment": (VIT, [True, 0], ["m9"]),
    "test_time_flip": (VIT, [True, 0], ["mirror"]),
    "mixup_alpha": (RESNET, [0, 0.2, 8], [-0.1]),
    "cutmix_alpha": (RESNET, [0, 1, 8], [-0.1]),
    "large_scale_jitter": (FASTER, [True, 0], [1.5]),
    "log_training_metrics": (MASK, ["Enable", "Disable"], ["on"]),
    "compile": (RESNET, [True, 0], ["eager"]),
    "enable_onnx_normalization": (RESNET, [True, 0], ["imagenet"]),
    "sync_batch_norm": (RESNET, [True, 0], ["all"]),
    "distributed": (RESNET, [True, False], ["all"]),
    "number_of_workers": (RESNET, [0, 64], [-1]),
    "image_cache_megabytes": (RESNET, [0, 4096], [-1]),
    "random_seed": (RESNET, [0, 2**32 - 1, None], [-1, 2**32, 0.5]),
    "weighted_loss": (MASK, [0, 1, 2], [3, -1, 0.5]),
    "validation_resize_size": (RESNET, [224, 512], [0]),
    "validation_crop_size": (RESNET, [1, 256], [0]),
    "training_crop_size": (RESNET, [1, 512], [0]),
    "interpolation": (RESNET, ["bicubic", "Published"], ["nearest", 3]),
    "min_size": (FASTER, [1, 1333], [0]),
    "max_size": (MASK, [600, 4000], [0]),
    "box_score_threshold": (YOLOV5, [0, 1], [-0.1, 1.1]),
    "nms_iou_threshold": (FASTER, [0, 1], [-0.1, 1.1]),
    "box_detections_per_image": (FASTER, [1, 1000], [0]),
    "image_size": (YOLOV5, [32, 1280], [0, 31]),
    "model_size": (YOLOV5, ["small", "medium", "large", "extra_large"], ["tiny", 3]),
    "multi_scale": (YOLOV5, [True, 0], ["both"]),
    "validation_metric_type": (FASTER, ["none", "coco", "voc", "coco_voc"], ["pascal"]),
    "validation_iou_threshold": (MASK, [0.1, 1], [0.09, 1.1]),
    "log_validation_loss": (FASTER, ["Enable", "Disable"], ["on"]),
    "mask_pixel_score_threshold": (MASK, [0, 1], [-0.1, 1.1]),
    "max_number_of_polygon_points": (MASK, [3, 1000], [2]),
    "tile_grid_size": (FASTER, ["3x2", "(3, 2)", [3, 2], None], ["1x1", "3", "x2", 3]),
    "tile_overlap_ratio": (FASTER, [0, 0.99], [-0.1, 1]),
    "tile_predictions_nms_threshold": (YOLOV5, [0, 1], [-0.1, 1.1]),
    "gradient_clip_value": (RESNET, [0.1, None], [0, -1]),
    "gradient_clip_norm": (RESNET, [0.1, None], [0, -1]),
    "backbone": (FASTER, ["timm/convnext_tiny.in12k", None], ["resnet50", "timm/", 3]),
    "checkpoint_run_id": (RESNET, ["runs/실행", "runs:/0123/model", None], ["", 3, True]),
    "advanced_settings": (
        RESNET,
        [{}, "{}", {"stream_image_files": True}],
        ["", "{", "[]", "[" * 100_000, 3],
    ),
}


def test_table_of_ranges_is_complete() -> None:
    assert RANGES.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("name", RANGES)
def test_values_outside_the_range_are_rejected(name: str) -> None:
    model, inside, outside = RANGES[name]
    for value in inside:
        resolve(*model, {name: value})
    for value in outside:
        with pytest.raises(JobError) as caught:
            resolve(*model, {name: value})
        assert [problem.field for problem in caught.value.problems] == [name], value
        if value not in ("", "{", "[]") and len(str(value)) < 100:
            assert caught.value.problems[0].got == repr(value)
