"""Detectors of the Hub: they prepare images, answer and learn as transformers' own."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import trainer
from serving.package import carried_code, requirements
from tests import hub_models
from trainer.data.samples import make
from trainer.errors import JobError
from trainer.job.job import Job
from trainer.models import Spec, catalog, create, listing, specify
from trainer.models.cards.transformers_detectors import CARD, side
from trainer.models.defaults import resolve
from trainer.models.detr_networks import ARCHITECTURES, before_decoder
from trainer.models.weights import loading
from trainer.models.weights.describing import describe
from trainer.models.weights.description import Description
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

KINDS = tuple(hub_models.DETECTORS)
IMAGE = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
TARGETS = [
    {"class_labels": torch.tensor(labels), "boxes": torch.tensor(boxes)}
    for labels, boxes in (
        ([1, 2], [[0.5, 0.5, 0.2, 0.4], [0.3, 0.3, 0.2, 0.1]]),
        ([0], [[0.6, 0.4, 0.3, 0.2]]),
    )
]


def bind(description: Description, *, pretrained: bool = True, **settings: Any) -> Any:
    name = f"hf/{description.name}"
    assert CARD.described_by_files is not None
    resolved = resolve(Task.DETECTION, name, settings, published=CARD.described_by_files(description))
    spec = specify(
        Task.DETECTION, name, resolved, ("a", "b", "c"), pretrained=pretrained, description=description
    )
    return create(Spec.from_json(spec.to_json()))


@pytest.fixture(scope="module", params=KINDS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The family of a tiny model as published, with its weights loaded, and the library's network."""
    directory = tmp_path_factory.mktemp(request.param)
    original = hub_models.write_detector(directory / f"acme/tiny-{request.param}", request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", None)  # no network
        family = bind(describe(f"acme/tiny-{request.param}", str(directory)))
        torch.manual_seed(3)
        network = family.build()
        loaded = loading.load(network, family.spec.model, family.published(), str(directory), family.spec)
    assert loaded is not None
    assert (loaded.fresh, loaded.left) == ((), ())
    return family, (network, original)


def test_a_published_detector_answers_as_its_library_does(published: tuple[Any, Any]) -> None:
    family, (network, original) = published
    kind = family.config.model_type
    tensor, geometry = family.preprocess(IMAGE)
    assert tensor.shape == (3, 64, 64)
    with torch.inference_mode():
        outputs = original.eval()(tensor[None])
        parameters = ScoringParameters(box_score_threshold=0)
        (output,) = family.infer(network.eval(), [tensor], parameters)
    name = "YolosImageProcessor" if ARCHITECTURES[kind].softmax else "RTDetrImageProcessor"
    processor = getattr(transformers, name)()
    (theirs,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(48, 80)])
    order = theirs["scores"].argsort(descending=True, stable=True)
    ours = family.postprocess(output, geometry, parameters)
    count = len(ours.scores)
    assert count == len(outputs.logits[0])
    np.testing.assert_allclose(ours.scores, theirs["scores"][order][:count].numpy(), atol=1e-5)
    assert ours.labels.tolist() == theirs["labels"][order][:count].tolist()
    boxes = (theirs["boxes"][order][:count].numpy() / [80, 48, 80, 48]).clip(0, 1)
    np.testing.assert_allclose(ours.boxes, boxes, atol=1e-4)


def test_its_losses_are_the_librarys_own(published: tuple[Any, Any]) -> None:
    family, (network, _) = published
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def compute(forward: Any) -> Any:
        torch.manual_seed(1)  # of denoising
        with torch.no_grad():
            return forward()

    losses: dict[str, Tensor] = compute(
        lambda: family.losses(network.train(), {"images": images, "targets": TARGETS})
    )
    library = compute(lambda: network(images, labels=TARGETS))
    layers = sum(key.startswith(("loss_ce", "loss_vfl")) and "_dn_" not in key for key in library.loss_dict)
    assert sum(losses.values()).item() == pytest.approx(library.loss.item() / layers, rel=1e-5)


@pytest.mark.parametrize(
    ("preprocessor", "config", "expected"),
    [
        ({"size": {"height": 640, "width": 640}}, {}, 640),
        ({"size": {"height": 384, "width": 512}}, {}, 512),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, {}, 800),
        ({"size": {"shortest_edge": 500, "longest_edge": 900}}, {}, 512),
        ({"size": 600}, {}, 608),
        ({}, {"image_size": [512, 864]}, 512),
        ({}, {}, 640),
    ],
)
def test_images_have_the_size_of_the_preprocessor(
    preprocessor: dict[str, Any], config: dict[str, Any], expected: int
) -> None:
    assert side(Description("a/b", config, preprocessor)) == expected


def test_images_have_the_numbers_of_the_preprocessor() -> None:
    described = hub_models.describe("yolos")
    own = {**described.preprocessor, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    family = bind(Description("a/b", described.config, own))
    plain = bind(Description("a/b", described.config, {**own, "do_normalize": False}))
    mean, std = (torch.tensor(own[name])[:, None, None] for name in ("image_mean", "image_std"))
    torch.testing.assert_close(family.preprocess(IMAGE)[0] * std + mean, plain.preprocess(IMAGE)[0])
    assert family.preparation().mean == (0.1, 0.2, 0.3)


def test_config_json_of_an_older_library_never_asks_for_timms_weights() -> None:
    older = {
        "model_type": "conditional_detr", "backbone": "test_resnet", "use_timm_backbone": True,
        "use_pretrained_backbone": True, "backbone_config": None, "d_model": 32, "num_labels": 91,
        "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    }  # fmt: skip
    family = bind(Description("a/b", older, {}), image_size=64)
    assert family.config.backbone_config.backbone == "test_resnet"
    network = family.build()
    frozen = [module for module in network.modules() if "FrozenBatchNorm" in type(module).__name__]
    assert frozen
    live = bind(Description("a/b", older, {}), image_size=64, pretrained=False).build()
    norms = [module for module in live.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == len(frozen)
    assert before_decoder(live)[0] is live.model.backbone


def test_a_resnet_of_the_librarys_own_learns() -> None:
    resnet = {"model_type": "resnet", **hub_models.CONFIGS["resnet"], "out_features": ["stage4"]}
    described = hub_models.describe("detr")
    family = bind(Description("a/b", {**described.config, "backbone_config": resnet}, {}), image_size=64)
    assert "timm" not in family.spec.options
    network = family.build()
    assert [name for name, parameter in network.named_parameters() if not parameter.requires_grad] == []
    assert len(family.freeze_groups(network)) == 5


def test_one_map_is_enough_for_proposals() -> None:
    described = hub_models.describe("deformable_detr")
    one = {"two_stage": True, "num_feature_levels": 1, "two_stage_num_proposals": 50}
    backbone = {**described.config["backbone_config"], "out_indices": [4]}
    config = {**described.config, **one, "backbone_config": backbone}
    family = bind(Description("a/b", config, {}), image_size=128)
    assert family.max_boxes == 16
    network = family.build().eval()
    with torch.inference_mode():
        [boxes] = family.predict(network, [IMAGE], ScoringParameters(box_score_threshold=0))
    assert len(boxes.labels) == 16


@pytest.mark.parametrize(
    ("config", "got"),
    [
        ({"model_type": "mask2former"}, "'mask2former'"),
        ({}, "''"),
        ({"model_type": "detr", "architectures": ["DetrForSegmentation"]}, "DetrForSegmentation"),
    ],
)
def test_what_is_no_detector_is_refused_with_those_that_are(config: dict[str, Any], got: str) -> None:
    with pytest.raises(JobError) as caught:
        bind(Description("acme/x", config, {}))
    said = str(caught.value)
    assert "acme/x: its config.json must be of a detector whose architecture is known here" in said
    assert f"got {got}" in said
    for kind, architecture in ARCHITECTURES.items():
        assert f"{kind} ({architecture.detector})" in said


def test_a_damaged_config_json_is_named() -> None:
    described = hub_models.describe("yolos")
    with pytest.raises(JobError, match=r"config\.json of acme/tiny-yolos must describe a yolos"):
        bind(Description("acme/tiny-yolos", {**described.config, "hidden_size": "wide"}, {}))


def test_the_hubs_detectors_are_found_for_their_task_only() -> None:
    name = "hf/acme/tiny-yolos@abc"
    assert catalog.find(name, Task.DETECTION).card is CARD
    assert catalog.find("acme/tiny-yolos", Task.DETECTION).library_name == "acme/tiny-yolos"
    assert catalog.find(name, Task.CLASSIFICATION).card is not CARD
    with pytest.raises(JobError, match="image-classification-multilabel and object-detection, not for inst"):
        catalog.find(name, Task.SEGMENTATION)
    text = "\n".join(listing.instructions("hf/acme/tiny-yolos", Task.DETECTION))
    assert "--task object-detection --model hf/acme/tiny-yolos --weights weights" in text


def test_a_job_takes_the_image_size_from_the_files(tmp_path: Path) -> None:
    hub_models.write_detector(tmp_path / "acme/tiny-detr", "detr")
    values: dict[str, Any] = {"task": Task.DETECTION, "training_data": "t.jsonl", "tracking_uri": "none"}
    job = Job(**values, model="hf/acme/tiny-detr", weights=str(tmp_path))
    settings = job.resolve_settings()
    assert settings.image_size == 64
    assert (settings.training_batch_size, settings.gradient_accumulation_step) == (4, 4)
    assert Job(**values, model="hf/acme/tiny-detr", weights=str(tmp_path), settings={"image_size": 96})


def test_a_packaged_detector_needs_timm_only_for_its_backbone() -> None:
    on_timm, without = (bind(hub_models.describe(kind)).spec for kind in ("detr", "yolos"))
    names = {kind: {text.split("==")[0] for text in requirements(spec)} for kind, spec in
             (("detr", on_timm), ("yolos", without))}  # fmt: skip
    assert names["detr"] - names["yolos"] == {"timm"}
    assert "huggingface_hub" not in names["detr"]
    assert Path("trainer/models/transformers_classifiers.py") not in carried_code(on_timm).files


def test_a_run_starts_from_a_directory_and_resumes_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    hub_models.write_detector(tmp_path / "files", "yolos")
    data = make(Task.DETECTION, tmp_path / "data", images=6, seed=1)
    job = Job(
        task=Task.DETECTION, model="hf/acme/tiny-yolos", weights=str(tmp_path / "files"), gpus=0,
        training_data=data.train, validation_data=data.validation, output=str(tmp_path / "run"),
        tracking_uri="none", settings={"number_of_epochs": 1, "number_of_workers": 0},
    )  # fmt: skip
    run = trainer.fit(job)
    spec = Spec.from_json((run.directory / "model/artifacts/spec.json").read_text("utf-8"))
    assert spec.options["image_size"] == 64
    assert spec.options["config"] == {"num_detection_tokens": 12, "auxiliary_loss": False}
    shutil.rmtree(tmp_path / "files")
    trainer.resume(run.directory, settings={"number_of_epochs": 2})
    assert Spec.from_json((run.directory / "model/artifacts/spec.json").read_text("utf-8")) == spec
    further = job.changed(weights=str(run.directory), output=str(tmp_path / "further"))
    assert further.describe() == Description.from_dict(spec.options["hub"])
    assert further.resolve_settings().image_size == 64
