"""Tiny models as repositories of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from trainer.models.weights.description import Description

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _VIT,
    "clip": {"vision_config": _VIT},
    "swin": _SWIN,
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "resnet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1] * 4,
        "layer_type": "basic",
    },
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [1, 1, 1],
        "depths": [1] * 3,
    },
}
"""By model_type: a config.json that makes a network of some thousand parameters."""
PREPROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}},
    # As in old files: a number, and the name of a feature extractor.
    "deit": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "size": 72,
        "crop_size": 64,
        "do_center_crop": True,
    },
    "convnext": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_pct": 0.875,
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessorFast",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    },
}
PREPROCESSORS["resnet"] = PREPROCESSORS["convnext"]

_DETR = {
    "backbone_config": {
        "model_type": "timm_backbone",
        "backbone": "test_resnet",
        "features_only": True,
        "out_indices": [2, 3, 4],
    },
    "num_queries": 12,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
DETECTORS: dict[str, dict[str, Any]] = {
    "yolos": {**_VIT, "image_size": [64, 96], "num_detection_tokens": 12},
    "detr": _DETR,
    "conditional_detr": _DETR,
    "deformable_detr": {**_DETR, "d_model": 64, "with_box_refine": True},
    "rt_detr": {
        **_DETR,
        "backbone_config": {
            "model_type": "rt_detr_resnet",
            "depths": [1] * 4,
            "hidden_sizes": [16, 32, 64, 128],
            "embedding_size": 16,
            "layer_type": "basic",
            "out_indices": [2, 3, 4],
        },
        "encoder_in_channels": [32, 64, 128],
        "decoder_in_channels": [32, 32, 32],
        "encoder_hidden_dim": 32,
        "num_denoising": 8,
    },
}
"""By model_type of a detector: a config.json that makes a small network."""
_OF_DETECTORS = {
    "image_processor_type": "DetrImageProcessor",
    "size": {"shortest_edge": 60, "longest_edge": 90},
}


def describe(kind: str) -> Description:
    """The description of a tiny model, without any file."""
    preprocessor = _OF_DETECTORS if kind in DETECTORS else PREPROCESSORS.get(kind, {})
    config = {"model_type": kind, "num_labels": 3, **{**CONFIGS, **DETECTORS}[kind]}
    return Description(f"acme/tiny-{kind}", config, preprocessor)


def network(kind: str, classes: int = 3, variant: int = 0) -> Any:
    """transformers' own network of a tiny model, with random weights.

    Args:
        variant: index of the class, for types of several.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSES

    names = {str(index): f"class {index}" for index in range(classes)}
    config = transformers.CONFIG_MAPPING[kind](**CONFIGS[kind], id2label=names)
    kinds = CLASSES[type(config)]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return (kinds[variant] if isinstance(kinds, tuple) else kinds)(config).eval()


def write(directory: Path, kind: str, classes: int = 3, **more: Any) -> Any:
    """Write a tiny model's repository as its library does; returns the library's network."""
    from transformers.utils import logging

    made = network(kind, classes)
    logging.disable_progress_bar()
    made.save_pretrained(directory, **more)
    if kind in PREPROCESSORS:
        text = json.dumps(PREPROCESSORS[kind])
        (directory / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return made


def write_detector(directory: Path, kind: str) -> Any:
    """Write a tiny detector's repository as its library does; returns the library's network."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING as CLASSES

    names = {str(index): f"class {index}" for index in range(3)}
    config = transformers.CONFIG_MAPPING[kind](**DETECTORS[kind], id2label=names)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        made: Any = CLASSES[type(config)](config)
    transformers.utils.logging.disable_progress_bar()
    made.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(_OF_DETECTORS), encoding="utf-8")
    return made
