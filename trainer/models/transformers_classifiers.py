"""Image classifiers of the Hugging Face Hub: transformers' networks, built from their config.json.

No code of a repository is ever run: only architectures that transformers itself has are built.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from trainer.errors import JobError, Problem, RunError
from trainer.models.cards.transformers_classifiers import sizes
from trainer.models.image_classifiers import ImageClassifiers, common_options
from trainer.models.spec import Spec
from trainer.models.transformers_preprocessing import Preprocessor
from trainer.models.weights.description import Description
from trainer.models.weights.published import PublishedWeights
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings

_OTHER_INPUTS = ("dinat", "imagegpt", "perceiver", "pp_lcnet", "shieldgemma2", "siglip2", "timm_wrapper")
"""Types whose networks take more than images, give no logits or need a library that is not installed."""
_UNUSED = ("mask_token", "vision_model.post_layernorm", "vision_model.head.")
"""Parts of the names of parameters that no logit depends on; DDP would wait for their gradients."""
_WITHOUT_DECAY = ("cls_token", "position_embedding", "distillation_token", "relative_position_bias_table")


class HubNetwork(nn.Module):
    """A classifier of transformers that takes images [N, 3, h, w] and returns logits [N, C].

    Args:
        size: of the published images, in pixels; 0 if the network has no size of its own.
        reverses_channels: the published weights are for images whose channels are blue, green, red.
    """

    def __init__(self, model: Any, size: int, *, reverses_channels: bool) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.reverses_channels = reverses_channels
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        pooler = getattr(self.body, "pooler", None)
        # The channels of the feature map that the head pools; 0 if there is no such map.
        self.num_features = 0
        if isinstance(pooler, nn.AdaptiveAvgPool2d) and isinstance(
            getattr(model, "classifier", None), nn.Module
        ):
            heads = [layer for layer in model.classifier.modules() if isinstance(layer, nn.Linear)]
            self.num_features = heads[-1].in_features if heads else 0

    @property
    def body(self) -> nn.Module:
        """The network before its head."""
        for name in (self.model.base_model_prefix, "vision_model"):
            if isinstance(body := getattr(self.model, name, None), nn.Module):
                return body
        model: nn.Module = self.model
        return model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(
            pixel_values=self._channels(images), **self._size_arguments(images)
        ).logits
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """The last features; [N, num_features, rows, columns] of a convolutional network."""
        features: Tensor = self.body(self._channels(images), **self._size_arguments(images))[0]
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits [N, C] of a feature map."""
        pooler = self.body.get_submodule("pooler")
        logits: Tensor = self.model.classifier(pooler(features).flatten(1))
        return logits

    def no_weight_decay(self) -> set[str]:
        """The names of parameters that are not decayed: tokens and position embeddings."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in _WITHOUT_DECAY)}

    def _channels(self, images: Tensor) -> Tensor:
        return images.flip(1) if self.reverses_channels else images

    def _size_arguments(self, images: Tensor) -> dict[str, bool]:
        is_other_size = self.size and tuple(images.shape[-2:]) != (self.size, self.size)
        return {"interpolate_pos_encoding": True} if self.interpolates and is_other_size else {}


class TransformersClassifiers(ImageClassifiers):
    """transformers' networks for image classification.

    `options["hub"]` holds the Description of the model, so that a packaged model needs no files of the Hub.
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
        _network_class(description)  # raises if there is none
        normalisation = Preprocessor(description)
        common = common_options(settings, normalisation.mean, normalisation.std, normalisation.interpolation)
        published = sizes(description)[1]
        for name in ("validation_crop_size", "training_crop_size"):
            size = getattr(settings, name)
            if size != published and (obstacle := _rejection(description, size)):
                rule = f"must be {published} for {model}, whose network rejects other images: {obstacle}"
                raise JobError("the settings cannot be used:", [Problem("", name, rule, str(size))])
        return {
            **common,
            **({"stretches": True} if normalisation.stretches else {}),
            **({"reverses_channels": True} if normalisation.reverses_channels else {}),
            "hub": description.to_dict(),
        }

    def options_at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        size = sizes.get("crop_size", self.spec.options["crop_size"])
        is_other = size != self.spec.options["crop_size"]
        if is_other and (obstacle := _rejection(self.description, size)):
            raise RunError(f"{self.spec.model} takes no images of {size} pixels: {obstacle}")
        return super().options_at(sizes)

    def build(self) -> nn.Module:
        return _build(self.description, len(self.spec.classes), self.spec.options)

    def published(self) -> PublishedWeights:
        name = self.description.name
        return PublishedWeights(
            files=(f"{name}/model.safetensors",),
            hub=self.description.pinned_name,
            head=tuple(self._heads),
            convert=self._convert,
        )

    @cached_property
    def _heads(self) -> list[str]:
        """The names of the layers whose shape depends on the number of classes; some networks have two."""
        with torch.device("meta"):
            two, three = (_build(self.description, count, {}).state_dict() for count in (2, 3))
        changed = [name for name, value in two.items() if value.shape != three[name].shape]
        return list(dict.fromkeys(name.rpartition(".")[0] for name in changed))

    def _convert(self, tensors: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Name a file's tensors as this version of transformers names them."""
        config = _config(self.description, int(self.description.config.get("num_labels") or 2))
        with _quiet():
            model, info = _network_class(self.description).from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        unread = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        parts = {name for name, _ in model.named_modules()}
        # Extra layers mean that the file is a deeper network's; an extra pooler or head is simply not used.
        deeper = [
            key
            for key in info["unexpected_keys"]
            if key.split(".")[0] in parts and any(map(str.isdecimal, key.split(".")))
        ]
        state = {key: value.float() for key, value in model.state_dict().items() if key not in unread}
        state |= dict.fromkeys(deeper, torch.empty(0))
        # A head of another number of classes than config.json says is reported as such.
        heads = tuple(f"{head.removeprefix('model.')}." for head in self._heads)
        state |= {key: value for key, value in tensors.items() if key in unread and key.startswith(heads)}
        left = [key for key in info["unexpected_keys"] if key not in deeper]
        return {f"model.{key}": value for key, value in state.items()}, left

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        layers = [network.get_submodule(name) for name in self._heads]
        return [(layer, 0.5) for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]

    def linear_head(self, network: nn.Module) -> nn.Linear | None:
        layers = [layer for layer, _ in self.class_layers(network)]
        head = layers[0] if len(layers) == 1 else None
        return head if isinstance(head, nn.Linear) and head.bias is not None else None

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """List the embeddings, then each layer of a ViT or stage of a convolutional or pyramid network."""
        assert isinstance(network, HubNetwork)
        return _groups(network.body, {network.get_submodule(name) for name in self._heads})


def _groups(module: nn.Module, without: Collection[nn.Module]) -> list[list[nn.Module]]:
    """The parts of a network in their order; of lists of equal length, the parts with one index together."""
    children = [
        child
        for child in module.children()
        if any(True for _ in child.parameters()) and not any(part in without for part in child.modules())
    ]
    lists = [child for child in children if isinstance(child, nn.ModuleList)]
    if len(lists) > 1 and len({len(each) for each in lists}) == 1:
        return [[*parts] for parts in zip(*lists, strict=True)]
    groups: list[list[nn.Module]] = []
    for child in children:
        if isinstance(child, nn.ModuleList):
            groups += [[part] for part in child]
        elif any(isinstance(part, nn.ModuleList) for part in child.children()):
            groups += _groups(child, without)
        else:
            groups.append([child])
    return groups


def _network_class(description: Description) -> Any:
    """transformers' class of a description's network.

    Raises:
        JobError: it has none for image classification.
    """
    kind = str(description.config.get("model_type", ""))
    usable = [name for name in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES if name not in _OTHER_INPUTS]
    if kind not in usable:
        rule = (
            f"{description.name}: its config.json must be of an image classifier that transformers "
            f"{transformers.__version__} has; code from the Hub is never run"
        )
        hint = f"model_type must be one of {', '.join(usable)}"
        raise JobError("the model cannot be used", [Problem("model_name", "", rule, repr(kind), hint)])
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[transformers.CONFIG_MAPPING[kind]]
    if not isinstance(classes, tuple):
        return classes
    named = description.config.get("architectures") or []
    return next((each for each in classes if each.__name__ in named), classes[0])


def _config(description: Description, classes: int) -> Any:
    content = {**description.config, "num_labels": classes}
    try:
        return transformers.CONFIG_MAPPING[content["model_type"]].from_dict(content)
    except Exception as error:  # the library's checks of values raise an error of huggingface_hub
        rule = f"the config.json of {description.name} must describe a {content['model_type']}"
        problem = Problem("model_name", "", rule, str(error).partition("\n")[0], "download it again")
        raise JobError("the model cannot be used", [problem]) from error


def _build(description: Description, classes: int, options: Mapping[str, Any]) -> HubNetwork:
    config = _config(description, classes)
    model = _network_class(description)(config)
    for name, parameter in model.named_parameters():
        if any(part in name for part in _UNUSED):
            parameter.requires_grad_(False)
    size = getattr(config, "image_size", None)
    if isinstance(size, (list, tuple)):
        size = size[0]
    return HubNetwork(model, size or 0, reverses_channels=bool(options.get("reverses_channels")))


def _rejection(description: Description, size: int) -> str:
    """Why a network rejects images of a size; "" if it accepts them. Tried on PyTorch's meta device."""
    with torch.device("meta"), torch.no_grad():
        network = _build(description, 2, {}).eval()
        try:
            network(torch.zeros(1, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            return str(error).partition("\n")[0]
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's reports and progress bars: what is loaded is reported by `weights.loading`."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


FAMILY = TransformersClassifiers
