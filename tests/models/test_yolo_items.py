"""What ultralytics' augmentation makes of our examples, and what of it is kept."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import needs_library
from tests.models.yolo_scenes import PLAIN, Scenes, build, family_of, noise, objects, rectangle
from trainer.annotations import Example
from trainer.models.tensors import stacked
from trainer.models.training_items import Draw, Progress

needs_library("ultralytics")
from ultralytics.data.augment import Albumentations, RandomPerspective  # noqa: E402

from trainer.models.ultralytics_data import _each, _Placing  # noqa: E402


def test_what_ultralytics_replaces_for_the_whole_process_is_put_back() -> None:
    """Its `PIL.Image.open` would install packages for a file that is no image."""
    code = """
import PIL.Image, torch
before = PIL.Image.open, torch.save
import ultralytics.utils
assert PIL.Image.open is not before[0] and torch.save is not before[1]
import trainer.models.ultralytics_data
assert (PIL.Image.open, torch.save) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model", ["yolo11n", "yolo11n-seg"])
def test_augmentation_does_not_depend_on_whether_albumentations_is_installed(model: str) -> None:
    family, settings, _ = family_of(model, advanced_settings={"apply_automl_train_augmentations": True})
    items: Any = family.training_dataset(Scenes(Example(noise(128, 128), objects())), settings, 0)
    for epoch in (0, settings.number_of_epochs):  # with mosaic, and after it is closed
        items.item(Draw(epoch, 0))
        assert not any(isinstance(each, Albumentations) for each in _each(items.transforms))


def test_an_objects_parts_reach_the_loss_as_one_mask() -> None:
    family, settings, _ = family_of("yolo11n-seg", **PLAIN)
    left, right = rectangle(0.1, 0.1, 0.3, 0.5), rectangle(0.6, 0.3, 0.9, 0.9)
    other = rectangle(0.4, 0.05, 0.55, 0.2)
    truth = objects((left, right), (other,))
    image = noise(128, 128)
    trained = family.training_dataset(Scenes(Example(image, truth)), settings, 0).item(Draw(0, 0))
    tensor, geometry = family.preprocess(image)
    for item in (trained, family.validation_item(tensor, truth, geometry)):
        assert item["cls"].tolist() == [[0], [1]]  # by falling area
        mask = item["masks"][0].numpy()
        assert mask.shape == (32, 32)
        for segment in (left, right):
            x1, y1, x2, y2 = (int(v) for v in np.rint([*(segment[0] * 32), *(segment[2] * 32)]))
            assert (mask[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] == 1).all()
        assert (mask[2:6, 14:17] == 2).all()
        # Between the parts nothing but the line that joins them.
        assert (mask[:, 11:18] == 1).sum() <= 2 * 7
        assert mask[24:, :18].sum() == 0


def test_holes_reach_the_loss_and_segments_across_each_other_are_united() -> None:
    family, settings, _ = family_of("yolo11n-seg", **PLAIN)
    ring = (rectangle(0.05, 0.05, 0.5, 0.5), rectangle(0.15, 0.15, 0.4, 0.4)[::-1])
    cross = (rectangle(0.55, 0.7, 0.95, 0.8), rectangle(0.7, 0.55, 0.8, 0.95))
    truth = objects(ring, cross)
    image = noise(128, 128)
    trained = family.training_dataset(Scenes(Example(image, truth)), settings, 0).item(Draw(0, 0))
    tensor, geometry = family.preprocess(image)
    for item in (trained, family.validation_item(tensor, truth, geometry)):
        mask = item["masks"][0].numpy()
        place = item["cls"][:, 0].tolist()
        assert (mask == place.index(1) + 1)[23:25, 19:29].all(), "one bar"
        assert (mask == place.index(1) + 1)[19:29, 23:25].all(), "the other one, and where they cross"
        assert (mask == place.index(0) + 1)[3:14, 3].all()
        assert (mask[7:11, 7:11] == 0).all()
        np.testing.assert_allclose(item["bboxes"][place.index(0)], [0.275, 0.275, 0.45, 0.45], atol=2e-3)


def test_training_and_validation_items_agree_without_augmentation() -> None:
    for model in ("yolo26n-seg", "yolo11n", "rtdetr-l"):
        family, settings, _ = family_of(model, **PLAIN)
        triangle = np.array([[0.2, 0.2], [0.8, 0.3], [0.4, 0.9]], dtype=np.float32)
        truth = objects((triangle,), (rectangle(0.05, 0.05, 0.2, 0.3),))
        image = noise(96, 128)
        trained = family.training_dataset(Scenes(Example(image, truth)), settings, 0).item(Draw(0, 0))
        tensor, geometry = family.preprocess(image)
        validated = family.validation_item(tensor, truth, geometry)
        order = [trained["cls"][:, 0].argsort(), validated["cls"][:, 0].argsort()]
        np.testing.assert_allclose(trained["bboxes"][order[0]], validated["bboxes"][order[1]], atol=1e-3)
        np.testing.assert_allclose(trained["img"] / 255, validated["img"], atol=2 / 255)
        if "masks" in validated:
            assert (trained["masks"] != validated["masks"]).float().mean() < 0.01
            covered = validated["masks"][0] > 0
            same = trained["sem_masks"][covered] == validated["sem_masks"][covered]
            assert same.float().mean() > 0.95


@pytest.mark.parametrize("model", ["yolo11n", "yolo26n-seg", "rtdetr-l"])
def test_crowds_are_not_trained_on(model: str) -> None:
    family, settings, _ = family_of(model)
    crowd, single = rectangle(0.05, 0.05, 0.95, 0.95), rectangle(0.3, 0.3, 0.6, 0.6)
    truth = objects((crowd,), (single,), crowd=[True, False])
    image = noise()
    dataset = family.training_dataset(Scenes(*[Example(image, truth)] * 4), settings, 0)
    seen = torch.cat([dataset.item(Draw(0, index))["cls"] for index in range(4)])
    assert len(seen)
    assert set(seen.flatten().tolist()) == {1.0}
    tensor, geometry = family.preprocess(image)
    item = family.validation_item(tensor, truth, geometry)
    assert item["cls"].tolist() == [[1.0]]
    if "masks" in item:
        assert item["masks"].max() == 1


@pytest.mark.parametrize(("epochs", "closes"), [(30, 20), (12, 6), (1, 0)])
def test_the_mosaic_is_closed_for_the_last_epochs(epochs: int, closes: int) -> None:
    family, settings, _ = family_of("yolo11n", number_of_epochs=epochs)
    white, black = (np.full((128, 128, 3), value, dtype=np.uint8) for value in (255, 0))
    empty = objects()
    examples = Scenes(Example(white, empty), *[Example(black, empty)] * 7)

    def mixed(epoch: int) -> bool:
        """Whether other images show in the white one's item: its padding is grey, never black."""
        dataset = family.training_dataset(examples, settings, 0)
        return any(bool((dataset.item(Draw(epoch, 0))["img"].amax(dim=0) < 40).any()) for _ in range(8))

    if closes:
        assert mixed(0)
        assert mixed(closes - 1)
    assert not mixed(closes)
    assert not mixed(epochs - 1)


def test_the_mosaic_closes_for_the_last_epochs_of_a_run_that_a_time_limit_shortens() -> None:
    family, settings, _ = family_of("yolo11n", number_of_epochs=100)
    white, black = (np.full((128, 128, 3), value, dtype=np.uint8) for value in (255, 0))
    dataset = family.training_dataset(
        Scenes(Example(white, objects()), *[Example(black, objects())] * 7), settings, 0
    )

    def mixed(epochs: int) -> bool:
        items = [dataset.item(Draw(20, 0, epochs=epochs)) for _ in range(8)]
        return any(bool((item["img"].amax(dim=0) < 40).any()) for item in items)

    assert [mixed(epochs) for epochs in (100, 30, 31)] == [True, False, True]


def colours(item: dict[str, Any]) -> set[int]:
    """The brightnesses of evenly bright images, multiples of 20, that an item is made of."""
    values, counts = np.unique(item["img"].numpy().max(axis=0), return_counts=True)
    return {
        int(value) for value, count in zip(values, counts, strict=True) if count > 400 and value % 20 == 0
    }


def test_a_mosaic_takes_its_other_images_from_the_pool() -> None:
    still = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
    family, settings, _ = family_of("yolo11n", number_of_epochs=30)
    shades = [np.full((128, 128, 3), 20 * index, dtype=np.uint8) for index in range(10)]
    dataset: Any = family.training_dataset(
        Scenes(*[Example(shade, objects()) for shade in shades]), settings, 0
    )
    vars(dataset.hyperparameters).update(still)
    dataset.transforms = dataset.build_transforms(dataset.hyperparameters)
    seen: dict[str, set[int]] = {"pool": set(), "all": set()}
    for _ in range(30):
        seen["pool"] |= colours(dataset.item(Draw(0, 1, (2, 3))))
        seen["all"] |= colours(dataset.item(Draw(0, 1)))
    assert seen["pool"] == {20, 40, 60}
    assert len(seen["all"]) >= 9


def test_a_flip_mirrors_image_and_boxes_and_leaves_the_kept_image_alone() -> None:
    family, settings, _ = family_of("yolo11n", **PLAIN)
    image, truth = noise(128, 128), objects((rectangle(0.1, 0.2, 0.4, 0.5),))
    dataset: Any = family.training_dataset(Scenes(Example(image, truth)), settings, 0)
    dataset.item(Draw(0, 0))["img"].zero_()
    plain = dataset.item(Draw(0, 0))
    np.testing.assert_array_equal(plain["img"].permute(1, 2, 0), image)
    dataset.hyperparameters.fliplr = 1.0
    dataset.transforms = dataset.build_transforms(dataset.hyperparameters)
    flipped = dataset.item(Draw(0, 0))
    np.testing.assert_array_equal(flipped["img"], plain["img"].flip(-1))
    np.testing.assert_allclose(plain["bboxes"], [[0.25, 0.35, 0.3, 0.3]], atol=1e-6)
    np.testing.assert_allclose(flipped["bboxes"], [[0.75, 0.35, 0.3, 0.3]], atol=1e-6)


@pytest.mark.parametrize("size", [(95, 128), (128, 41), (256, 256)])  # an image, and a mosaic
def test_images_are_scaled_and_moved_as_ultralytics_would(size: tuple[int, int]) -> None:
    """The matrix within a pixel of the one that it draws, the image what that matrix says."""
    image = np.asarray(cv2.GaussianBlur(noise(*size), (0, 0), 3))
    arguments: dict[str, Any] = {"translate": 0.1, "scale": 0.5, "size": (128, 128)}
    theirs, ours = RandomPerspective(**arguments), _Placing(**arguments)
    for seed in range(50):
        random.seed(seed)
        asked = theirs.get_params({"img": image})["M"]
        random.seed(seed)
        params = ours.get_params({"img": image})
        (x1, x2, left, right), (y1, y2, top, bottom) = params["spans"]
        for corner in ((x1, y1, 1), (x2, y2, 1)):
            assert np.abs((asked - params["M"]) @ corner).max() < 1
        np.testing.assert_allclose(params["M"] @ (x1, y1, 1), (left, top, 1), atol=1e-3)
        np.testing.assert_allclose(params["M"] @ (x2, y2, 1), (right, bottom, 1), atol=1e-3)
        # Where the image goes beyond the target's border, no grey line is left there.
        start, end = asked @ (0, 0, 1), asked @ (size[1], size[0], 1)
        for axis, (first, last) in enumerate(((left, right), (top, bottom))):
            assert first == 0 or start[axis] > 0
            assert last == 128 or end[axis] < 128
        placed = ours.apply_image({"img": image}, params)["img"]
        # A warp takes pixels' corners for their middles.
        moved = np.float64([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]]) @ params["M"]
        moved = moved @ np.float64([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        warped = theirs.apply_image({"img": image}, {**params, "M": moved})["img"]
        inner = (slice(top + 2, bottom - 2), slice(left + 2, right - 2))  # a warp mixes edges with the grey
        difference = np.abs(placed[inner].astype(int) - warped[inner])
        assert difference.mean() < 1, "of 255"
        outside = np.ones((128, 128), dtype=bool)
        outside[top:bottom, left:right] = False
        assert (placed[outside] == 114).all()


@pytest.mark.parametrize("size", [(95, 128), (128, 1), (127, 128)])
def test_an_image_that_is_only_placed_keeps_its_pixels(size: tuple[int, int]) -> None:
    image = noise(*size)
    transform = _Placing(translate=0.0, scale=0.0, size=(128, 128))
    params = transform.get_params({"img": image})
    (x1, x2, left, right), (y1, y2, top, bottom) = params["spans"]
    assert (x1, y1, x2, y2) == (0, 0, size[1], size[0])
    placed = transform.apply_image({"img": image}, params)["img"]
    np.testing.assert_array_equal(placed[top:bottom, left:right], image)


def test_what_lies_outside_leaves_grey() -> None:
    image = noise(64, 64)
    transform = _Placing(translate=0.0, scale=0.0, size=(128, 128))
    params = transform.get_params({"img": image})
    params["M"][0, 2] = -64.0
    with pytest.MonkeyPatch.context() as patch:
        drawn = {name: params[name] for name in ("M", "scale", "orig_shape", "size")}
        patch.setattr(RandomPerspective, "get_params", lambda *_: drawn)
        params = transform.get_params({"img": image})
    assert "spans" not in params
    assert (transform.apply_image({"img": image}, params)["img"] == 114).all()


def test_segmentation_is_warped_by_ultralytics_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    family, settings, _ = family_of("yolo11n-seg")
    scenes = Scenes(*[Example(noise(), objects((rectangle(0.2, 0.2, 0.8, 0.8),)))] * 4)
    dataset = family.training_dataset(scenes, settings, 0)
    monkeypatch.setattr(cv2, "warpAffine", None)
    with pytest.raises(TypeError, match="NoneType"):
        dataset.item(Draw(0, 0))


def test_what_is_turned_is_warped_by_ultralytics_itself() -> None:
    image = noise(96, 128)
    results = []
    for kind in (RandomPerspective, _Placing):
        random.seed(3)
        transform = kind(degrees=20.0, size=(128, 128))
        results.append(transform.apply_image({"img": image}, transform.get_params({"img": image}))["img"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("model", ["yolo11n", "rtdetr-l"])
def test_trainings_scale_by_a_resize(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, settings, _ = family_of(model)
    scenes = Scenes(*[Example(noise(), objects((rectangle(0.2, 0.2, 0.8, 0.8),)))] * 4)
    dataset = family.training_dataset(scenes, settings, 0)
    monkeypatch.setattr(cv2, "warpAffine", None)
    dataset.item(Draw(0, 0))
    dataset.item(Draw(settings.number_of_epochs - 1, 0))  # the mosaic is closed


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_any_layout_are_stacked_as_the_networks_take_them(workers: int) -> None:
    together = [torch.from_numpy(noise(8, 6, seed=seed)).permute(2, 0, 1) for seed in range(3)]
    images: Any = [together[0].contiguous(), *together[1:]]
    (batch,) = DataLoader(images, 3, num_workers=workers, collate_fn=stacked)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, torch.stack(images))


def test_resized_images_are_kept_within_the_cache() -> None:
    family, settings, _ = family_of("yolo11n", image_cache_megabytes=1)
    asked: list[int] = []

    class Counted(Scenes):
        def __getitem__(self, index: int) -> Example:
            asked.append(index)
            return super().__getitem__(index)

    # 48 KiB each at 128 px: 21 of them in a megabyte
    examples = Counted(*[Example(noise(200, 200, seed=seed), objects()) for seed in range(30)])
    dataset: Any = family.training_dataset(examples, settings, 0)
    assert family.cached_images(settings) == 21
    for index in (*range(30), *range(9, 30)):
        dataset.load_image(index)
    assert asked == list(range(30))
    dataset.load_image(9)
    dataset.load_image(8)
    assert asked[30:] == [8]
    dataset.load_image(9)
    assert asked[31:] == [], "it was asked for later"
    dataset.load_image(10)
    assert asked[31:] == [10], "which made room"


def test_multi_scale_trains_at_many_sizes() -> None:
    for model in ("yolo26n-seg", "rtdetr-l"):
        family, settings, _ = family_of(model, multi_scale=True)
        truth = objects((rectangle(0.2, 0.2, 0.8, 0.8),))
        dataset = family.training_dataset(Scenes(*[Example(noise(), truth)] * 4), settings, 0)
        items = [dataset.item(Draw(0, index % 4)) for index in range(24)]
        sizes = {item["size"] for item in items}
        assert sizes <= {64, 96, 128, 160, 192}
        assert len(sizes) >= 4
        smallest = min(items, key=lambda item: item["size"])
        network = build(family)
        seen: list[Any] = []
        network.model[0].register_forward_pre_hook(lambda _, images, seen=seen: seen.append(images[0].shape))
        losses = family.losses(network, dataset.collate([smallest, items[0]]), Progress(0, 30))
        assert seen[0] == (2, 3, 64, 64)
        assert all(torch.isfinite(loss) for loss in losses.values())


def test_outlines_of_many_points_and_parts_are_taken() -> None:
    family, settings, _ = family_of("yolo11n-seg", **PLAIN)
    angles = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    parts = tuple((circle * 0.1 + centre).astype(np.float32) for centre in (0.2, 0.5, 0.8))
    truth = objects(parts)
    item = family.training_dataset(Scenes(Example(noise(128, 128), truth)), settings, 0).item(Draw(0, 0))
    expected = np.zeros((128, 128), dtype=np.uint8)
    for part in parts:
        cv2.fillPoly(expected, [np.rint(part * 128).astype(np.int32)], (1,))
    mask = item["masks"][0].numpy() > 0
    assert abs(mask.sum() * 16 - expected.sum()) < 0.1 * expected.sum()
