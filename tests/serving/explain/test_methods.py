"""What every method must do with every kind of classifier, or refuse with what can be used instead."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from serving.explain import methods
from serving.scorer import Scorer
from tests.serving.explain.conftest import SIZE, classifier, explain, row, scene
from trainer.errors import RequestError
from trainer.tasks import Task

# A network of each kind, and the methods it does not allow.
_GUIDED = ("guided_gradcam", "guided_backprop")
REFUSED = {
    "resnet18": (),
    "mobilenetv2": (),
    "seresnext": (),
    "resnest50": (),
    "vits16r224": _GUIDED,
    "timm/regnetx_002": (),
    "timm/test_efficientnet": _GUIDED,  # SiLU
}
IMAGE = scene(1, 5)[0]


@pytest.fixture(scope="module", params=list(REFUSED))
def model(request: pytest.FixtureRequest) -> tuple[str, Scorer, torch.nn.Module]:
    family, network = classifier(request.param)
    return request.param, Scorer(family, network), network


@pytest.mark.parametrize("method", methods.NAMES)
def test_method_explains_or_names_methods_that_do(
    model: tuple[str, Scorer, torch.nn.Module], method: str
) -> None:
    name, scorer, network = model
    before = scorer.score_images([IMAGE], scorer.spec.parameters)[0]
    asked = {"xai_algorithm": method, "attributions": True, "n_steps": 2}
    if method in REFUSED[name]:
        with pytest.raises(RequestError, match=r"use xrai or integrated_gradients$") as caught:
            explain(scorer, IMAGE, **asked)
        assert (caught.value.row, caught.value.status) == (0, 400)
        assert f"{method} cannot explain {name}" in str(caught.value)
        return
    answer = explain(scorer, IMAGE, **asked)
    assert list(answer) == ["probs", "labels", "visualizations", "attributions"]
    assert answer["probs"] == pytest.approx(before["probs"], abs=1e-6)
    assert answer["attributions"].shape == (3, SIZE, SIZE)
    assert np.isfinite(answer["attributions"]).all()
    # Grad-CAM may find that no cell of an untrained network speaks for the class.
    assert answer["attributions"].std() > 0 or method == "guided_gradcam"
    picture = PILImage.open(io.BytesIO(base64.b64decode(answer["visualizations"])))
    assert (picture.format, picture.width > 3 * picture.height) == ("PNG", True)
    again = explain(scorer, IMAGE, **asked)
    np.testing.assert_allclose(again["attributions"], answer["attributions"], rtol=1e-4, atol=1e-9)
    # Nothing is left behind on the network that scores.
    assert scorer.score_images([IMAGE], scorer.spec.parameters)[0] == before
    for module in network.modules():
        hooks = (module._forward_hooks, module._backward_hooks, module._forward_pre_hooks)
        assert not any(hooks)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize(
    "approximation",
    ["riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre"],
)
def test_every_approximation_takes_few_steps(approximation: str, steps: int) -> None:
    family, network = classifier("timm/test_resnet")
    answer = explain(
        Scorer(family, network),
        IMAGE,
        xai_algorithm="integrated_gradients",
        n_steps=steps,
        approximation_method=approximation,
        attributions=True,
        visualizations=False,
    )
    assert np.isfinite(answer["attributions"]).all()
    assert "visualizations" not in answer


def test_parameters_change_the_explanation() -> None:
    family, network = classifier("timm/test_resnet")
    scorer = Scorer(family, network)

    def attributions(**asked: object) -> np.ndarray:
        found: np.ndarray = explain(scorer, IMAGE, attributions=True, visualizations=False, **asked)[
            "attributions"
        ]
        return found

    usual = attributions(n_steps=4)
    np.testing.assert_allclose(
        attributions(n_steps=4, xai_algorithm="xrai", xrai_fast=True), usual, rtol=1e-4
    )
    for change in ({"n_steps": 5}, {"xrai_fast": False}, {"approximation_method": "riemann_left"}):
        assert not np.allclose(attributions(**{"n_steps": 4, **change}), usual, rtol=1e-4)


def test_multilabel_classes_are_explained_separately() -> None:
    family, network = classifier("timm/test_resnet", Task.MULTILABEL)
    scorer = Scorer(family, network)
    probs = scorer.score_images([IMAGE], scorer.spec.parameters)[0]["probs"]
    lowest, highest = sorted(probs)[0], sorted(probs)[-1]
    asked = {"xai_algorithm": "guided_backprop", "attributions": True}
    some = explain(scorer, IMAGE, confidence_score_threshold_multilabel=highest, **asked)
    assert [len(some["visualizations"]), len(some["attributions"])] == [1, 1]
    every = explain(scorer, IMAGE, confidence_score_threshold_multilabel=lowest, **asked)
    assert [len(every["visualizations"]), len(every["attributions"])] == [3, 3]
    np.testing.assert_allclose(every["attributions"][int(np.argmax(probs))], some["attributions"][0])
    assert not np.allclose(every["attributions"][0], every["attributions"][1])
    none = explain(scorer, IMAGE, confidence_score_threshold_multilabel=1.0, **asked)
    assert (none["visualizations"], none["attributions"]) == ([], [])


def test_rows_without_explanation_get_plain_answers() -> None:
    from serving.payload import parse_rows

    family, network = classifier("timm/test_resnet")
    plain = row(IMAGE)["image_base64"]
    asking = row(IMAGE, xai_algorithm="guided_backprop")
    attributions = row(IMAGE, xai_algorithm="guided_gradcam", attributions=True, visualizations=False)
    neither = row(IMAGE, visualizations=False)
    values = [plain, asking, neither, {**asking, "model_explainability": False}, attributions]
    answers = Scorer(family, network).score(parse_rows(values, Task.CLASSIFICATION), {})
    assert [set(answer) - {"probs", "labels"} for answer in answers] == [
        set(),
        {"visualizations"},
        set(),
        set(),
        {"attributions"},
    ]


def test_unsuitable_method_is_rejected_before_any_work() -> None:
    from serving.payload import parse_rows

    family, network = classifier("vits16r224")
    broken = base64.b64encode(b"no image at all").decode()
    rows = parse_rows([broken, row(IMAGE), row(IMAGE, xai_algorithm="guided_gradcam")], Task.CLASSIFICATION)
    with pytest.raises(RequestError, match=r"^row 2: guided_gradcam cannot explain vits16r224"):
        Scorer(family, network).score(rows, {})
