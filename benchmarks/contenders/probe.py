"""Logistic regression by scikit-learn on the features of a frozen network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform, resolve_data_config

from benchmarks import data
from benchmarks.contenders.common import Options, main, score
from benchmarks.contenders.timm_loop import Images, create
from benchmarks.measuring import Measurements
from trainer.annotations import Classification, Prediction
from trainer.models import catalog
from trainer.tasks import Task

_STRENGTHS = np.logspace(-5, 1, 7)
"""Values of C to choose from; with hundreds of standardised features the best is far below 1."""


def train(options: Options) -> Measurements:
    network = create(catalog.find(options.model, options.of_task).library_name, options).eval()
    config = resolve_data_config({"input_size": (3, options.image_size, options.image_size)}, model=network)
    transform = create_transform(**config)
    training, targets = _features(network, Path(options.train), transform, options)
    validation, _ = _features(network, Path(options.validation), transform, options)
    regression = LogisticRegressionCV(
        Cs=_STRENGTHS, cv=3, scoring="neg_log_loss", max_iter=2000,
        l1_ratios=(0.0,), use_legacy_attributes=False,
    )  # fmt: skip
    multilabel = options.of_task is Task.MULTILABEL
    probe = make_pipeline(StandardScaler(), OneVsRestClassifier(regression) if multilabel else regression)
    probe.fit(training, targets)
    return {"metric": score(options, _predictions(probe, validation, options))}


@torch.inference_mode()
def _features(network: Any, file: Path, transform: Any, options: Options) -> tuple[Any, Any]:
    """Compute the pooled features [N, F] of a file's images, and their targets."""
    images = Images(data.records(file, options.of_task, options.classes))
    images.transform = transform
    features, targets = [], []
    for pixels, target in (images[index] for index in range(len(images))):
        features.append(network.forward_head(network.forward_features(pixels[None]), pre_logits=True)[0])
        targets.append(np.asarray(target))
    return torch.stack(features).numpy(), np.stack(targets)


def _predictions(probe: Any, features: Any, options: Options) -> Iterator[Prediction]:
    """Yield the probabilities of all classes; classes without training images have none."""
    found = probe.predict_proba(features)
    probs = np.zeros((len(found), len(options.classes)), dtype=np.float32)
    probs[:, probe.classes_.astype(int)] = found
    yield from map(Classification, probs)


if __name__ == "__main__":
    main(train)
