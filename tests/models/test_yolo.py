"""YOLO and RT-DETR beyond the conformance suite: what reaches ultralytics' losses, and what comes out."""

from __future__ import annotations

import tracemalloc
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image as PILImage

from tests.conftest import needs_library
from tests.models.yolo_scenes import (
    CLASSES,
    PLAIN,
    Scenes,
    build,
    family_of,
    noise,
    objects,
    rectangle,
)
from trainer.annotations import Detections, Example
from trainer.errors import JobError
from trainer.models import catalog
from trainer.models.defaults import resolve
from trainer.models.geometry import Geometry
from trainer.models.training_items import Draw, Progress
from trainer.models.weights import loading as weights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

needs_library("ultralytics")

ENTRIES = [entry for entry in catalog.MODELS.values() if entry.family in ("yolo", "rtdetr")]
ARCHITECTURES = ["yolov5", "yolo11n", "yolo11n-seg", "yolo26n", "yolo26n-seg", "rtdetr-l", "rtdetr-resnet50"]


@pytest.mark.parametrize("model", [entry.name for entry in ENTRIES])
def test_every_model_is_built_for_the_users_classes(model: str) -> None:
    for size in ("small", "medium", "large", "extra_large") if model == "yolov5" else ("",):
        family, _, _ = family_of(model, **({"model_size": size} if size else {}))
        network = build(family)
        assert network.model[-1].nc == len(CLASSES)
        published = family.published()
        assert published.files
        assert published.url.endswith(published.files[0])
        assert any(key.startswith(published.head) for key in network.state_dict())


def test_sizes_grow() -> None:
    counts = [
        sum(p.numel() for p in build(family_of(f"yolo26{size}")[0]).parameters()) for size in ("n", "s", "m")
    ]
    assert counts == sorted(counts)
    assert counts[0] < 3e6 < counts[2]


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_another_number_of_classes_changes_only_what_counts_as_head(model: str) -> None:
    few, many = family_of(model)[0], family_of(model, [f"class {i:03}" for i in range(120)])[0]
    shapes, others = ({k: v.shape for k, v in build(f).state_dict().items()} for f in (few, many))
    assert shapes.keys() == others.keys()
    changed = [key for key in shapes if shapes[key] != others[key]]
    assert changed
    assert all(key.startswith(few.published().head) for key in changed)


@pytest.mark.parametrize("model", ["yolo11n", "yolo11n-seg", "yolo26n", "yolo26n-seg", "rtdetr-l"])
def test_a_published_network_starts_all_but_the_last_layers(tmp_path: Path, model: str) -> None:
    """As ultralytics publishes them: the whole network in half precision, pickled."""
    published, _, _ = family_of(model, [f"{i:02}" for i in range(80)])
    network = build(published, seed=1).half()
    network.args, network.criterion = {"imgsz": 640}, None
    if model.startswith("rtdetr"):  # theirs does not know what we compile apart
        from ultralytics.nn.tasks import RTDETRDetectionModel

        del network.before_decoder
        network.__class__ = RTDETRDetectionModel
    torch.save({"model": network, "ema": None}, tmp_path / published.published().files[0])
    family, _, _ = family_of(model)
    loaded = weights.load(build(family), model, family.published(), str(tmp_path))
    assert loaded is not None
    ends = ("cv3.0.2", "cv3.1.2", "cv3.2.2", "semseg.2", "score_head", "class_embed")
    assert loaded.fresh
    assert all(any(end in key for end in ends) for key in loaded.fresh)


def test_a_torchvision_resnet_starts_the_backbone_of_rtdetr(tmp_path: Path) -> None:
    torch.manual_seed(5)
    resnet = torchvision.models.resnet50(weights=None).eval()
    family, _, _ = family_of("rtdetr-resnet50")
    file = tmp_path / family.published().files[0]
    assert file.name.startswith("resnet50-")
    torch.save(resnet.state_dict(), file)
    network = build(family)
    loaded = weights.load(network, "rtdetr-resnet50", family.published(), str(file))
    assert loaded is not None
    assert all(int(key.split(".")[1]) > 4 for key in loaded.fresh)
    image = torch.rand(1, 3, 64, 64)
    network.eval()
    with torch.inference_mode():
        features = image
        for layer in network.model[:5]:
            features = layer(features)
        for child in list(resnet.children())[:-2]:
            image = child(image)
    torch.testing.assert_close(features, image, rtol=1e-3, atol=1e-3)

    # A whole RT-DETR of one's own is taken whole.
    torch.save(network.state_dict(), tmp_path / "own.pth")
    again = weights.load(build(family, 2), "rtdetr-resnet50", family.published(), str(tmp_path / "own.pth"))
    assert again is not None
    assert again.fresh == ()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scenes]:
    """Two images with triangles, as ultralytics reads them from a folder, and as examples."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    examples = []
    triangles = [[(0.1, 0.2), (0.5, 0.3), (0.3, 0.8)], [(0.6, 0.1), (0.95, 0.5), (0.55, 0.6)]]
    for index in range(2):
        image = noise(96, 128, seed=index)
        PILImage.fromarray(image).save(folder / f"images/{index}.png")
        shapes = [np.array(points, dtype=np.float32) for points in triangles[: index + 1]]
        lines = [f"{c} " + " ".join(str(v) for v in shape.ravel()) for c, shape in enumerate(shapes)]
        (folder / f"labels/{index}.txt").write_text("\n".join(lines), encoding="utf-8")
        examples.append(Example(image, objects(*[(shape,) for shape in shapes])))
    return folder, Scenes(*examples)


@pytest.mark.parametrize("model", ["yolov5", "yolo11n", "yolo11n-seg", "yolo26n", "yolo26n-seg", "rtdetr-l"])
def test_the_loss_is_that_of_ultralytics_own_trainer(files: tuple[Path, Scenes], model: str) -> None:
    family, settings, _ = family_of(model, number_of_epochs=10, **PLAIN)
    folder, examples = files

    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.models.rtdetr.val import RTDETRDataset
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.utils import DEFAULT_CFG

    nothing = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"), 0.0)
    arguments = get_cfg(copy(DEFAULT_CFG), {**nothing, "epochs": 10})
    kind = RTDETRDataset if model.startswith("rtdetr") else YOLODataset
    theirs = kind(
        img_path=str(folder / "images"),
        imgsz=128,
        augment=True,
        hyp=arguments,
        data={"names": dict(enumerate(CLASSES)), "channels": 3},
        task="segment" if family.spec.task is Task.SEGMENTATION else "detect",
    )
    batch = kind.collate_fn([theirs[0], theirs[1]])
    trainer = DetectionTrainer.__new__(DetectionTrainer)  # only its preparation of a batch is wanted
    trainer.device, trainer.args = torch.device("cpu"), arguments
    batch = trainer.preprocess_batch(batch)

    dataset: Any = family.training_dataset(examples, settings, 0)
    for epoch in (0, 9):
        network = build(family).train()
        network.args = arguments
        network.criterion = network.init_criterion()
        for _ in range(epoch):
            getattr(network.criterion, "update", lambda: None)()  # as their trainer does after each epoch
        torch.manual_seed(1)  # RT-DETR draws noise
        expected = network(batch)[0].sum() / (3 if model.startswith("rtdetr") else 2)  # layers, images

        network = build(family).train()
        torch.manual_seed(1)
        ours = dataset.collate([dataset.item(Draw(epoch, 0)), dataset.item(Draw(epoch, 1))])
        losses = family.losses(network, ours, Progress(epoch, 10))
        assert sum(losses.values()).item() == pytest.approx(expected.item(), rel=2e-3), epoch
        assert all(loss.isfinite() for loss in losses.values())


def test_the_heads_of_yolo26_weigh_as_the_epoch_says_and_one_alone_in_validation() -> None:
    family, settings, _ = family_of("yolo26n", number_of_epochs=8)
    truth = objects((rectangle(0.2, 0.2, 0.8, 0.8),))
    dataset: Any = family.training_dataset(Scenes(*[Example(noise(), truth)] * 2), settings, 0)
    network = build(family)
    weighed = []
    for epoch in (0, 7, 3):  # a resumed run need not start at the first
        batch = dataset.collate([dataset.item(Draw(epoch, index)) for index in range(2)])
        family.losses(network.train(), batch, Progress(epoch, 8))
        weighed.append((network.criterion.o2m, network.criterion.o2o))
    np.testing.assert_allclose(weighed, [(0.8, 0.2), (0.1, 0.9), (0.5, 0.5)], atol=1e-6)
    tensor, geometry = family.preprocess(noise())
    batch = family.collate([family.validation_item(tensor, truth, geometry)])
    with torch.no_grad():
        first = family.losses(network.eval(), batch)
        assert first == family.losses(network, batch)
    assert (network.criterion.o2m, network.criterion.o2o) == (0.0, 1.0)


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_an_evaluation_at_a_new_size_leaves_a_network_that_trains(model: str) -> None:
    """As with multi_scale, where the evaluation may be the first to see its size."""
    family, settings, _ = family_of(model)
    truth = objects((rectangle(0.2, 0.2, 0.8, 0.8),))
    dataset = family.training_dataset(Scenes(*[Example(noise(), truth)] * 2), settings, 0)
    network = build(family).eval()
    with torch.inference_mode():
        family.infer(network, [family.preprocess(noise())[0]], family.spec.parameters)
    batch = dataset.collate([dataset.item(Draw(0, index)) for index in range(2)])
    losses = family.losses(network.train(), batch, Progress(0, 30))
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_images_without_objects_train_and_score(model: str) -> None:
    family, settings, _ = family_of(model, image_size=64)
    empty = objects()
    dataset = family.training_dataset(Scenes(*[Example(noise(), empty)] * 2), settings, 0)
    network = build(family).train()
    batch = dataset.collate([dataset.item(Draw(0, index)) for index in range(2)])
    losses = family.losses(network, batch, Progress(0, 30))
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    network.eval()
    tensor, geometry = family.preprocess(noise())
    with torch.no_grad():
        assert all(
            loss.isfinite()
            for loss in family.losses(
                network, family.collate([family.validation_item(tensor, empty, geometry)])
            ).values()
        )
        (found,) = family.predict(network, [noise()], ScoringParameters(box_score_threshold=0.0))
    assert isinstance(found, Detections)
    assert 0 < len(found.labels) <= 100
    assert (found.masks is not None) == model.endswith("-seg")


@pytest.mark.parametrize("model", ["yolo26n", "yolo26n-seg"])
def test_an_end_to_end_network_needs_no_nms_and_keeps_as_many_boxes_as_asked(model: str) -> None:
    family, _, _ = family_of(model)
    network = build(family).eval()

    def score(**parameters: Any) -> Detections:
        with torch.inference_mode():
            (found,) = family.predict(network, [noise()], ScoringParameters(**parameters))
        assert isinstance(found, Detections)
        return found

    everything = {"box_score_threshold": 0.0, "box_detections_per_image": 336}  # more than ultralytics' 300
    assert len(score(**everything).labels) == 336
    one, other = score(**everything, nms_iou_threshold=0.0), score(**everything, nms_iou_threshold=1.0)
    np.testing.assert_array_equal(one.boxes, other.boxes)
    assert len(score(box_score_threshold=0.0, box_detections_per_image=7).labels) == 7


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray[Any, Any]:
    """How far inside a circle each pixel's centre lies, in pixels; negative outside."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return radius - np.hypot(columns - x, rows - y)


@pytest.mark.parametrize("size", [(150, 200), (200, 150), (64, 64), (1000, 1400)])
def test_masks_are_the_prototypes_at_the_images_resolution(size: tuple[int, int]) -> None:
    from trainer.models.yolo import paste_prototypes

    family, _, _ = family_of("yolo11n-seg")
    height, width = size
    _, geometry = family.preprocess(np.zeros((*size, 3), dtype=np.uint8))
    x, y, radius = width * 0.4, height * 0.6, min(size) * 0.3
    grid = geometry.boxes_to_tensor(np.array([[0.4, 0.6, 0.4, 0.6]], dtype=np.float32))[0] / 4
    prototypes = np.zeros((32, 32, 32), dtype=np.float32)
    prototypes[5] = disc(32, 32, grid[0], grid[1], radius * geometry.scale[0] / 4)
    coefficients = np.zeros(32, dtype=np.float32)
    coefficients[5] = 2.0
    # A box that holds the disc's right half and more.
    box = np.array([0.4, 0.1, 0.95, 1.0], dtype=np.float32)
    mask = paste_prototypes(box, coefficients, prototypes, geometry, 0.5)
    truth = disc(height, width, x, y, radius) >= 0
    truth[:, : int(0.4 * width)] = False
    pasted = np.zeros(size, dtype=bool)
    rows, columns = mask.pixels.shape
    pasted[mask.top : mask.top + rows, mask.left : mask.left + columns] = mask.pixels
    assert (pasted & truth).sum() / (pasted | truth).sum() > 0.95
    assert paste_prototypes(box, coefficients, prototypes, geometry, 0.0).pixels.all()
    assert not paste_prototypes(box, coefficients, prototypes, geometry, 1.0).pixels.any()
    areas = [
        paste_prototypes(box, coefficients, prototypes, geometry, t).pixels.sum() for t in (0.2, 0.5, 0.8)
    ]
    assert areas[0] > areas[1] > areas[2]


def test_masks_equal_those_of_ultralytics_where_nothing_is_resized() -> None:
    from ultralytics.utils.ops import process_mask

    from trainer.models.yolo import paste_prototypes

    generator = np.random.default_rng(0)
    prototypes = generator.normal(size=(32, 16, 16)).astype(np.float32)
    coefficients = generator.normal(size=32).astype(np.float32)
    box = np.array([8, 16, 40, 56], dtype=np.float32)
    expected = process_mask(
        torch.from_numpy(prototypes), torch.from_numpy(coefficients)[None], torch.from_numpy(box)[None],
        (64, 64), upsample=True,
    )[0, 16:56, 8:40].bool()  # fmt: skip
    geometry = Geometry((64, 64), (64, 64), (1.0, 1.0))
    mask = paste_prototypes(box / 64, coefficients, prototypes, geometry, 0.5)
    assert (mask.left, mask.top) == (8, 16)
    assert (torch.from_numpy(mask.pixels) == expected).float().mean() > 0.999


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 0), (1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5), (0.999, 0, 1, 1), (0, 0, 1, 1)]
)
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (77, 41)])
def test_every_box_has_a_mask_within_the_image(box: tuple[float, ...], size: tuple[int, int]) -> None:
    from trainer.models.yolo import paste_prototypes

    family, _, _ = family_of("yolo11n-seg")
    _, geometry = family.preprocess(np.zeros((*size, 3), dtype=np.uint8))
    prototypes = np.ones((32, 32, 32), dtype=np.float32)
    mask = paste_prototypes(np.array(box, dtype=np.float32), prototypes[:, 0, 0], prototypes, geometry, 0.5)
    rows, columns = mask.pixels.shape
    assert rows >= 1
    assert columns >= 1
    assert 0 <= mask.left <= mask.left + columns <= size[1]
    assert 0 <= mask.top <= mask.top + rows <= size[0]
    assert mask.pixels.all()


def test_the_mask_of_a_huge_image_takes_little_more_than_its_pixels() -> None:
    from trainer.models.yolo import paste_prototypes

    size = (5000, 6000)
    geometry = Geometry(size, (128, 128), (128 / 6000, 128 / 6000), (0.0, 10.0))
    prototypes = np.ones((32, 32, 32), dtype=np.float32)
    whole = np.array([0, 0, 1, 1], dtype=np.float32)
    tracemalloc.start()
    mask = paste_prototypes(whole, prototypes[:, 0, 0], prototypes, geometry, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.pixels.shape == size
    assert peak < 2.2 * mask.pixels.nbytes


def test_settings_of_masks_belong_to_models_with_masks() -> None:
    values = {"mask_pixel_score_threshold": 0.4, "max_number_of_polygon_points": 20}
    settings = resolve(Task.SEGMENTATION, "yolo26n-seg", values)
    assert settings.max_number_of_polygon_points == 20
    for model in ("yolo26n", "yolov5", "rtdetr-l"):
        with pytest.raises(JobError, match="models for instance-segmentation"):
            resolve(Task.DETECTION, model, values)
    assert resolve(Task.DETECTION, "rtdetr-l", {}).optimizer == "adamw"
    assert resolve(Task.DETECTION, "rtdetr-l", {"image_size": 320}).learning_rate == 1e-4
    with pytest.raises(JobError):
        resolve(Task.SEGMENTATION, "yolo11n-seg", {"model_size": "small"})
