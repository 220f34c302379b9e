"""Starts a classifier's head as a probe: a logistic regression on the features of the training images.

Fine-tuning then starts from a head that fits its features, and disturbs them less than a random one would.
Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from trainer.annotations import FloatArray
from trainer.data.progress import track
from trainer.errors import JobError, Problem
from trainer.models import Family
from trainer.models.family import in_float32
from trainer.training.loading import Batches, gather, move
from trainer.training.logistic_regression import Fitted, fit
from trainer.training.module import TrainingModule

log = logging.getLogger("trainer")

_TOLERANCE = 1e-3
"""Largest difference between the network's logits and those of its head on the features, relative to them."""


class NotLinearError(Exception):
    """The network's logits are not those of one linear layer on pooled features."""


class ProbeFirst(Callback):
    """Fits the probe before the first epoch, from features that all ranks compute.

    Lightning's sanity check, over all validation images, evaluates it afterwards as epoch 0.

    Args:
        has_trained_head: whether the head was trained for this task and these classes; rank 0's value counts.
            Such a head is kept, unless there is no epoch to train.
    """

    def __init__(self, batches: Batches, *, has_trained_head: bool = False, progress: bool) -> None:
        self.batches, self.has_trained_head, self.progress = batches, has_trained_head, progress

    def on_sanity_check_start(self, trainer: Trainer, module: Any) -> None:
        assert isinstance(module, TrainingModule)
        if trainer.strategy.broadcast(self.has_trained_head, src=0) and module.settings.number_of_epochs:
            log.info(
                "no probe: the weights bring a head trained for the same classes; training starts from it"
            )
            trainer.num_sanity_val_steps = 0
            return
        try:
            features = self._features(trainer, module)
        except NotLinearError:
            if not module.settings.number_of_epochs:
                raise nothing_to_train(module.family) from None
            log.info("no probe: %s; training starts from its head as it is", _reason(module.family))
            trainer.num_sanity_val_steps = 0
            return
        fitted = trainer.strategy.broadcast(self._fit(features, module), src=0)
        chosen = f"by {fitted.folds}-fold cross-validation on them" if fitted.folds else "the usual value"
        log.info(
            "probe: logistic regression on %d features of the %d training images, with C = %g (%s)",
            features.shape[1], len(features), fitted.strength, chosen,
        )  # fmt: skip
        module.start_head(fitted.weight, fitted.bias, fitted.loss)

    def _fit(self, features: Tensor, module: TrainingModule) -> Fitted:
        """Every rank fits it, as the others would only wait for rank 0, whose result counts."""
        weights = self.batches.weights
        return fit(
            features,
            torch.from_numpy(np.array(self.batches.training.targets)),
            len(module.family.spec.classes),
            self.batches.training_items.dataset.shared.get("class_weights"),
            None if weights is None else torch.from_numpy(weights),
            seed=module.seed,
        )

    def _features(self, trainer: Trainer, module: TrainingModule) -> Tensor:
        """The features of the training images in the data's order, float32 [n, D], on every rank.

        Raises:
            NotLinearError: the network has no features that a linear head could take.
        """
        loader = self.batches.unaugmented_dataloader()
        batches: Iterable[Any] = loader
        if self.progress:
            batches = track(loader, "features of the training images, batches", len(loader))
        network, device = module.network, module.device
        is_training = network.training
        rows: list[tuple[int, FloatArray]] = []
        network.eval()
        # Compiled code would not see the hook, or would keep it.
        with torch.compiler.set_stance("force_eager"), torch.no_grad(), in_float32(device):
            for batch in batches:
                items = move(batch, device)["plain"]
                images = torch.stack([item["tensor"] for item in items])
                features = head_inputs(module.family, network, images)
                # As arrays: a row of a tensor would be sent to the other ranks with all of its batch.
                rows += zip([item["index"] for item in items], features.cpu().numpy(), strict=True)
        network.train(is_training)
        by_image = dict(gather(rows, trainer.world_size))
        return torch.from_numpy(np.stack([by_image[index] for index in sorted(by_image)])).to(device)


def head_inputs(family: Family, network: nn.Module, images: Tensor) -> Tensor:
    """The features that the network's head turns into logits, float32 [n, D].

    Args:
        images: preprocessed, [n, 3, h, w].

    Raises:
        NotLinearError: the head is not a linear layer, or the logits are not its outputs alone.
    """
    head = family.linear_head(network)
    if head is None:
        raise NotLinearError
    inputs: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        logits = network(images)
    finally:
        handle.remove()
    if len(inputs) != 1 or inputs[0].ndim != 2 or not isinstance(logits, Tensor):
        raise NotLinearError
    expected = head(inputs[0])
    difference = (logits - expected).abs().amax() if logits.shape == expected.shape else torch.inf
    if difference > _TOLERANCE * (1 + expected.abs().amax()):
        raise NotLinearError
    return inputs[0].float()


def nothing_to_train(family: Family) -> JobError:
    """The error of a run without epochs of a network that can have no probe."""
    rule = f"must be greater than 0, because {_reason(family)}"
    return JobError("the settings cannot be used:", [Problem("", "number_of_epochs", rule, "0")])


def _reason(family: Family) -> str:
    return f"the logits of {family.spec.model} are not those of one linear layer on pooled features"
