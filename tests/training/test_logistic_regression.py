"""The regression behind the probe: it equals scikit-learn's, and copes with few images and odd classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from trainer.training.logistic_regression import STRENGTHS, Fitted, fit, make_folds


def drawn(images: int, features: int, classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features around a mean for each class, on odd scales; and the classes."""
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(classes, features, generator=generator)
    targets = torch.arange(images) % classes
    noise = torch.randn(images, features, generator=generator)
    scales = torch.logspace(-2, 2, features)
    return (means[targets] + spread * noise) * scales + 5, targets


def standardised(features: Tensor) -> Any:
    raw = features.double()
    return ((raw - raw.mean(0)) / raw.std(0, correction=0)).numpy()


def logits(fitted: Fitted, features: Tensor) -> Tensor:
    return features @ fitted.weight.T + fitted.bias


# Fewer images than features are solved in other coordinates.
@pytest.mark.parametrize(("images", "features"), [(40, 8), (24, 50)])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_multinomial_regression_is_that_of_scikit_learn(
    images: int, features: int, is_weighted: bool
) -> None:
    inputs, targets = drawn(images, features, 3)
    class_weights = torch.tensor([1.0, 3.0, 0.5]) if is_weighted else None
    image_weights = torch.linspace(1, 2, images) if is_weighted else None
    fitted = fit(inputs, targets, 3, class_weights, image_weights, strengths=[0.1])
    each = (
        np.ones(images)
        if class_weights is None or image_weights is None
        else (image_weights * class_weights[targets]).numpy()
    )
    expected = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000)
    expected.fit(standardised(inputs), targets.numpy(), sample_weight=each / each.mean())
    probabilities = logits(fitted, inputs).softmax(1).numpy()
    assert probabilities == pytest.approx(expected.predict_proba(standardised(inputs)), abs=1e-4)
    losses = -np.log(probabilities[np.arange(images), targets])
    assert fitted.loss == pytest.approx(np.average(losses, weights=each), rel=1e-3)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_labels_have_a_regression_each(is_weighted: bool) -> None:
    inputs, classes = drawn(30, 40, 3)
    targets = torch.stack([classes == 0, classes != 1, classes == 2], 1)
    weights = torch.tensor([1.0, 0.25, 4.0])
    fitted = fit(inputs, targets, 3, weights if is_weighted else None, strengths=[0.3])
    for label in range(3):
        own = targets[:, label].numpy()
        each = np.where(own, float(weights[label]), 1.0) if is_weighted else None
        expected = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000)
        expected.fit(standardised(inputs), own, sample_weight=each)
        probabilities = logits(fitted, inputs)[:, label].sigmoid().numpy()
        assert probabilities == pytest.approx(expected.predict_proba(standardised(inputs))[:, 1], abs=1e-4)


def test_strength_is_chosen_by_the_loss_of_images_held_out() -> None:
    apart = fit(*drawn(40, 10, 2, spread=0.05), 2)
    assert (apart.folds, apart.strength) == (5, max(STRENGTHS))
    noise = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    assert fit(noise, torch.arange(40) % 2, 2).strength == min(STRENGTHS)


def test_class_without_images_gets_a_small_probability() -> None:
    inputs, targets = drawn(20, 6, 2)
    for weights in (None, torch.tensor([1.0, 1.0, 0.0])):
        probabilities = logits(fit(inputs, targets, 3, weights), inputs).softmax(1)
        assert probabilities[:, 2].max() < 1e-3
        assert (probabilities.argmax(1) == targets).all()


def test_labels_of_all_images_or_none_are_predicted_as_such() -> None:
    inputs, classes = drawn(20, 6, 2)
    targets = torch.stack([classes == 0, classes >= 0, classes < 0], 1)
    probabilities = logits(fit(inputs, targets, 3), inputs).sigmoid()
    assert probabilities[:, 1].min() > 0.99
    assert probabilities[:, 2].max() < 0.01
    assert ((probabilities[:, 0] > 0.5) == targets[:, 0]).all()


@pytest.mark.parametrize(
    ("targets", "winners"),
    [(torch.tensor([0, 1]), [0, 1]), (torch.tensor([1, 1]), [1, 1]), (torch.eye(2).bool(), [0, 1])],
)
def test_two_images_are_enough(targets: Tensor, winners: list[int]) -> None:
    inputs = torch.tensor([[1.0, 2.0, 7.0], [3.0, 1.0, 7.0]])  # the last feature is constant
    fitted = fit(inputs, targets, 2)
    assert torch.isfinite(fitted.weight).all()
    assert not fitted.weight[:, 2].any()
    assert logits(fitted, inputs).argmax(1).tolist() == winners


def test_each_fold_has_its_share_of_each_class_and_no_fit_lacks_a_class() -> None:
    classes = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    folds = make_folds(classes, seed=0)
    assert [np.bincount(folds[classes == c], minlength=5).tolist() for c in (0, 1)] == [[10] * 5, [2] * 5]
    assert len(set(folds[classes == 2].tolist())) == 2
    assert folds[classes == 3].tolist() == [-1]
    assert (make_folds(classes, seed=1) != folds).any()
    assert make_folds(np.arange(2), seed=0).tolist() == [-1, -1]
    assert make_folds(np.arange(4000) % 7, seed=0).max() == 1  # two folds of many images


def test_images_with_labels_are_dealt_out_by_their_rarest() -> None:
    labels = np.array([[1, 1, 0]] * 5 + [[1, 0, 0]] * 15 + [[1, 0, 1]] + [[0, 0, 0]] * 5, dtype=bool)
    folds = make_folds(labels, seed=0)
    assert np.bincount(folds[:5]).tolist() == [1] * 5
    assert np.bincount(folds[-5:]).tolist() == [1] * 5
    assert folds[20] == -1
