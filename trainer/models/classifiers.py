"""Image classifiers, multi-class and multilabel: timm's networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import timm
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from trainer.models.catalog import find
from trainer.models.image_classifiers import BILINEAR, ImageClassifiers, common_options
from trainer.models.spec import Spec
from trainer.models.timm_models import config_of, published_weights
from trainer.models.weights.published import PublishedWeights
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.settings import Settings


class Classifiers(ImageClassifiers):
    """timm's networks."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.library_name = find(spec.model, spec.task).library_name

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        config = config_of(find(model, task).library_name)
        return common_options(
            settings, config.mean, config.std, config.interpolation if pretrained else BILINEAR
        )

    def options_at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        if config_of(self.library_name).fixed_input_size:
            self._keep_size(sizes, "crop_size")
        return super().options_at(sizes)

    def build(self) -> nn.Module:
        arguments: dict[str, Any] = {"num_classes": len(self.spec.classes)}
        if config_of(self.library_name).fixed_input_size:
            arguments["img_size"] = self.spec.options["crop_size"]  # the size of a ViT's position embedding
        network: nn.Module = timm.create_model(self.library_name, pretrained=False, **arguments)
        return network

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        """The classifier; a distilled network has two, whose logits it averages."""
        layers: dict[str, nn.Module] = {}
        heads = self.published().head
        for name, module in network.named_modules():
            head = next((head for head in heads if f"{name}.".startswith(f"{head}.")), None)
            if head is not None and isinstance(module, nn.Linear | nn.Conv2d):
                layers[head] = module  # the last, if the head has several
        return [(layer, 0.5) for layer in layers.values()]

    def published(self) -> PublishedWeights:
        return published_weights(self.library_name)

    def sync_batch_norms(self, network: nn.Module) -> nn.Module:
        """Convert by timm's function: PyTorch's would drop the activations inside timm's own batch norms."""
        convert: Callable[[nn.Module], nn.Module] = convert_sync_batchnorm
        return convert(network)

    def linear_head(self, network: nn.Module) -> nn.Linear | None:
        classifier: Callable[[], nn.Module] | None = getattr(network, "get_classifier", None)
        head = None if classifier is None else classifier()
        return head if isinstance(head, nn.Linear) and head.bias is not None else None

    def freeze_groups(self, network: nn.Module) -> list[list[nn.Module]]:
        """List ResNets' conv1+bn1, layer1–4; MobileNet's stem, blocks, head; ViTs' patch_embed, blocks.

        For other networks each child is a group, and each block of a sequence, up to the classifier.
        """
        children = dict(network.named_children())
        if "patch_embed" in children and "blocks" in children:
            return [[children["patch_embed"]], *([block] for block in children["blocks"].children())]
        if "conv_stem" in children and "conv_head" in children:
            blocks = [block for stage in children["blocks"].children() for block in stage.children()]
            head = [children["conv_head"], children["bn2"]]
            return [[children["conv_stem"], children["bn1"]], *([block] for block in blocks), head]
        if "conv1" in children and "layer4" in children:
            stem = [children[name] for name in ("conv1", "bn1") if name in children]
            return [stem, *([children[f"layer{i}"]] for i in range(1, 5))]
        classifier = {name.split(".")[0] for name in self.published().head}
        parts = [
            list(child.children()) if isinstance(child, nn.Sequential) else [child]
            for name, child in children.items()
            if name not in classifier
        ]
        return [[part] for group in parts for part in group if any(True for _ in part.parameters())]


FAMILY = Classifiers
