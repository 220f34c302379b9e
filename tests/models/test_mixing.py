"""Mixup, CutMix and the losses against soft targets: pixel by pixel, and against torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from trainer.models.mixing import binary_cross_entropy, cross_entropy, mixed

ONE_HOT = torch.eye(5)


def numbered(height: int = 24, width: int = 30) -> Tensor:
    """Five images, each of one colour: its number."""
    return torch.arange(5.0)[:, None, None, None].expand(5, 3, height, width).clone()


@pytest.mark.parametrize("seed", range(4))
def test_mixup_blends_images_and_targets_by_the_same_share(seed: int) -> None:
    images, targets = mixed(numbered(), ONE_HOT, np.random.default_rng(seed), mixup_alpha=1, cutmix_alpha=0)
    # The colour of a blend of i and j is λi + (1 − λ)j, which is what the target says of it.
    expected = (targets @ torch.arange(5.0))[:, None, None, None].expand_as(images)
    torch.testing.assert_close(images, expected)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(5))
    share = np.random.default_rng(seed).beta(1, 1)
    assert targets.diagonal().min().item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_targets_are_the_shares_of_the_area(seed: int) -> None:
    images, targets = mixed(numbered(), ONE_HOT, np.random.default_rng(seed), mixup_alpha=0, cutmix_alpha=1)
    shares = torch.stack([(images[:, 0] == number).float().mean(dim=(1, 2)) for number in range(5)], dim=1)
    torch.testing.assert_close(targets, shares)
    # What is pasted is one rectangle, the same in all images.
    pasted = (images[:, 0] != numbered()[:, 0]).any(dim=0)
    rows, columns = pasted.any(dim=1), pasted.any(dim=0)
    assert torch.equal(pasted, rows[:, None] & columns[None])
    if pasted.any():
        first, last = rows.nonzero()[[0, -1], 0].tolist()
        assert rows[first : last + 1].all()


def test_cutmix_of_a_drawn_share_has_the_rectangle_of_the_paper() -> None:
    seen = []
    for seed in range(200):
        share = np.random.default_rng(seed).beta(1, 1)
        _, targets = mixed(
            numbered(100, 100), ONE_HOT, np.random.default_rng(seed), mixup_alpha=0, cutmix_alpha=1
        )
        kept = targets.diagonal().min().item()
        assert kept >= share - 0.02  # cut off at the image's edge, never larger
        seen.append(kept - share)
    assert min(seen) < 0.02 < max(seen)


def test_with_both_each_batch_takes_one() -> None:
    kinds = set()
    for seed in range(12):
        images, _ = mixed(numbered(), ONE_HOT, np.random.default_rng(seed), mixup_alpha=1, cutmix_alpha=1)
        kinds.add("cutmix" if torch.equal(images, images.round()) else "mixup")
    assert kinds == {"cutmix", "mixup"}


def test_the_same_generator_mixes_alike_and_leaves_its_input() -> None:
    images, targets = numbered(), ONE_HOT.clone()
    first, second, other = (
        mixed(images, targets, np.random.default_rng(seed), mixup_alpha=0.2, cutmix_alpha=1)
        for seed in (7, 7, 8)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, numbered())
    assert torch.equal(targets, ONE_HOT)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 0.4), (0.0, 0.0)])
def test_a_single_image_is_mixed_with_itself(mixup: float, cutmix: float) -> None:
    image, target = torch.rand(1, 3, 8, 8), torch.tensor([[0.0, 1.0]])
    for seed in range(5):
        got = mixed(image, target, np.random.default_rng(seed), mixup_alpha=mixup, cutmix_alpha=cutmix)
        assert torch.equal(got[0], image)
        assert torch.equal(got[1], target)


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0]])
HARD = torch.tensor([0, 2, 1])
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.25, 0.75], [0.0, 1.0, 0.0]])
WEIGHTS = torch.tensor([0.1, 0.5, 0.9])


def test_smoothed_targets_by_hand() -> None:
    # .1 of each target is spread over three classes: .9 + .1/3 and twice .1/3.
    by_hand = -(torch.tensor([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]) * LOGITS[0].log_softmax(0)).sum()
    assert cross_entropy(LOGITS[:1], HARD[:1], None, 0.1).item() == pytest.approx(by_hand.item())
    # .1 of each of several targets goes half to yes: 1 → .95, 0 → .05.
    several = torch.tensor([[1.0, 0.0, 1.0]])
    smoothed = F.binary_cross_entropy_with_logits(LOGITS[:1], torch.tensor([[0.95, 0.05, 0.95]]))
    assert binary_cross_entropy(LOGITS[:1], several, None, 0.1).item() == pytest.approx(smoothed.item())
    assert smoothed.item() != pytest.approx(binary_cross_entropy(LOGITS[:1], several, None, 0).item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_targets_are_those_of_torch(smoothing: float) -> None:
    expected = F.cross_entropy(LOGITS, SOFT * (1 - smoothing) + smoothing / 3)
    assert cross_entropy(LOGITS, SOFT, None, smoothing).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_soft_targets_of_one_class_are_hard_ones(weights: Tensor | None, smoothing: float) -> None:
    hard = cross_entropy(LOGITS, HARD, weights, smoothing)
    expected = F.cross_entropy(LOGITS, HARD, weight=weights, label_smoothing=smoothing)
    assert hard.item() == pytest.approx(expected.item())
    soft = cross_entropy(LOGITS, F.one_hot(HARD, 3).float(), weights, smoothing)
    assert soft.item() == pytest.approx(hard.item())


def test_class_weights_weigh_soft_targets() -> None:
    log_p = LOGITS.log_softmax(1)
    by_hand = -(WEIGHTS * SOFT * log_p).sum() / (WEIGHTS * SOFT).sum()
    assert cross_entropy(LOGITS, SOFT, WEIGHTS, 0).item() == pytest.approx(by_hand.item())
    positive = -(WEIGHTS * SOFT * LOGITS.sigmoid().log() + (1 - SOFT) * (-LOGITS).sigmoid().log()).mean()
    assert binary_cross_entropy(LOGITS, SOFT, WEIGHTS, 0).item() == pytest.approx(positive.item())


def test_focal_loss_of_multi_class_is_the_papers() -> None:
    p = LOGITS.softmax(1)[torch.arange(len(HARD)), HARD]
    expected = -((1 - p) ** 2 * p.log())
    assert cross_entropy(LOGITS, HARD, None, 0, 2).item() == pytest.approx(expected.mean().item())
    own = WEIGHTS[HARD]
    weighted = (own * expected).sum() / own.sum()
    assert cross_entropy(LOGITS, HARD, WEIGHTS, 0, 2).item() == pytest.approx(weighted.item())
    one_hot = F.one_hot(HARD, 3).float()
    assert cross_entropy(LOGITS, one_hot, WEIGHTS, 0, 2).item() == pytest.approx(weighted.item())


def test_focal_loss_of_multilabel_is_that_of_torchvision() -> None:
    several = F.one_hot(HARD, 3).float()
    expected = sigmoid_focal_loss(LOGITS, several, alpha=-1, gamma=1.5, reduction="mean")
    assert binary_cross_entropy(LOGITS, several, None, 0, 1.5).item() == pytest.approx(expected.item())
    absent = sigmoid_focal_loss(LOGITS, several, alpha=-1, gamma=1.5) * (1 + several * (WEIGHTS - 1))
    weighted = binary_cross_entropy(LOGITS, several, WEIGHTS, 0, 1.5)
    assert weighted.item() == pytest.approx(absent.mean().item())


@pytest.mark.parametrize("entropy", [cross_entropy, binary_cross_entropy])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_small_gamma_comes_near_the_cross_entropy(entropy: Any, smoothing: float) -> None:
    plain = entropy(LOGITS, SOFT, WEIGHTS, smoothing)
    assert entropy(LOGITS, SOFT, WEIGHTS, smoothing, 1e-6).item() == pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize("entropy", [cross_entropy, binary_cross_entropy])
def test_the_focal_loss_of_a_certain_answer_has_a_finite_gradient(entropy: Any) -> None:
    logits = torch.tensor([[200.0, -200.0, -200.0]], requires_grad=True)
    entropy(logits, torch.tensor([[1.0, 0.0, 0.0]]), None, 0, 0.5).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
