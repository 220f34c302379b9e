"""What makes many gradients cheaper leaves them as they are, and others in the process alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serving.explain.explainer import Explainer
from serving.explain.integrated_gradients import along_paths
from serving.explain.request import ExplanationRequest
from serving.explain.rewriting import halves
from serving.explain.streams import streams
from serving.explain.subject import Halves
from tests.serving.explain.conftest import SIZE, classifier, scene

# A network of each kind, whether its batch norms go into convolutions, and whether its first one is cut off.
REWRITTEN = {
    "resnet18": (True, True),
    "mobilenetv2": (True, True),
    "timm/regnetx_002": (True, True),
    "vits16r224": (True, False),  # it has none, and looks at the size of the image
}


def lively(network: nn.Module) -> nn.Module:
    """Batch norms as after a training: untrained ones change nothing, and the last of a block are zero."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return network.eval().requires_grad_(False)


def gradient(network: nn.Module, images: Tensor) -> Tensor:
    inputs = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(network(inputs)[:, 1].sum(), inputs)
    return found


def joined(parts: Halves) -> nn.Module:
    return nn.Sequential(parts.stem, parts.body)


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_rewritten_network_has_the_same_answers_and_gradients(name: str) -> None:
    network = lively(classifier(name)[1])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modules = [type(module) for module in network.modules()]
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    parts = halves(network, SIZE)
    is_folded, is_cut = REWRITTEN[name]
    norms = [module for module in parts.body.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (not norms) == is_folded
    assert isinstance(parts.stem, nn.Conv2d) == is_cut
    expected, found = gradient(network, images), gradient(joined(parts), images)
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    # The network that scores is what it was.
    assert [type(module) for module in network.modules()] == modules
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Awkward(nn.Module):
    """Looks twice at what others look at once: the image, and what a convolution gives to a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        before = self.conv(images)
        active = self.relu(self.norm(before))
        pooled = self.pool(active).mean((2, 3)) + active.mean((2, 3)) + before.mean((2, 3))
        scores: Tensor = self.head(pooled * images.mean())
        return scores


def test_network_that_cannot_be_rewritten_stays_unchanged() -> None:
    torch.manual_seed(0)
    network = lively(Awkward())
    parts = halves(network, 16)
    assert isinstance(parts.stem, nn.Identity)
    assert [type(module) for module in parts.body.modules()] == [type(module) for module in network.modules()]
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(gradient(joined(parts), images), gradient(network, images))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "approximation",
    ["riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre"],
)
def test_integrated_gradients_equal_captums(approximation: str, threads: int) -> None:
    from captum.attr import IntegratedGradients

    # In double precision and from a baseline of noise: at an even colour, rounding decides which of equal
    # values a max pooling takes.
    family, network = classifier("timm/test_resnet")
    given = Explainer(family, lively(network).double())._subject(scene(1, 5)[0])
    subject = replace(given, tensor=given.tensor.double())
    inputs = subject.tensor[None].clone().requires_grad_()
    attribution: Any = IntegratedGradients(network)
    baseline = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = attribution.attribute(inputs, baseline, target=2, n_steps=11, method=approximation)
    asked = ExplanationRequest(n_steps=11, approximation_method=approximation)
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with streams(torch.device("cpu")) as submit:
            found = along_paths(subject, baseline, 2, asked, submit)
    finally:
        torch.set_num_threads(usual)
    assert isinstance(subject.halves().stem, nn.Conv2d)
    torch.testing.assert_close(found, expected.detach().float())


def test_streams_share_the_threads_and_leave_those_of_others_alone() -> None:
    def threads_of_a_new_thread() -> int:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return seen[0]

    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with streams(torch.device("cpu")) as submit:
            here = threading.Barrier(2)
            both = [submit(lambda: (here.wait(20), torch.get_num_threads())[1]) for _ in range(2)]
            assert [each.result() for each in both] == [2, 2]
            assert (torch.get_num_threads(), threads_of_a_new_thread()) == (4, 4)
        with pytest.raises(ZeroDivisionError), streams(torch.device("cpu")) as submit:
            submit(lambda: 1 // 0).result()
        torch.set_num_threads(1)
        with streams(torch.device("cpu")) as submit:
            assert submit(threading.get_ident).result() == threading.get_ident()
    finally:
        torch.set_num_threads(usual)
