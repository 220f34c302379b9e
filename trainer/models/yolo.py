"""YOLO detectors and segmenters: ultralytics' networks and losses, trained by our own loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import boxes as box_ops

from trainer.annotations import Detections, Image, Prediction
from trainer.models.family import in_float32, with_attributes
from trainer.models.geometry import Geometry, Preparation
from trainer.models.graphs import cut_to, in_tensor, traceable_nms, widened
from trainer.models.masks import logit, paste_prototypes
from trainer.models.spec import Spec
from trainer.models.tensors import as_float32
from trainer.models.training_items import Progress
from trainer.models.transfers import without_waits
from trainer.models.ultralytics_family import ASSETS, UltralyticsFamily
from trainer.models.weights.published import PublishedWeights
from trainer.scoring import ScoringParameters

# isort: split
# After ultralytics_family, which sets the environment that ultralytics reads on import.
from ultralytics.nn.tasks import DetectionModel, SegmentationModel
from ultralytics.utils.loss import E2ELoss

GREY = 114  # the colour of ultralytics' padding
PUBLISHED_CLASSES = 80  # COCO's


class Output(NamedTuple):
    """One image's raw output.

    Attributes:
        rows: float32 [anchors, 6 (+ 32)]: centre x and y, width, height in tensor pixels, the best class's
            score, that class and mask coefficients; of an end-to-end network [detections, 6 (+ 32)], by
            descending score, with left, top, right and bottom in place of the first four.
        prototypes: float32 [32, h/4, w/4], or None for a detector without masks.
    """

    rows: Tensor
    prototypes: Tensor | None


class YOLO(UltralyticsFamily):
    """One-stage detectors. Images keep their aspect ratio inside a grey square.

    YOLO26 is end-to-end: a second head learns to give each object one box. There is no NMS, so
    nms_iou_threshold has no effect.
    """

    sums_losses = True
    stretches = False

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.end_to_end = bool(self.plan().get("end2end"))
        self._head = self.last_layer().rstrip(".")

    @property
    def has_nms(self) -> bool:
        return not self.end_to_end

    def build(self) -> nn.Module:
        model = SegmentationModel if self.masks else DetectionModel
        # The number of classes determines the width of the whole classification branch. Building it for the
        # published number leaves only its last layer without published weights, as ultralytics' trainer does.
        network = model(self.plan(), nc=PUBLISHED_CLASSES, verbose=False)
        head = network.model[-1]
        head.nc = len(self.spec.classes)
        head.no = head.nc + 4 * head.reg_max
        for branch, _ in self._class_branches(network):
            branch[-1] = nn.Conv2d(branch[-1].in_channels, head.nc, 1)
        head.bias_init()
        head.end2end = self.end_to_end
        head.max_det = self.spec.parameters.box_detections_per_image
        return self.prepared(network)

    def class_layers(self, network: nn.Module) -> list[tuple[nn.Module, float]]:
        """The last layer of each level's branch of classes, and of YOLO26's classes of pixels."""
        return [(branch[-1], prior) for branch, prior in self._class_branches(network)]

    def _class_branches(self, network: nn.Module) -> list[tuple[Any, float]]:
        """The branches that predict classes, with their priors.

        These are ultralytics': on each level five objects among the cells of 640 × 640 pixels.
        """
        head: Any = network.get_submodule(self._head)
        priors = [5 / len(self.spec.classes) / (640 / float(stride)) ** 2 for stride in head.stride]
        branches: list[tuple[Any, float]] = list(zip(head.cv3, priors, strict=True))
        branches += zip(getattr(head, "one2one_cv3", None) or (), priors, strict=False)
        if hasattr(head.proto if self.masks else None, "semseg"):
            branches.append((head.proto.semseg, 0.5))
        return branches

    def published(self) -> PublishedWeights:
        file = f"{self.architecture}{'u' if self.architecture.startswith('yolov5') else ''}.pt"
        head = tuple(self.last_layer() + part for part in ("cv3.", "one2one_cv3.", "proto.semseg."))
        return PublishedWeights(files=(file,), url=ASSETS + file, head=head)

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Fit into the square, keeping the aspect ratio, centred on grey; values in [0, 1]."""
        side = self.spec.options["image_size"]
        height, width = image.shape[:2]
        scale = side / max(height, width)
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
        if scale != 1:
            resized = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
            image = np.asarray(resized, dtype=np.uint8)
        top, left = (side - new_height) // 2, (side - new_width) // 2
        canvas = np.full((side, side, 3), GREY, dtype=np.uint8)
        canvas[top : top + new_height, left : left + new_width] = image
        geometry = Geometry(
            (height, width), (side, side), (new_width / width, new_height / height), (float(left), float(top))
        )
        return torch.from_numpy(canvas).permute(2, 0, 1).contiguous().float() / 255, geometry

    def outputs(self, predictions: Any) -> list[Output]:
        rows, prototypes = predictions if self.masks else (predictions, [None] * len(predictions))
        if not self.end_to_end:
            # Find each anchor's best class on the device: copying the scores of all classes takes longer.
            boxes, scores, coefficients = rows.transpose(1, 2).tensor_split(
                (4, 4 + len(self.spec.classes)), dim=2
            )
            best, labels = scores.max(dim=2, keepdim=True)
            rows = torch.cat([boxes, best, labels.to(best.dtype), coefficients], dim=2)
        return [Output(*pair) for pair in zip(rows, prototypes, strict=True)]

    def limited(self, network: nn.Module, parameters: ScoringParameters) -> nn.Module:
        """The network with a request's number of boxes, which an end-to-end head applies itself."""
        most = parameters.box_detections_per_image
        # A copy of the head would not keep the anchors that it makes for a batch's shape.
        if not self.end_to_end or network.get_submodule(self._head).max_det == most:
            return network
        return with_attributes(network, self._head, max_det=most)

    def postprocess(self, output: Output, geometry: Geometry, parameters: ScoringParameters) -> Prediction:
        """Keep boxes that reach the threshold, by descending score; after NMS unless end-to-end."""
        chosen = self._chosen(output.rows, parameters)
        corners, scores, labels, coefficients = (each.cpu().numpy() for each in chosen)
        boxes = geometry.boxes_to_image(corners)
        masks = None
        if output.prototypes is not None:
            prototypes = output.prototypes.cpu().numpy()
            threshold = parameters.mask_pixel_score_threshold
            masks = tuple(
                paste_prototypes(box, row, prototypes, geometry, threshold)
                for box, row in zip(boxes, coefficients, strict=True)
            )
        return Detections(boxes, labels, scores, geometry.image_size, masks)

    def _chosen(self, rows: Tensor, parameters: ScoringParameters) -> _Chosen:
        if self.end_to_end:
            return _ranked(rows, parameters)
        return _suppressed(rows, parameters)

    def preparation(self) -> Preparation:
        side = self.spec.options["image_size"]
        rule = "keep the aspect ratio, centre in the square"
        resizing = {"rule": rule, "side": side, "fill": GREY, "interpolation": "bilinear"}
        return Preparation(resizing, (side, side))

    def graph(self, network: nn.Module, images: Tensor, parameters: ScoringParameters) -> dict[str, Tensor]:
        if self.end_to_end:
            head: Any = network.get_submodule(self._head)
            head.max_det = parameters.box_detections_per_image
        (output,) = self.outputs(network(images)[0])
        with traceable_nms():
            boxes, scores, labels, coefficients = self._chosen(output.rows, parameters)
        boxes = in_tensor(boxes, images)
        detections = {"boxes": boxes, "scores": scores, "labels": labels}
        if output.prototypes is not None:
            grids = torch.einsum("nk,khw->nhw", coefficients, output.prototypes)
            covered = widened(grids, images) >= logit(parameters.mask_pixel_score_threshold)
            detections["masks"] = cut_to(boxes, covered)
        return detections

    def library_losses(
        self, network: Any, batch: dict[str, Any], progress: Progress | None, predictions: Any = None
    ) -> dict[str, Tensor]:
        """Compute ultralytics' own losses.

        In training an end-to-end network's two heads weigh 0.8 and 0.2 in the first epoch, 0.1 and 0.9 in the
        last; in validation only the second counts, which makes the predictions.
        """
        images = batch["img"]
        if predictions is None:
            predictions = network(images)
        criterion = getattr(network, "criterion", None)
        if criterion is None or getattr(criterion, "one2one", criterion).device != images.device:
            # It keeps tensors on the device for which it was made.
            criterion = network.criterion = network.init_criterion()
        heads = [criterion]
        if isinstance(criterion, E2ELoss):
            heads = [criterion.one2many, criterion.one2one]
            if progress is not None:
                network.args.epochs = progress.epochs
                criterion.updates = progress.epoch - 1
                criterion.update()
            else:
                criterion.o2m, criterion.o2o = 0.0, 1.0
        for head in heads:
            # Not ultralytics' own class_weights, which also weigh the background of a class's scores.
            head.bce.pos_weight = batch.get("shared", {}).get("class_weights")
            head.preprocess = partial(_in_pixels, batch["targets"])
            if self.masks:
                head.calculate_segmentation_loss = partial(_mask_loss, head.single_mask_loss)
        # The criterion decodes boxes, for which bfloat16 has too few digits.
        with in_float32(images.device), without_waits(images.device):
            losses, names = network.loss(batch, as_float32(predictions))
        return {name: loss / len(images) for name, loss in zip(names, losses, strict=True)}


def _in_pixels(padded: Tensor, _targets: Tensor, _images: int, scale_tensor: Tensor) -> Tensor:
    """Do what `preprocess` of ultralytics' losses does, without counting objects, which waits for the GPU.

    Args:
        padded: a batch's "targets".
        scale_tensor: width, height, width, height of the images in pixels.
    """
    boxes = box_ops.box_convert(padded[..., 1:] * scale_tensor, "cxcywh", "xyxy")
    return torch.cat([padded[..., :1], boxes], dim=2)


def _mask_loss(
    of_image: Callable[..., Tensor],
    chosen: Tensor,
    masks: Tensor,
    objects: Tensor,
    boxes: Tensor,
    _batch_idx: Tensor,
    prototypes: Tensor,
    coefficients: Tensor,
    size: Tensor,
) -> Tensor:
    """Do what `calculate_segmentation_loss` of ultralytics' losses does, without its five waits per image.

    Args:
        of_image: ultralytics' loss of an image: of n target masks [n, h, w], coefficients [n, 32], prototypes
            [32, h, w], boxes [n, 4] in pixels of the masks, and their areas [n] as fractions of the image.
        chosen: the anchors that have an object, [B, anchors].
        masks: for each pixel the number of its object, from 1, or 0: [B, h, w].
        objects: the number of each anchor's object, from 0: [B, anchors].
        boxes: each anchor's target, xyxy in pixels: [B, anchors, 4].
        size: height and width of the images in pixels.
    """
    height, width = prototypes.shape[2:]
    index = chosen.nonzero(as_tuple=True)
    normalised = boxes[index] / size[[1, 0, 1, 0]]
    areas = (normalised[:, 2:] - normalised[:, :2]).prod(1)
    corners = normalised * torch.tensor([width, height, width, height], device=boxes.device)
    numbers, own = objects[index] + 1, coefficients[index]
    loss = (prototypes * 0).sum() + (coefficients * 0).sum()  # all parameters have gradients
    start = 0
    for image, count in enumerate(chosen.sum(1).tolist()):
        part = slice(start, start + count)
        start += count
        if count:
            targets = (masks[image] == numbers[part, None, None]).float()
            loss = loss + of_image(targets, own[part], prototypes[image], corners[part], areas[part])
    return loss / chosen.sum()


_Chosen = tuple[Tensor, Tensor, Tensor, Tensor]
"""Boxes by descending score: xyxy in tensor pixels [n, 4], scores [n], labels [n], coefficients [n, k]."""


def _ranked(rows: Tensor, parameters: ScoringParameters) -> _Chosen:
    """The boxes of an end-to-end network, which ranks them itself."""
    rows = rows[rows[:, 4] >= parameters.box_score_threshold]
    boxes, scores, labels, coefficients = rows.tensor_split((4, 5, 6), dim=1)
    return boxes, scores[:, 0], labels[:, 0].long(), coefficients


def _suppressed(rows: Tensor, parameters: ScoringParameters) -> _Chosen:
    """The boxes that reach the threshold, after NMS in each class."""
    rows = rows[rows[:, 4] >= parameters.box_score_threshold]
    boxes, scores, labels, coefficients = rows.tensor_split((4, 5, 6), dim=1)
    scores, labels = scores[:, 0], labels[:, 0].long()
    boxes = box_ops.box_convert(boxes, "cxcywh", "xyxy")
    chosen = box_ops.batched_nms(boxes, scores, labels, parameters.nms_iou_threshold)
    chosen = chosen[: parameters.box_detections_per_image]
    return boxes[chosen], scores[chosen], labels[chosen], coefficients[chosen]


FAMILY = YOLO
