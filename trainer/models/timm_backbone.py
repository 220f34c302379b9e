"""timm's networks as backbones of torchvision's detectors, in the place of a ResNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.layers.norm_act import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from trainer.errors import JobError, Problem
from trainer.models.catalog import TIMM
from trainer.models.timm_models import config_of, published_weights
from trainer.models.weights.published import PublishedWeights

_STRIDES = (4, 8, 16, 32)
_CHANNELS = 256  # of every level of torchvision's pyramids
_BODY = "backbone.body."


class TimmPyramid(nn.Module):
    """A timm network with a feature pyramid: what torchvision calls a BackboneWithFPN, with random weights.

    `body` has timm's own names of modules and tensors, without what follows the last feature map.
    """

    def __init__(self, backbone: str, *, one_stage: bool, version_2: bool, frozen_norms: bool) -> None:
        """
        Args:
            backbone: timm/NAME.
            one_stage: levels of strides 8 to 128, as RetinaNet and FCOS have them, instead of 4 to 64.
            version_2: the pyramid of torchvision's improved networks.
            frozen_norms: batch norms keep their statistics, weights and biases.
        """
        super().__init__()
        body = _build(backbone)
        indices = _indices(body)
        self.indices = indices[1:] if one_stage else indices  # one-stage detectors start at stride 8
        infos = _infos(body)
        channels = [infos[index]["num_chs"] for index in self.indices]
        body.prune_intermediate_layers(self.indices, prune_norm=True)
        freeze_norms: Callable[[nn.Module], nn.Module] = freeze_batch_norm_2d
        self.body: Any = freeze_norms(body) if frozen_norms else body
        self.fpn = FeaturePyramidNetwork(
            channels,
            _CHANNELS,
            LastLevelP6P7(channels[-1] if version_2 else _CHANNELS, _CHANNELS)
            if one_stage
            else LastLevelMaxPool(),
            norm_layer=nn.BatchNorm2d if version_2 and not one_stage else None,
        )
        self.out_channels = _CHANNELS

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps [N, C, H, W] of images [N, 3, h, w], by increasing stride."""
        maps: list[Tensor] = self.body.forward_intermediates(
            images, indices=self.indices, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.feature_maps(images)
        levels: dict[str, Tensor] = self.fpn({str(index): level for index, level in enumerate(maps)})
        return levels


def options(backbone: str) -> dict[str, Any]:
    """The values of a detector's `Spec.options` that its backbone decides.

    Args:
        backbone: timm/NAME.

    Raises:
        JobError: timm has no such model, or it cannot be a backbone.
    """
    config = config_of(_name(backbone), "backbone")
    _check(backbone)
    return {"backbone": backbone, "mean": list(config.mean), "std": list(config.std)}


def published(backbone: str, head: tuple[str, ...]) -> PublishedWeights:
    """The classifier that timm publishes, of which a detector takes the backbone.

    Args:
        head: prefixes of the detector's tensors whose shape depends on the classes.
    """
    of_classifier = published_weights(_name(backbone))
    adapt = partial(_body_of, backbone=backbone, resample=of_classifier.adapt)
    return replace(of_classifier, head=head, adapt=adapt, covers=(_BODY,))


def freeze_groups(body: nn.Module) -> list[list[nn.Module]]:
    """What precedes the stage with the first feature map, then the stages of strides 4, 8, 16 and 32.

    Raises:
        ValueError: the feature maps do not come from such stages.
    """
    order = {id(module): place for place, (_, module) in enumerate(body.named_modules())}
    infos = _infos(body)
    try:
        stages = [body.get_submodule(infos[index]["module"]) for index in _indices(body)]
    except AttributeError as error:  # an HRNet's are made side by side; Twins and MViTs name no modules
        raise ValueError("they do not come from stages that follow one another") from error
    ends = [max(order[id(module)] for module in stage.modules()) for stage in stages]
    bounds = [order[id(stages[0])] - 1, *ends[:-1]]

    def group_of(module: nn.Module) -> int:
        return sum(order[id(module)] > bound for bound in bounds)

    groups: list[list[nn.Module]] = [[] for _ in range(len(bounds) + 1)]
    pending = [body]
    while pending:
        module = pending.pop()
        owners = {group_of(part) for part in module.modules() if part._parameters or part._buffers}
        if len(owners) == 1:
            groups[owners.pop()].append(module)
        else:
            pending += reversed(list(module.children()))
    return groups


def sync_batch_norms(network: nn.Module) -> nn.Module:
    """Convert by timm's function: PyTorch's would drop the activations inside timm's own batch norms."""
    convert: Callable[[nn.Module], nn.Module] = convert_sync_batchnorm
    return convert(network)


def _name(backbone: str) -> str:
    return backbone.removeprefix(TIMM)


def _build(backbone: str) -> Any:
    """The network without a classifier, for images of any size where timm can build it so."""
    name = _name(backbone)
    if config_of(name, "backbone").fixed_input_size:
        try:
            return timm.create_model(name, num_classes=0, strict_img_size=False)
        except TypeError:  # a model without this argument
            pass
    return timm.create_model(name, num_classes=0)


def _infos(body: Any) -> list[dict[str, Any]]:
    """timm's descriptions of a network's feature maps: num_chs, reduction (the stride) and module."""
    infos: list[dict[str, Any]] = getattr(body.feature_info, "info", body.feature_info)
    return infos


def _indices(body: Any) -> list[int]:
    """The last feature map of each stride.

    Raises:
        ValueError: there is none for some of the strides.
    """
    last = {info["reduction"]: index for index, info in enumerate(_infos(body))}
    if not last.keys() >= set(_STRIDES):
        raise ValueError(f"its feature maps have strides {', '.join(map(str, last)) or 'that it hides'}")
    return [last[stride] for stride in _STRIDES]


@cache
def _check(backbone: str) -> None:
    """Check, without memory for weights, that a network gives feature maps for images of any size.

    Raises:
        JobError: it does not.
    """
    height, width = 96, 160  # a multiple of the last stride, as detectors pad images, and no usual size
    expected = [(height // stride, width // stride) for stride in _STRIDES]
    try:
        with torch.device("meta"), torch.no_grad():
            pyramid = TimmPyramid(backbone, one_stage=False, version_2=False, frozen_norms=False).eval()
            maps = pyramid.feature_maps(torch.empty(1, 3, height, width))
        freeze_groups(pyramid.body)  # whose maps come from modules that follow one another
        sizes = [tuple(level.shape[-2:]) for level in maps]
        if sizes != expected:
            raise ValueError(f"images of {height} × {width} pixels give maps of {sizes}")
    except Exception as error:  # the code of a thousand models
        reason = str(error).partition("\n")[0] or type(error).__name__
        rule = f"must have feature maps of strides 4, 8, 16 and 32 for images of any size, but {reason}"
        hint = f"take another, such as {TIMM}convnext_tiny, {TIMM}efficientnet_b0 or {TIMM}resnet50"
        problem = Problem("backbone", "", rule, backbone, hint)
        raise JobError("the model cannot be used", [problem]) from error


def _body_of(
    state: Mapping[str, Tensor],
    network: nn.Module,
    *,
    backbone: str,
    resample: Callable[..., dict[str, Tensor]] | None,
) -> dict[str, Tensor]:
    """A classifier's tensors under the names of a detector's backbone; a detector's own are left alone.

    Of tensors that the backbone lacks, only the classifier's are dropped: another network's are noticed.
    """
    own = network.state_dict()
    if any(key in own for key in state):
        return dict(state)
    if resample is not None:
        state = resample(dict(state), network.get_submodule(_BODY.rstrip(".")))
    with torch.device("meta"):
        classifier = timm.create_model(_name(backbone)).state_dict()
    unused = {key for key in classifier if _BODY + key not in own}
    return {_BODY + key: value for key, value in state.items() if key not in unused}
