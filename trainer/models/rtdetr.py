"""RT-DETR, a transformer detector: ultralytics' networks and losses, trained by our own loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.ops import box_convert

from trainer.annotations import Detections, Image, Prediction
from trainer.models.family import in_float32, with_attributes
from trainer.models.geometry import Geometry, Preparation, stretched_to_square
from trainer.models.graphs import in_tensor
from trainer.models.heads import FOCAL_PRIOR
from trainer.models.tensors import as_float32, stretched
from trainer.models.training_items import Progress
from trainer.models.transfers import without_waits
from trainer.models.ultralytics_family import ASSETS, UltralyticsFamily
from trainer.models.weights.published import PublishedWeights
from trainer.scoring import ScoringParameters
from trainer.tasks import Task

# isort: split
# After ultralytics_family, which sets the environment that ultralytics reads on import.
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.nn.modules import AIFI, Conv
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils.loss import VarifocalLoss

if TYPE_CHECKING:
    from trainer.settings import Settings

HIDDEN, POINTS, HEADS = 256, 4, 8  # of the decoder, ultralytics' values
_LOSSES = {"class_loss": "loss_class", "box_loss": "loss_bbox", "giou_loss": "loss_giou"}
_RESNET_NAMES = (
    (r"^(conv|bn)1\.", r"model.0.layer.0.\1."),
    (r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.", r"model.\1.layer.\2.cv\4.\3."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"model.\1.layer.\2.shortcut.0.conv."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"model.\1.layer.\2.shortcut.0.bn."),
)
"""How torchvision names a ResNet's tensors, and how ultralytics does."""


class RTDETR(UltralyticsFamily):
    """Detectors that learn to give each object one of 300 boxes. Images are stretched to a square.

    There is no NMS, so nms_iou_threshold has no effect, and box_detections_per_image has none above 300.
    The losses draw noise from torch's global generator in training.
    """

    stretches = True

    @property
    def _resnet(self) -> str:
        """torchvision's name of the backbone; "" if it is not a ResNet."""
        name = self.architecture.removeprefix("rtdetr-")
        return name if name.startswith("resnet") else ""

    @staticmethod
    def options(task: Task, model: str, settings: Settings, pretrained: bool) -> dict[str, Any]:
        shared = UltralyticsFamily.options(task, model, settings, pretrained)
        return {**shared, "queries": 300, "decoder_layers": 6}

    @property
    def has_nms(self) -> bool:
        return False

    @property
    def max_boxes(self) -> int:
        return int(self.spec.options["queries"])

    def build(self) -> nn.Module:
        plan = self.plan()
        queries, layers = self.spec.options["queries"], self.spec.options["decoder_layers"]
        plan["head"][-1][3] = ["nc", HIDDEN, queries, POINTS, HEADS, layers]
        network: Any = self.prepared(_Network(plan, nc=len(self.spec.classes), verbose=False))
        network.criterion = _NamedLosses(nc=len(self.spec.classes), use_vfl=True)
        if self._resnet:
            _as_torchvision(network.model[: len(plan["backbone"])])
        built: nn.Module = network
        return built

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        """The scores of the encoder and of each decoder layer, with the paper's prior.

        ultralytics multiplies its logit by classes / 80, so that few classes would start near 0.5.
        """
        decoder: Any = network.get_submodule(self.last_layer().rstrip("."))
        return [(layer, FOCAL_PRIOR) for layer in (decoder.enc_score_head, *decoder.dec_score_head)]

    def published(self) -> PublishedWeights:
        parts = ("enc_score_head.", "dec_score_head.", "denoising_class_embed.")
        head = tuple(self.last_layer() + part for part in parts)
        if self._resnet:
            # ultralytics publishes none. As in the paper, the backbone starts from ImageNet's.
            url = get_model_weights(self._resnet).IMAGENET1K_V1.url
            return PublishedWeights(
                files=(url.rsplit("/", 1)[1],),
                url=url,
                head=head,
                covers=tuple(f"model.{layer}." for layer in range(len(self.plan()["backbone"]))),
                adapt=lambda tensors, _: _renamed_resnet(tensors),
            )
        file = f"{self.architecture}.pt"
        return PublishedWeights((file,), url=ASSETS + file, head=head)

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Stretch to the square; values in [0, 1]."""
        return stretched(image, self.spec.options["image_size"])

    def outputs(self, predictions: Tensor) -> list[Tensor]:
        """float32 [boxes, 6] for each image, by descending score: normalised cx, cy, w, h; score; class."""
        return list(predictions)

    def postprocess(self, output: Tensor, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        boxes, scores, labels = (each.cpu().numpy() for each in self._chosen(output, parameters))
        return Detections(geometry.boxes_to_image(boxes), labels, scores, geometry.image_size)

    def _chosen(self, output: Tensor, parameters: ScoringParameters) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes that reach the threshold: xyxy in tensor pixels [n, 4]; scores [n]; labels [n]."""
        chosen = output[: parameters.box_detections_per_image]  # in descending order of score
        chosen = chosen[chosen[:, 4] >= parameters.box_score_threshold]
        boxes = box_convert(chosen[:, :4], "cxcywh", "xyxy") * self.spec.options["image_size"]
        return boxes, chosen[:, 4], chosen[:, 5].long()

    def preparation(self) -> Preparation:
        return stretched_to_square(self.spec.options["image_size"])

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        (output,) = self.infer(network, list(images), parameters)
        boxes, scores, labels = self._chosen(output, parameters)
        return {"boxes": in_tensor(boxes, images), "scores": scores, "labels": labels}

    def parts_to_compile(self, network: nn.Module) -> list[nn.Module]:
        """The modules before the decoder, whose shapes depend on the number of objects in a batch."""
        return [network.get_submodule("before_decoder")]

    def library_losses(
        self, network: Any, batch: dict[str, Any], progress: Progress | None, predictions: Any = None
    ) -> dict[str, Tensor]:
        """Compute ultralytics' losses of the encoder and each decoder layer; in training also of denoising.

        ultralytics sums them over the layers. This is their mean, because a network from scratch would seem
        to diverge otherwise; for adamw, and with a clipped gradient norm, the two are equivalent.
        """
        # In eval mode only the decoder's last layer makes predictions.
        layers = 1 + (self.spec.options["decoder_layers"] if network.training else 1)
        device = batch["img"].device
        if predictions is None:  # backbone and encoder in the run's precision
            features = as_float32(network.before_decoder(batch["img"]))
            network = with_attributes(network, "", features=features)
        # The decoder passes on coordinates, which bfloat16 would round to 1/256 of the image.
        with in_float32(device), without_waits(device):
            network.criterion.vfl.weights = batch.get("shared", {}).get("class_weights")
            # ultralytics counts each image's objects, which on the device would wait for it each time.
            numbers = np.repeat(np.arange(len(batch["counts"])), batch["counts"])
            network.loss({**batch, "batch_idx": torch.from_numpy(numbers)}, predictions)
        named, network.criterion.named = network.criterion.named, {}
        return {
            name: torch.stack([loss for key, loss in named.items() if key.startswith(prefix)]).sum() / layers
            for name, prefix in _LOSSES.items()
        }


class _Network(RTDETRDetectionModel):
    """ultralytics' network with everything before the decoder as one module, which can be compiled.

    Attributes:
        features: the decoder's feature maps, if they are computed already.
    """

    features: list[Tensor] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.before_decoder = _BeforeDecoder(self.model, self.save)

    def predict(self, images: Tensor, *_: Any, batch: dict[str, Any] | None = None, **__: Any) -> Any:
        decoder = self.model[-1]
        if decoder.shapes and decoder.anchors.is_inference() and not torch.is_inference_mode_enabled():
            decoder.shapes = []  # drop an evaluation's anchors, through which no gradient passes
        features = self.before_decoder(images) if self.features is None else self.features
        with without_waits(images.device):
            return decoder(features, batch)


class _BeforeDecoder(nn.Module):
    """Backbone and encoder, which make the decoder's feature maps. The layers still belong to the network."""

    def __init__(self, model: Any, kept: Sequence[int]) -> None:
        super().__init__()
        *layers, decoder = model
        self.layers = layers  # in a plain list, so that PyTorch does not count their parameters twice
        self.kept, self.taken = frozenset(kept), list(decoder.f)

    def forward(self, images: Tensor) -> list[Tensor]:
        made: Any = images
        outputs: list[Any] = []
        for layer in self.layers:
            if isinstance(layer.f, list):
                made = layer([made if index == -1 else outputs[index] for index in layer.f])
            else:
                # The encoder computes its positions again each time.
                waits = isinstance(layer, AIFI) and not torch.compiler.is_compiling()
                with without_waits(images.device) if waits else nullcontext():
                    made = layer(made if layer.f == -1 else outputs[layer.f])
            outputs.append(made if layer.i in self.kept else None)
        return [outputs[index] for index in self.taken]


class _NamedLosses(RTDETRDetectionLoss):
    """Keeps all losses by name; ultralytics' network returns only some of them besides their sum."""

    named: dict[str, Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.vfl.__class__ = _WeighedVarifocalLoss  # which adds no state

    def forward(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        self.named = super().forward(*args, **options)
        return self.named


class _WeighedVarifocalLoss(VarifocalLoss):
    """Multiplies the loss of a query that has an object by the weight of the object's class.

    Attributes:
        weights: float32 [C], or None for ones.
    """

    weights: Tensor | None = None

    def forward(self, pred_score: Tensor, gt_score: Tensor, label: Tensor) -> Tensor:
        """ultralytics' loss of B × queries × C scores, and what the weights add to it."""
        loss: Tensor = super().forward(pred_score, gt_score, label)
        if self.weights is None:
            return loss
        entropy = F.binary_cross_entropy_with_logits(pred_score.float(), gt_score.float(), reduction="none")
        return loss + (entropy * gt_score * label * (self.weights - 1)).mean(1).sum()


def _as_torchvision(backbone: nn.Module) -> None:
    """Give ultralytics' ResNet the activation, ReLU, and the norms of ImageNet's weights."""
    for module in backbone.modules():
        if isinstance(module, Conv) and isinstance(module.act, nn.SiLU):
            module.act = nn.ReLU(inplace=True)
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5


def _renamed_resnet(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a torchvision ResNet's tensors ultralytics' names, without the classifier.

    The tensors of a whole RT-DETR stay as they are.
    """
    if "conv1.weight" not in tensors:
        return tensors
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in _RESNET_NAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return {key: value for key, value in renamed.items() if not key.startswith("fc.")}


FAMILY = RTDETR
