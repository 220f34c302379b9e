"""Builds `transformers`' Mask2Former and EoMT from the published networks' values, without a download."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, EomtForUniversalSegmentation, Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderLayer,
)

from trainer.models.family import in_float32, with_attributes
from trainer.models.transfers import without_waits
from trainer.models.transformers_loading import converted

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of each colour channel, as the library's image processors normalise for both architectures."""

HEADS = ("class_predictor.", "criterion.")
"""Prefixes of the tensors whose shape depends on the classes."""

_POSITIONS = "embeddings.position_embeddings.weight"
_UNUSED = ("attn_mask_probs", "model.pixel_level_module.encoder.swin.layernorm.")
"""Prefixes of tensors that nothing depends on, and that published files may lack."""


@dataclass(frozen=True, slots=True)
class PublishedSegmenter:
    """A published network.

    Attributes:
        architecture: the library's `model_type`.
        values: of its configuration, where it differs from the library's defaults. They are those that the
            library's conversion scripts (convert_*.py of each architecture) give the published checkpoints.
        hub: repository on the Hugging Face Hub.
        licence: of the weights, as the publisher states it.
    """

    architecture: str
    values: Mapping[str, Any]
    hub: str
    licence: str


def _mask2former(size: str, depths: tuple[int, ...]) -> PublishedSegmenter:
    backbone = {
        "model_type": "swin",
        "depths": list(depths),
        "drop_path_rate": 0.3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    # The licence: MODEL_ZOO.md of facebookresearch/Mask2Former. Its code is under the MIT licence.
    name = f"facebook/mask2former-swin-{size}-coco-instance"
    return PublishedSegmenter("mask2former", {"backbone_config": backbone}, name, "cc-by-nc-4.0")


def _eomt(
    name: str, width: int, layers: int, heads: int, with_queries: int, side: int = 640
) -> PublishedSegmenter:
    """A ViT.

    Args:
        with_queries: the number of its last layers that see the queries.
        side: of the images, in pixels.
    """
    values = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_blocks": with_queries,
        "image_size": side,
    }
    return PublishedSegmenter("eomt", values, f"tue-mps/{name}", "mit")


PUBLISHED: Mapping[str, PublishedSegmenter] = {
    "mask2former-swin-t": _mask2former("tiny", (2, 2, 6, 2)),
    "mask2former-swin-s": _mask2former("small", (2, 2, 18, 2)),
    # Of the smaller ones only panoptic weights are published, which differ in the classes alone.
    "eomt-small": _eomt("coco_panoptic_eomt_small_640_2x", 384, 12, 6, 3),
    "eomt-base": _eomt("coco_panoptic_eomt_base_640_2x", 768, 12, 12, 3),
    "eomt-large": _eomt("coco_instance_eomt_large_640", 1024, 24, 16, 4),
    "eomt-large-1280": _eomt("coco_instance_eomt_large_1280", 1024, 24, 16, 4, 1280),
}
"""Every published network by its name here."""


class Predictions(NamedTuple):
    """What one layer predicts.

    Attributes:
        classes: logits [B, queries, C + 1], the last of "no object".
        masks: logits [B, queries, h, w].
    """

    classes: Tensor
    masks: Tensor


def is_eomt(config: Any) -> bool:
    """Whether a configuration describes an EoMT, which takes images of one size, not a Mask2Former."""
    return bool(config.model_type == "eomt")


def configured(values: Mapping[str, Any]) -> Any:
    """The library's configuration with these values, of which `model_type` is the architecture."""
    own = dict(values)
    return AutoConfig.for_model(own.pop("model_type"), **own)


def step(config: Any) -> int:
    """Pixels of which the side of an image must be a multiple."""
    return int(config.patch_size) if is_eomt(config) else 32


def build(config: Any) -> nn.Module:
    """Build a network with random weights."""
    network: nn.Module = _build_eomt(config) if is_eomt(config) else _build_mask2former(config)
    return network


def _build_eomt(config: Any) -> Any:
    network: Any = EomtForUniversalSegmentation(config)
    # The authors train with masked attention, whose probability they lower to 0. The published networks are
    # at its end, so here it is never used.
    network.attn_mask_probs.zero_()
    # Behind the layers, so that layer_decay counts them as parts of the head, as the authors' rates do.
    for name in ("query", "layernorm"):
        network._modules[name] = network._modules.pop(name)
    return network


def _build_mask2former(config: Any) -> Any:
    network: Any = Mask2FormerForUniversalSegmentation(config)
    # Its results are not used; ranks would wait for its gradients.
    network.model.pixel_level_module.encoder.swin.layernorm.requires_grad_(False)
    decoder = network.model.pixel_level_module.decoder
    decoder.__class__ = _PixelDecoder
    for layer in decoder.encoder.layers:
        layer.__class__ = _PixelDecoderLayer
        layer.eval()
    return network


class _PixelDecoder(Mask2FormerPixelDecoder):
    """Runs in float32, as the authors run it: it passes on coordinates, which bfloat16 rounds to 1/256."""

    def forward(self, features: Any, **options: Any) -> Any:
        device = features[0].device
        with in_float32(device), without_waits(device):
            return super().forward([each.float() for each in features], **options)


class _PixelDecoderLayer(Mask2FormerPixelDecoderEncoderLayer):
    """Always in eval mode: in training it only adds a check for overflow of float16, which the GPU waits for.

    The published networks have no dropout here.
    """

    def train(self, mode: bool = True) -> Any:
        return super().train(False)


def final(network: Any, images: Tensor) -> Predictions:
    """What the last layer predicts."""
    if is_eomt(network.config):
        return _eomt_layers(network, images)[-1]
    output = network(images)
    return Predictions(output.class_queries_logits, output.masks_queries_logits)


def all_layers(network: Any, images: Tensor) -> list[Predictions]:
    """What the layers predict whose losses the library adds up; the final predictions are the last."""
    if is_eomt(network.config):
        return _eomt_layers(network, images, intermediate=network.training)
    output = network(images, output_auxiliary_logits=True)
    before = [
        Predictions(layer["class_queries_logits"], layer["masks_queries_logits"])
        for layer in output.auxiliary_logits
    ]
    return [*before, Predictions(output.class_queries_logits, output.masks_queries_logits)]


def _eomt_layers(network: Any, images: Tensor, *, intermediate: bool = False) -> list[Predictions]:
    """The predictions of an EoMT, as the library makes them where no attention is masked.

    In training mode the library makes masks nevertheless, all of them ones: hundreds of MB for each image.

    Args:
        intermediate: also those of the inputs of the layers that see the queries.
    """
    blocks = network.config.num_blocks
    inputs: list[Tensor] = []

    def recording(layer: nn.Module) -> Any:
        def run(hidden_states: Tensor, *arguments: Any) -> Any:
            inputs.append(hidden_states)
            return layer(hidden_states, *arguments)

        return run

    layers = [*network.layers[:-blocks], *map(recording, network.layers[-blocks:])]
    # As numbers of the CPU, which are not waited for.
    unmasked = with_attributes(network, "", training=False, layers=layers, attn_mask_probs=[0.0] * blocks)
    output = unmasked(images)
    found = []
    if intermediate:
        for hidden_states in inputs:
            masks, classes = network.predict(network.layernorm(hidden_states))
            found.append(Predictions(classes, masks))
    return [*found, Predictions(output.class_queries_logits, output.masks_queries_logits)]


def backbone_groups(network: Any) -> list[list[nn.Module]]:
    """The layers of the backbone from the input on: the image's embedding, then each stage or block."""
    if is_eomt(network.config):
        return [[network.embeddings], *([layer] for layer in network.layers)]
    backbone = network.model.pixel_level_module.encoder
    stages = zip(backbone.swin.encoder.layers, backbone.hidden_states_norms.values(), strict=True)
    return [[backbone.swin.embeddings], *([stage, norm] for stage, norm in stages)]


def parts_to_compile(network: Any) -> list[nn.Module]:
    """The modules in which most of the time is spent, whose shapes are those of the images."""
    return [*network.layers] if is_eomt(network.config) else [network.model.pixel_level_module.encoder]


def fitted(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Published tensors under the network's names, as the library's own loader converts them.

    An EoMT's positions are resampled to the network's grid, as the authors start from DINOv2's.
    """
    if is_eomt(network.config) and (positions := tensors.get(_POSITIONS)) is not None:
        tensors = {**tensors, _POSITIONS: _resampled(positions, network.grid_size[0])}
    # Older files hold Swin's indices, which follow from the size of its windows.
    tensors = {name: each for name, each in tensors.items() if not name.endswith("relative_position_index")}
    own = network.state_dict()
    if not own.keys() <= tensors.keys():
        tensors = converted(tensors, network)
    return {**tensors, **{name: value for name, value in own.items() if name.startswith(_UNUSED)}}


def _resampled(positions: Tensor, side: int) -> Tensor:
    """Position embeddings [n, d] of a square → those of a square of `side` × `side` positions."""
    published = math.isqrt(len(positions))
    if published**2 != len(positions) or side == published:
        return positions
    grid = positions.float().view(1, published, published, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return grid[0].flatten(1).T.to(positions.dtype).contiguous()
