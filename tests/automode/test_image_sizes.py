"""At which size images are seen, by hand for given images and objects."""

from __future__ import annotations

import pytest

from trainer.automode.data_statistics import DataStatistics
from trainer.automode.image_sizes import ImageSize, choose_size
from trainer.models import catalog
from trainer.sweep.space.distributions import Choice
from trainer.tasks import Task


def seen(
    model: str,
    width: int,
    height: int,
    small: float = 0.0,
    *,
    on_gpu: bool = True,
    **own: object,
) -> ImageSize:
    """How a model sees such images, of whose objects a quarter is smaller than a part of the long side."""
    task = catalog.MODELS[model].tasks[0] if model in catalog.MODELS else Task.CLASSIFICATION
    entry = catalog.find(model, task)
    facts = DataStatistics(100, 3, width, height, small_object_side=small)
    return choose_size(entry, facts, own, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("width", "height", "small", "side"),
    [
        (1920, 1080, 0.2, 640),  # 128 pixels are enough
        (1920, 1080, 0.031, 800),  # 24 / 0.031 = 774
        (1080, 1920, 0.02, 1280),  # 24 / 0.02 = 1200
        (1920, 1080, 0.015, 1280),  # 1600 would be needed
        (800, 600, 0.015, 1280),  # 1.5 · 800 = 1200
        (500, 400, 0.015, 800),  # 1.5 · 500 = 750
        (250, 250, 0.2, 416),  # 1.5 · 250 = 375 for an image that has no more
        (100, 100, 0.2, 320),
    ],
)
def test_small_objects_are_seen_at_24_pixels_or_more(
    width: int, height: int, small: float, side: int
) -> None:
    image_size = seen("yolo11n", width, height, small).settings["image_size"]
    assert (image_size.values[0] if isinstance(image_size, Choice) else image_size) == side


def test_why_it_is_another_size_is_said() -> None:
    assert seen("yolo11n", 1920, 1080, 0.2).reason == ""
    # 0.031 · 640 = 19.8
    expected = "image_size 800: at 640 a quarter of the objects would be smaller than 20 pixels"
    assert seen("yolo11n", 1920, 1080, 0.031).reason == expected


def test_the_next_larger_size_is_tried_too_where_images_have_the_pixels() -> None:
    larger = seen("yolo11n", 1920, 1080, 0.2)
    assert larger.settings["image_size"] == Choice((640, 800))
    assert seen("yolo11n", 500, 400, 0.2).settings["image_size"] == 640
    assert seen("yolo11n", 1920, 1080, 0.02).settings["image_size"] == 1280


def test_objects_too_small_for_the_largest_size_are_tiled() -> None:
    # 0.006 · 1280 = 7.7 pixels: 24 of them take 3.1, so 4 columns; 4 · 2 / 3 = 2.7, so 3 rows
    tiled = seen("yolo11n", 6000, 4000, 0.006)
    assert tiled.settings["tile_grid_size"] == Choice(("4x3", None))
    assert "8 pixels" in tiled.reason
    assert seen("yolo11n", 4000, 6000, 0.006).settings["tile_grid_size"] == Choice(("3x4", None))
    # 0.012 · 1280 = 15.4: 2 columns, 2 · 9 / 16 = 1.1 rows
    assert seen("yolo11n", 3200, 1800, 0.012).settings["tile_grid_size"] == Choice(("2x1", None))
    # An image that is not larger than what the network sees of it has nothing more to show.
    assert "tile_grid_size" not in seen("yolo11n", 1800, 1200, 0.006).settings
    # At 0.013 · 1280 = 17 pixels objects are small, but seen.
    assert "tile_grid_size" not in seen("yolo11n", 6000, 4000, 0.013).settings


def test_r_cnns_are_given_the_short_side() -> None:
    assert seen("maskrcnn_resnet50_fpn_v2", 1600, 1200, 0.2).settings == {"min_size": 600, "max_size": 1333}
    # The long side is 4/3 of the short one: 24 / 0.024 / (4/3) = 750
    small = seen("fasterrcnn_resnet50_fpn_v2", 1600, 1200, 0.024)
    assert small.settings == {"min_size": 800, "max_size": 1333}
    # 0.024 · 600 · 4/3 = 19
    assert small.reason == "min_size 800: at 600 a quarter of the objects would be smaller than 19 pixels"
    largest = seen("fasterrcnn_resnet50_fpn_v2", 1600, 1200, 0.01)
    assert largest.settings == {"min_size": 1000, "max_size": 1667}


def test_the_cpu_sees_less() -> None:
    assert seen("yolo11n", 1920, 1080, 0.2, on_gpu=False).settings == {"image_size": 320}
    assert seen("yolo11n", 1920, 1080, 0.05, on_gpu=False).settings == {"image_size": 512}
    assert seen("yolo11n", 6000, 4000, 0.006, on_gpu=False).settings == {"image_size": 640}
    r_cnn = seen("fasterrcnn_resnet18_fpn", 1920, 1080, 0.2, on_gpu=False)
    assert r_cnn.settings == {"min_size": 320, "max_size": 533}
    assert seen("resnet18", 500, 400, on_gpu=False).settings["training_crop_size"] == 160


def test_crops() -> None:
    assert seen("seresnext", 250, 250).settings == {"training_crop_size": 224, "validation_crop_size": 224}
    # Larger crops show more where images are large enough.
    assert seen("seresnext", 500, 400).settings["validation_crop_size"] == Choice((224, 288))
    small = seen("seresnext", 100, 100)
    assert small.settings == {"training_crop_size": 128, "validation_crop_size": 128}
    assert "small" in small.reason
    for model in ("vits16r224", "timm/convnext_tiny.in12k_ft_in1k"):
        for on_gpu in (True, False):
            crops = seen(model, 100, 100, on_gpu=on_gpu).settings
            assert crops == {"training_crop_size": 224, "validation_crop_size": 224}


@pytest.mark.parametrize(
    "model", ["hf/google/vit-base-patch16-384", "microsoft/swinv2-base-patch4-window12-192-22k"]
)
def test_classifiers_of_the_hub_keep_their_own_size(model: str) -> None:
    assert seen(model, 100, 100) == seen(model, 500, 400, on_gpu=False) == ImageSize()


def test_what_the_job_says_stays() -> None:
    own = seen("yolo11n", 6000, 4000, 0.006, image_size=352, tile_grid_size="3x2")
    assert own.settings == {}
    tiles = seen("yolo11n", 6000, 4000, 0.006, tile_grid_size="3x2")
    assert tiles.settings == {"image_size": 1280}
    assert seen("resnet18", 500, 400, validation_crop_size=96, training_crop_size=64).settings == {}
    assert seen("fasterrcnn_resnet18_fpn", 500, 400, max_size=900).settings == {}
    assert seen("rfdetr-small", 6000, 4000, 0.006).settings == {}
