"""Detectors of the Hugging Face Hub: transformers' networks, built from their config.json.

No code of a repository is ever run: only architectures that transformers itself has are built.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainer.errors import JobError, Problem
from trainer.models import detr_networks
from trainer.models.detr import DETR, changes_of, needs_of
from trainer.models.spec import Spec
from trainer.models.transformers_preprocessing import Preprocessor
from trainer.models.weights.description import Description
from trainer.models.weights.published import PublishedWeights
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings


class TransformersDetectors(DETR):
    """transformers' networks for detection.

    `options["hub"]` holds the Description of the model, so that a packaged model needs no files of the Hub;
    `options["config"]` what differs from its config.json.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.description = Description.from_dict(spec.options["hub"])

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        raise NotImplementedError("a model of the Hub is described by its files: described_options")

    @staticmethod
    def described_options(
        task: Task, model: str, settings: Settings, description: Description, pretrained: bool
    ) -> dict[str, Any]:
        config = _config(description, {})
        normalisation = Preprocessor(description)
        return {
            "image_size": settings.image_size,
            "config": changes_of(config, model, settings.image_size, pretrained=pretrained),
            "mean": normalisation.mean,
            "std": normalisation.std,
            "hub": description.to_dict(),
            **needs_of(config),
        }

    @cached_property
    def config(self) -> Any:
        changes = {**self.spec.options["config"], "num_labels": len(self.spec.classes)}
        return _config(self.description, changes)

    def published(self) -> PublishedWeights:
        return PublishedWeights(
            files=(f"{self.description.name}/model.safetensors",),
            hub=self.description.pinned_name,
            head=self.architecture.heads,
            adapt=detr_networks.fitted,
        )


def _config(description: Description, changes: dict[str, Any]) -> Any:
    """The library's configuration of a description's network.

    Raises:
        JobError: it describes no detector of an architecture that the family knows.
    """
    kind = str(description.config.get("model_type", ""))
    architecture = detr_networks.ARCHITECTURES.get(kind)
    named = description.config.get("architectures") or []
    if architecture is None or (named and architecture.detector not in named):
        rule = (
            f"{description.name}: its config.json must be of a detector whose architecture is known here; "
            "code from the Hub is never run"
        )
        known = ", ".join(
            f"{kind} ({architecture.detector})" for kind, architecture in detr_networks.ARCHITECTURES.items()
        )
        got = repr(kind) if architecture is None else " and ".join(named)
        hint = f"model_type must be one of {known}"
        raise JobError("the model cannot be used", [Problem("model_name", "", rule, got, hint)])
    try:
        return detr_networks.configured({**description.config, **changes})
    except Exception as error:  # the library's checks of values raise an error of huggingface_hub
        rule = f"the config.json of {description.name} must describe a {kind}"
        problem = Problem("model_name", "", rule, str(error).partition("\n")[0], "download it again")
        raise JobError("the model cannot be used", [problem]) from error


FAMILY = TransformersDetectors
