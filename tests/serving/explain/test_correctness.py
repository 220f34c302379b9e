"""The methods do what their papers say: against captum and saliency, and on a network that was trained."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from serving.explain import methods
from serving.explain.request import ExplanationRequest
from serving.explain.subject import Subject
from serving.scorer import Scorer
from tests.serving.explain.conftest import SIZE, Trained, bind, explain, scene
from trainer.annotations import Image
from trainer.tasks import Task


def subject(trained: Trained, image: Image) -> Subject:
    made: Subject = trained.scorer._explainer._subject(image)
    return made


def attribute(method: str, given: Subject, target: int, **asked: Any) -> Tensor:
    return methods.find(method).attribute(given, target, ExplanationRequest(**asked))


def test_the_network_has_learned(trained: Trained) -> None:
    images = [scene(number % 3, 9000 + number)[0] for number in range(30)]
    answers = trained.scorer.score_images(images, trained.family.spec.parameters)
    right = [int(np.argmax(answer["probs"])) == number % 3 for number, answer in enumerate(answers)]
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize("approximation", ["riemann_middle", "gausslegendre"])
def test_integrated_gradients_are_complete(trained: Trained, approximation: str) -> None:
    for number in range(3):
        given = subject(trained, scene(number % 3, 9100 + number)[0])
        with torch.no_grad():
            ends = trained.network(torch.stack([given.tensor, torch.zeros_like(given.tensor)]))
        target = int(ends[0].argmax())
        difference = float(ends[0, target] - ends[1, target])
        found = attribute("integrated_gradients", given, target, approximation_method=approximation)
        assert abs(float(found.sum()) - difference) <= 0.02 * abs(difference)


@pytest.mark.parametrize("method", ["guided_backprop", "guided_gradcam"])
def test_guided_methods_equal_captums(trained: Trained, method: str) -> None:
    from captum.attr import GuidedBackprop, GuidedGradCam

    given = subject(trained, scene(2, 77)[0])
    network: Any = given.network
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's hooks forbid it
    inputs = given.tensor[None].clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum tells that it sets hooks
        theirs = (
            GuidedBackprop(network) if method == "guided_backprop" else GuidedGradCam(network, network.layer4)
        )
        expected = theirs.attribute(inputs, target=2)[0].detach()
    found = attribute(method, given, 2)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_capped_relu_is_guided_too() -> None:
    from serving.explain.guided_backprop import guide

    network = guide(nn.Sequential(nn.ReLU6(inplace=True)))
    values = torch.tensor([-1.0, 2.0, 3.0, 7.0], requires_grad=True)
    output = network(values)
    assert output.tolist() == [0, 2, 3, 6]
    (gradient,) = torch.autograd.grad(output, values, torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert gradient.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("fast", [True, False])
def test_xrai_agrees_with_the_saliency_package(trained: Trained, shared_data: Path, fast: bool) -> None:
    import saliency.core as saliency
    from scipy.stats import spearmanr

    # The same network at the size that XRAI's segments are meant for.
    family: Any = bind(Task.CLASSIFICATION, "resnet18")
    scorer = Scorer(family, trained.network)
    folder = shared_data / "fridge_multiclass"
    lines = (folder / "validation.jsonl").read_text().splitlines()
    with PILImage.open(folder / json.loads(lines[3 if fast else 9])["image_url"]) as file:
        given: Subject = scorer._explainer._subject(np.array(file.convert("RGB")))

    mean, std = (torch.tensor(family.spec.options[name])[:, None, None] for name in ("mean", "std"))

    def gradients(values: Any, call_model_args: Any = None, expected_keys: Any = None) -> Any:
        pixels = torch.from_numpy(np.asarray(values, np.float32)).permute(0, 3, 1, 2).requires_grad_()
        inputs = (pixels / 255 - mean) / std
        (found,) = torch.autograd.grad(trained.network(inputs)[:, 1].sum(), pixels)
        return {saliency.INPUT_OUTPUT_GRADIENTS: found.permute(0, 2, 3, 1).numpy()}

    parameters = saliency.XRAIParameters(algorithm="fast" if fast else "full", steps=12)
    expected = saliency.XRAI().GetMask(
        given.pixels.astype(np.float32), gradients, extra_parameters=parameters, batch_size=6
    )
    found = attribute("xrai", given, 1, n_steps=12, xrai_fast=fast)[0].numpy()
    correlation = spearmanr(found.ravel(), expected.ravel()).statistic
    print(f"rank correlation {correlation:.4f}")
    assert correlation >= 0.95


@pytest.mark.parametrize("method", methods.NAMES)
def test_deleting_relevant_pixels_costs_more_than_random_ones(trained: Trained, method: str) -> None:
    """The deletion game (Petsiuk et al. 2018): the probability as ever more of the image is greyed."""
    generator = np.random.default_rng(0)
    ours, random = [], []
    for number in range(6):
        image = scene(number % 3, 9300 + number)[0]
        answer = explain(
            trained.scorer, image, xai_algorithm=method, attributions=True, visualizations=False, n_steps=15
        )
        target = int(np.argmax(answer["probs"]))
        ours.append(deletion(trained, image, methods.find(method).heat(answer["attributions"]), target))
        random.append(deletion(trained, image, generator.random((SIZE, SIZE)), target))
    print(f"{method}: deletion {np.mean(ours):.3f}, random {np.mean(random):.3f}")
    assert np.mean(ours) < 0.8 * np.mean(random)


def deletion(trained: Trained, image: Image, relevance: np.ndarray, target: int) -> float:
    """Mean probability of the class with the most relevant 5 %, 10 %, … 50 % of the pixels greyed."""
    order = np.argsort(-relevance.ravel(), kind="stable")
    images = []
    for part in np.arange(0.05, 0.51, 0.05):
        greyed = image.reshape(-1, 3).copy()
        greyed[order[: int(part * len(order))]] = (124, 116, 104)  # the mean colour
        images.append(greyed.reshape(image.shape))
    answers = trained.scorer.score_images(images, trained.family.spec.parameters)
    return float(np.mean([answer["probs"][target] for answer in answers]))
