"""Builds `transformers`' DETRs, and fits their published weights to them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from trainer.models.detr_configs import PublishedDetr
from trainer.models.family import in_float32
from trainer.models.heads import FOCAL_PRIOR
from trainer.models.transformers_loading import converted

_BEFORE_DECODER = ("backbone", "conv_encoder", "encoder", "encoder_input_proj")
"""Children of the library's networks that mixed precision applies to."""
_TIMM = "timm_backbone"
"""The library's `model_type` of a backbone that is timm's."""

_KEYPOINTS = "_kp_active_mask"  # an empty buffer in the authors' newer files of RF-DETR

_QUERIES = re.compile(r"(refpoint_embed|reference_point_embed|query_feat)\.weight$")
"""The embeddings of all groups of queries, as the authors and as the library name them."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Facts about one of the library's architectures.

    Attributes:
        detector: class of its detectors.
        segmenter: class of its segmenters; "" if there are none.
        heads: prefixes of the tensors whose shape depends on the classes.
        mean: of each colour channel, which is subtracted from images in [0, 1].
        std: of each colour channel, by which images are divided.
        boxes: prefix of the tensors of the layers that predict boxes, where the library leaves it to the
            authors' code to start the heads; "" where it starts them as the authors do.
        softmax: scores are a softmax over the classes and, last, none; otherwise each class has a sigmoid.
        layers_have_losses: the library computes a loss for each layer of the decoder.
    """

    detector: str
    heads: tuple[str, ...]
    segmenter: str = ""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    boxes: str = ""
    softmax: bool = False
    layers_have_losses: bool = True


_REAL_TIME = (
    "class_embed.",
    "model.decoder.class_embed.",
    "model.enc_score_head.",
    "model.denoising_class_embed.",
)
_ZEROS, _ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
ARCHITECTURES: Mapping[str, Architecture] = {
    "rt_detr": Architecture("RTDetrForObjectDetection", _REAL_TIME, mean=_ZEROS, std=_ONES),
    "rt_detr_v2": Architecture("RTDetrV2ForObjectDetection", _REAL_TIME, mean=_ZEROS, std=_ONES),
    "d_fine": Architecture("DFineForObjectDetection", _REAL_TIME, mean=_ZEROS, std=_ONES),
    "deimv2": Architecture("Deimv2ForObjectDetection", _REAL_TIME, mean=_ZEROS, std=_ONES),
    "rf_detr": Architecture(
        "RfDetrForObjectDetection",
        (
            "class_embed.",
            "model.class_embed.",
            "model.enc_out_class_embed.",
            "model.model.enc_out_class_embed.",
        ),
        segmenter="RfDetrForInstanceSegmentation",
    ),
    "lw_detr": Architecture("LwDetrForObjectDetection", ("class_embed.", "model.enc_out_class_embed.")),
    "deformable_detr": Architecture(
        "DeformableDetrForObjectDetection",
        ("class_embed.", "model.decoder.class_embed."),
        boxes="bbox_embed.",
    ),
    "conditional_detr": Architecture(
        "ConditionalDetrForObjectDetection", ("class_labels_classifier.",), boxes="bbox_predictor."
    ),
    "detr": Architecture("DetrForObjectDetection", ("class_labels_classifier.",), softmax=True),
    "yolos": Architecture(
        "YolosForObjectDetection",
        ("class_labels_classifier.layers.2.",),
        softmax=True,
        layers_have_losses=False,
    ),
}
"""By the library's `model_type`."""


def configured(values: Mapping[str, Any]) -> Any:
    """The library's configuration with these values, of which `model_type` is the architecture."""
    own = {**values, "tie_word_embeddings": False}
    return AutoConfig.for_model(own.pop("model_type"), **own)


def config_of(published: PublishedDetr) -> Any:
    """The library's configuration of a published network."""
    return configured({"model_type": published.architecture, **published.values})


def uses_timm(config: Any) -> bool:
    """Whether the backbone is timm's."""
    backbone = getattr(config, "backbone_config", None)
    return getattr(backbone, "model_type", "") == _TIMM


def can_freeze_norms(config: Any) -> bool:
    """Whether the backbone's batch norms are frozen unless `freeze_backbone_batch_norms` is false.

    The library always freezes those of timm's backbones; `build` can replace them by ones that learn.
    """
    return hasattr(config, "freeze_backbone_batch_norms") or uses_timm(config)


def has_proposals(config: Any) -> bool:
    """Whether a Deformable DETR's encoder proposes the boxes that its decoder starts from."""
    return bool(getattr(config, "two_stage", False)) and hasattr(config, "two_stage_num_proposals")


def _name_of_queries(config: Any) -> str:
    if has_proposals(config):
        return "two_stage_num_proposals"
    return "num_queries" if hasattr(config, "num_queries") else "num_detection_tokens"


def queries(config: Any) -> int:
    """The number of boxes that a network predicts for an image."""
    return int(getattr(config, _name_of_queries(config)))


def queries_at(config: Any, side: int) -> dict[str, int]:
    """The value of a configuration that limits the queries to the positions in an image."""
    return {_name_of_queries(config): min(queries(config), positions(config, side))}


def positions(config: Any, side: int) -> int:
    """The number of positions in an image from which queries are chosen; all queries if they are learned."""
    if has_proposals(config):
        # The backbone's last maps, and maps of half the size of the one before.
        last = 32 << max(0, config.num_feature_levels - 3)
        strides = [float(last >> level) for level in range(config.num_feature_levels)]
    elif hasattr(config, "feat_strides"):
        strides = list(map(float, config.feat_strides))
    elif patch := getattr(getattr(config, "backbone_config", None), "patch_size", 0):
        strides = [patch / scale for scale in getattr(config, "projector_scale_factors", None) or [1.0]]
    else:
        return queries(config)
    return sum(int(side / stride) ** 2 for stride in strides)


def step(config: Any) -> int:
    """The number of pixels that the side of an image must be a multiple of."""
    if hasattr(config, "feat_strides"):
        return max(32, *map(int, config.feat_strides))
    backbone = getattr(config, "backbone_config", config)
    patch = getattr(backbone, "patch_size", 0)
    windows = getattr(backbone, "num_windows_side", getattr(backbone, "num_windows", 1))
    return patch * windows if patch else 32


def build(config: Any, *, masks: bool) -> nn.Module:
    """Build a network with random weights."""
    architecture = ARCHITECTURES[config.model_type]
    kind = getattr(transformers, architecture.segmenter if masks else architecture.detector)
    network: Any = kind(config)
    # The library freezes the first stages of its own ResNets; here layers_to_freeze decides.
    for parameter in getattr(network.base_model, "backbone", nn.Identity()).parameters():
        parameter.requires_grad_(True)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # The library draws their factors from N(0, .01), the authors start from 1.
            module.reset_parameters()
        if name.endswith("embeddings") and getattr(module, "mask_token", None) is not None:
            module.mask_token.requires_grad_(False)  # for pretraining only; ranks would wait for its gradient
    if getattr(config, "freeze_backbone_batch_norms", None) is False and uses_timm(config):
        from trainer.models.detr_timm import backbone  # with it, models need timm

        network.base_model.backbone.model = backbone(config)
    for name, module in _heads_of_decoder(network):
        setattr(network, name, module)
    if _shares_heads(config):
        for name in ("class_embed", "bbox_embed"):
            heads = getattr(network, name)
            setattr(network, name, nn.ModuleList([heads[0]] * len(heads)))
    if architecture.boxes:
        _start_heads(network, architecture)
    detector = network.base_model if masks else network
    inner = detector.base_model
    # All of YOLOS but its heads is one backbone.
    for parent in (detector, inner) if hasattr(inner, "decoder") else (detector,):
        for name, module in parent.named_children():
            if name not in _BEFORE_DECODER and module is not inner:
                _compute_in_float32(module)
    built: nn.Module = network
    return built


def _shares_heads(config: Any) -> bool:
    """Whether all layers of a Deformable DETR's decoder have the same heads: they do not refine boxes."""
    return hasattr(config, "two_stage_num_proposals") and not config.with_box_refine


def _start_heads(network: Any, architecture: Architecture) -> None:
    """Start the scores from the prior and each box at its query's position, as the authors do."""
    for name, module in network.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Linear) or module.bias is None:
            continue
        if f"{name}.".startswith(architecture.heads):
            nn.init.constant_(module.bias, math.log(FOCAL_PRIOR / (1 - FOCAL_PRIOR)))
        elif name.startswith(architecture.boxes) and module.out_features == 4:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    if hasattr(network, "bbox_embed") and not has_proposals(network.config):
        nn.init.constant_(network.bbox_embed[0].layers[-1].bias[2:], -2.0)  # an eighth of the image's side


def before_decoder(network: Any) -> list[nn.Module]:
    """The backbone and the encoder, whose shapes do not depend on the objects in a batch."""
    inner = getattr(network.base_model, "model", network.base_model)
    children = dict(inner.named_children())
    parts = [children[name] for name in ("backbone", "conv_encoder", "encoder") if name in children]
    return parts if hasattr(inner, "decoder") else [inner]


def backbone_groups(network: nn.Module) -> list[list[nn.Module]]:
    """The layers of the backbone from the input on: the image's embedding, then each stage or block."""
    backbone = dict(before_decoder(network)[0].named_modules())
    ends = {name.rpartition(".")[2]: module for name, module in reversed(backbone.items())}
    if "layer1" in ends:  # timm's ResNets
        return [[ends["conv1"], ends["bn1"]], *([ends[f"layer{stage}"]] for stage in range(1, 5))]
    embedding: Any = ends.get("embedder") or ends["embeddings"]
    blocks: Any = ends.get("stages") or ends["layer"]
    return [[embedding], *([block] for block in blocks)]


def _heads_of_decoder(network: Any) -> Iterator[tuple[str, nn.Module]]:
    """The heads that the decoder refines its boxes with; the library initialises them, not their copies."""
    decoder = getattr(network.base_model, "decoder", None)
    for name in ("class_embed", "bbox_embed"):
        if isinstance(getattr(decoder, name, None), nn.ModuleList) and hasattr(network, name):
            yield name, getattr(decoder, name)


class _InFloat32(nn.Module):
    """Runs without autocast, on float32 inputs."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        exact = {name: _exact(value) for name, value in options.items()}
        tensors = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
        device = tensors[0].device if tensors else torch.device("cpu")
        with in_float32(device):
            return super().forward(*map(_exact, arguments), **exact)


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _compute_in_float32(module: nn.Module) -> None:
    """Run a part of the decoder in float32: it passes on coordinates, which bfloat16 rounds to 1/256."""
    if isinstance(module, nn.ModuleList):
        for child in module:
            _compute_in_float32(child)
    elif not isinstance(module, _InFloat32):
        kind = type(module)
        module.__class__ = type(kind.__name__, (_InFloat32, kind), {"__module__": __name__})


def fitted(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Published tensors under the network's names, as the library's own loader converts them.

    The published number of queries is cut to the network's. Tensors of the head keep the published shape.
    """
    own = network.state_dict()
    if not own.keys() <= tensors.keys():
        tensors = converted(_with_queries(tensors, network.config), network, without=_KEYPOINTS)
    for key in own:
        # Heads that all layers share are published once.
        first = re.sub(r"\b(class_embed|bbox_embed)\.\d+\.", r"\1.0.", key)
        if key not in tensors and first in tensors:
            tensors[key] = tensors[first]
    for name, module in _heads_of_decoder(network):
        for key in module.state_dict():
            pair = f"{name}.{key}", f"model.decoder.{name}.{key}"
            there = [tensors[each] for each in pair if each in tensors]
            tensors |= {each: there[0] for each in pair if there}
    return tensors


def _with_queries(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    groups = getattr(config, "group_detr", 1)
    cut = dict(tensors)
    for name, value in tensors.items():
        if _QUERIES.search(name) and len(value) > groups * config.num_queries and len(value) % groups == 0:
            cut[name] = value.view(groups, -1, value.shape[1])[:, : config.num_queries].flatten(0, 1)
    return cut
