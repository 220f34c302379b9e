"""Batches that are split once memory ran out, for training, the optimizer's step and evaluations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conformance.conftest import make_case
from trainer.annotations import Detections, Example
from trainer.data.datasets import ValidationDataset
from trainer.errors import NoMemoryError
from trainer.settings import Settings
from trainer.tasks import Task
from trainer.training.evaluation import Evaluation
from trainer.training.micro_batches import least_images, parts_of
from trainer.training.module import TrainingModule
from trainer.training.stepping import step_within_memory

CPU = torch.device("cpu")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("images", "micro_batches", "least", "sizes"),
    [
        (8, 1, 1, [8]),
        (8, 4, 1, [2, 2, 2, 2]),
        (5, 4, 1, [1, 1, 1, 2]),
        (5, 4, 2, [2, 3]),
        (5, 8, 2, [2, 3]),
        (3, 2, 2, [3]),
        (1, 2, 2, [1]),
        (9, 2, 2, [4, 5]),
    ],
)
def test_parts_are_even_and_never_single_images_for_batch_norms(
    images: int, micro_batches: int, least: int, sizes: list[int]
) -> None:
    parts = parts_of(images, micro_batches, least)
    assert [stop - start for start, stop in parts] == sizes
    assert [index for start, stop in parts for index in range(start, stop)] == list(range(images))


def test_batch_norms_that_train_need_two_images() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    assert least_images(network) == 2
    assert least_images(network.eval()) == 1
    assert least_images(nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1)).train()) == 1


class SmallOptimizer(torch.optim.AdamW):
    """Runs out of memory for the state of a group, some times."""

    failures: int

    def _init_group(self, group: Any, *arguments: Any) -> Any:
        if group is self.param_groups[-1] and self.failures:
            self.failures -= 1
            raise OUT_OF_MEMORY
        return super()._init_group(group, *arguments)  # type: ignore[misc]


def stepped(failures: int) -> tuple[list[list[float]], int]:
    """The parameters of two groups after a step and another."""
    groups = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = SmallOptimizer([{"params": [group]} for group in groups], lr=0.1)
    optimizer.failures = failures
    wrapped: Any = SimpleNamespace(optimizer=optimizer, step=optimizer.step)
    for _ in range(2):
        for group in groups:
            group.grad = torch.full((2,), 0.5)
        step_within_memory(wrapped, Settings(optimizer="adamw"), CPU)
    return [group.tolist() for group in groups], len(optimizer.param_groups)


def test_step_that_ran_out_of_memory_goes_on_with_the_groups_that_are_left() -> None:
    assert stepped(failures=1) == stepped(failures=0)


def test_step_that_fails_otherwise_is_not_tried_again() -> None:
    parameter = nn.Parameter(torch.ones(1))

    def fail() -> None:
        raise RuntimeError("shapes do not match")

    wrapped: Any = SimpleNamespace(optimizer=torch.optim.SGD([parameter]), step=fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        step_within_memory(wrapped, Settings(optimizer="sgd"), CPU)


def test_step_that_does_not_fit_says_what_does() -> None:
    with pytest.raises(NoMemoryError, match=r"optimizer's step.*optimizer sgd.*layers_to_freeze"):
        stepped(failures=2)


class Differing:
    """Two images of different shapes (trainer.annotations.Examples) with the objects of another data set."""

    def __init__(self, examples: Any) -> None:
        self.targets = examples.targets[:3]
        self.images = [image[: 120 - 40 * index] for index, image in enumerate(examples.images[:3])]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.targets[index])


@pytest.mark.parametrize("losses", ["Disable", "Enable"])
def test_evaluation_scores_images_of_different_sizes_as_serving_does(losses: str) -> None:
    """torchvision pads the images of a batch to one size, here the last one's 32 rows to 64."""
    case = make_case(Task.DETECTION, "fasterrcnn_resnet18_fpn", box_score_threshold=0.0)
    network, examples = case.build().eval(), Differing(case.examples)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.uniform_(-0.5, 0.5)  # else zeros at an edge stay zeros in every layer
    dataset = ValidationDataset(examples, case.family, with_losses=losses == "Enable")
    evaluation = Evaluation(case.family, examples.targets, case.settings)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):  # as Lightning evaluates on GPUs
            evaluation.add(network, dataset.collate([dataset[index] for index in range(3)]))
        served = case.family.predict(network, examples.images)
    for (_, scored, _), expected in zip(evaluation._predictions, served, strict=True):
        assert isinstance(scored, Detections)
        assert isinstance(expected, Detections)
        assert len(scored.scores)
        np.testing.assert_allclose(scored.scores, expected.scores, atol=1e-6)
        np.testing.assert_allclose(scored.boxes, expected.boxes, atol=1e-6)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_validation_batch_that_runs_out_of_memory_is_scored_in_parts(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(Task.DETECTION, "yolo11n", box_score_threshold=0.0)
    network = case.build().eval()
    dataset = ValidationDataset(case.examples, case.family, with_losses=True)
    sizes: list[int] = []
    infer_with_losses = type(case.family).infer_with_losses

    def limited(self: Any, network: Any, batch: Any, parameters: Any) -> Any:
        sizes.append(len(batch["images"]))
        if sizes[-1] > most:
            raise OUT_OF_MEMORY
        return infer_with_losses(self, network, batch, parameters)

    def evaluated() -> list[Any]:
        evaluation = Evaluation(case.family, case.examples.targets, case.settings)
        with torch.inference_mode():
            for _ in range(2):
                evaluation.add(network, dataset.collate([dataset[index] for index in range(4)]))
        assert sum(len(images) for images, _ in evaluation._losses) == 8
        return [
            (index, prediction.scores.round(4).tolist()) for index, prediction, _ in evaluation._predictions
        ]

    whole = evaluated()
    monkeypatch.setattr(type(case.family), "infer_with_losses", limited)
    if not most:
        with pytest.raises(
            NoMemoryError, match="ran out of memory with one validation image; lower image_size"
        ):
            evaluated()
        return
    assert evaluated() == whole
    # The second batch is split at once.
    assert sizes == ([4, 2, 1, 1, 1, 1, 1, 1, 1, 1] if most == 1 else [4, 2, 2, 2, 2])


def test_parts_of_a_validation_batch_are_its_whole_images_and_then_the_others() -> None:
    case = make_case(Task.CLASSIFICATION, "resnet18")
    evaluation = Evaluation(case.family, case.examples.targets, case.settings)
    of_whole = {"images": torch.arange(2), "targets": torch.arange(2)}
    batch = {"whole": ["a", "b"], "plain": ["c", "d", "e"], "batch": of_whole}
    first, middle, last = (evaluation._part(batch, start, stop) for start, stop in ((0, 1), (1, 3), (3, 5)))
    assert [(part["whole"], part["plain"]) for part in (first, middle, last)] == [
        (["a"], []),
        (["b"], ["c"]),
        ([], ["d", "e"]),
    ]
    assert [first["batch"]["images"].tolist(), middle["batch"]["targets"].tolist()] == [[0], [1]]
    assert last["batch"] is None


def test_batches_of_networks_with_batch_norms_are_split_into_pairs_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(Task.CLASSIFICATION, "resnet18")
    module: Any = TrainingModule(case.family, case.build(), [], case.settings, seed=0)
    monkeypatch.setattr(module, "_optimizer", lambda: SimpleNamespace(zero_grad=lambda set_to_none: None))
    module.on_train_epoch_start()
    batch = {"images": torch.zeros(4, 3, 8, 8)}
    module._halve_micro_batches(batch)
    assert module.micro_batches == 2
    with pytest.raises(NoMemoryError, match="even two images, which batch norms need, at a time"):
        module._halve_micro_batches(batch)


@pytest.mark.parametrize(("reserved", "is_spare"), [(79, True), (80, False)])
def test_a_fifth_of_a_gpus_memory_must_be_left_to_exchange_gradients_in_the_backward_pass(
    reserved: int, is_spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=100))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: reserved)
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda", 0))
    assert TrainingModule._has_memory_to_spare(on_gpu) is is_spare


@pytest.mark.parametrize(("overlaps", "sync_batch_norm"), [(True, False), (False, True)])
def test_rank_for_whose_batch_others_wait_cannot_repeat_it(
    overlaps: bool, sync_batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(Task.CLASSIFICATION, "resnet18", sync_batch_norm=sync_batch_norm)
    module: Any = TrainingModule(case.family, nn.Linear(1, 1), [], case.settings, seed=0)
    lightning = SimpleNamespace(world_size=2, strategy=None, current_epoch=0)
    module._overlaps, module._trainer = overlaps, lightning

    def fail(batch: Any) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(module, "_losses", fail)
    batch = {"images": torch.zeros(4, 3, 8, 8)}
    with pytest.raises(NoMemoryError, match="--training-batch-size 2 --gradient-accumulation-step 2"):
        module._add_gradients([batch], 1, sync=True)
    lightning.world_size = 1
    assert module._add_gradients([batch], 1, sync=True) is None
