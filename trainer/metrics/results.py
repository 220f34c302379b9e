"""The result of an evaluation: one tree, written to `metrics.json` and read by the report.

    analysis = analyse_classes(task, classes, predictions, targets, records)   # in trainer.metrics.analysis
    path.write_text(analysis.to_json())
    Analysis.read(path).metrics["mean_average_precision"]

Undefined numbers are NaN in classification (null in JSON) and -1 in detection and segmentation. Images are
named by their index in the data, file and line (`test.jsonl:17`) and image_url. Boxes are normalised xyxy.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import RunError, problems_of
from trainer.metrics.intervals import Interval
from trainer.models.score_calibration import ScoreCalibration
from trainer.runs import MetricValue
from trainer.tasks import Task

Box = tuple[float, float, float, float]
"""left, top, right, bottom, each in [0, 1]."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)


class Curve(_Part):
    """A line through points with ascending x.

    Attributes:
        name: the class, or the average: micro, macro or weighted.
        x: coordinate of each point.
        y: coordinate of each point.
        scores: score threshold that leads to each point, for curves of single classes except calibration.
        counts: number of predictions behind each point of a calibration curve; else empty.
    """

    name: str
    x: list[MetricValue]
    y: list[MetricValue]
    scores: list[MetricValue] = []
    counts: list[int] = []


class ConfusionMatrix(_Part):
    """How often the class of each row was predicted as that of each column.

    Attributes:
        name: the class for multilabel, where each class has a matrix of two rows and columns; else empty.
        rows: names of the true classes.
        columns: names of the predicted classes; in detection and segmentation, the last is "Missed".
        counts: number of images, or in detection and segmentation of target objects, row by row.
        score_threshold: minimum score of the predictions; None in classification.
    """

    name: str = ""
    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    score_threshold: float | None = None


class Calibration(_Part):
    """How well scores match the frequency of correct predictions.

    Attributes:
        bins: number of bins of equal width.
        images: number of images.
        scores: number of scores: images, for multilabel images × classes, for detectors boxes.
        error: expected calibration error (ECE).
        temperature: best divisor of the logits; above 1 if the network is overconfident.
        bias: best number to add to the divided logits of a detector's scores; 0 for classifiers.
        log_loss: mean negative log-likelihood in nats.
        log_loss_scaled: log_loss at that temperature and bias, which were fitted to these images.
        error_scaled: ECE there.
        folds: number of parts of the images in the cross-fitting: the scores of each part are calibrated by a
            fit to the others; 0 if there are too few images.
        log_loss_cross_fitted: log_loss after cross-fitting, as is to be expected of other images.
        error_cross_fitted: ECE after cross-fitting.
        reliability: mean score → fraction of correct predictions, before and after cross-fitting.
    """

    bins: int
    images: int = 0
    scores: int = 0
    error: MetricValue
    temperature: MetricValue
    bias: MetricValue = 0.0
    log_loss: MetricValue
    log_loss_scaled: MetricValue
    error_scaled: MetricValue
    folds: int = 0
    log_loss_cross_fitted: MetricValue = math.nan
    error_cross_fitted: MetricValue = math.nan
    reliability: list[Curve] = []

    @property
    def fitted(self) -> ScoreCalibration:
        """The calibration that was fitted."""
        return ScoreCalibration(temperature=self.temperature, bias=self.bias)

    def summary(self) -> dict[str, float]:
        """What `result.json` keeps of it."""
        return {
            "temperature": self.temperature,
            "bias": self.bias,
            "images": float(self.images),
            "ece_before": self.error,
            "ece_after": self.error_scaled,
            "ece_after_cross_fitted": self.error_cross_fitted,
        }

    def in_words(self) -> str:
        """The expected calibration error before and after."""
        fitted = f"temperature {self.temperature:.3f}" + (f" and bias {self.bias:+.3f}" if self.bias else "")
        after = f"{self.error_scaled:.4f} on the {self.images:,} images of the fit"
        if self.folds:
            after = f"{self.error_cross_fitted:.4f} after (cross-fitted in {self.folds} parts; {after})"
        else:
            after += ", too few to cross-fit"
        return f"{fitted}: expected calibration error {self.error:.4f} before, {after}"


class ConfusedPair(_Part):
    """A class that was taken for another.

    Attributes:
        true: the true class.
        predicted: the class it was taken for.
        count: number of images or objects.
        share: their fraction of all images or objects of the true class.
        images: indices of some of the images, the most confident mistake first.
    """

    true: str
    predicted: str
    count: int
    share: float
    images: list[int]


class ErrorKind(_Part):
    """One of TIDE's kinds of errors of a detector (see `trainer.metrics.tide`).

    Attributes:
        kind: classification, localisation, both, duplicate, background or missed; or the totals, false
            positives and false negatives.
        count: number of predictions, or for missed and false negatives of objects.
        cost: gain in mean_average_precision if only the errors of this kind were fixed.
    """

    kind: str
    count: int
    cost: float


class Threshold(_Part):
    """A score threshold of a class, and its metrics there; -1 if undefined."""

    score: float
    f1: float
    precision: float
    recall: float


class _OfImage(_Part):
    image: int
    location: str = ""
    image_url: str = ""


class ImageNames(Protocol):
    """The names of images; `trainer.data.reading.records.Records` provides them."""

    def location(self, index: int) -> str:
        """File and line that name the image, such as `test.jsonl:17`."""

    def image_url(self, index: int) -> str:
        """The image_url as the data file has it."""


def name_fields(index: int, names: ImageNames | None) -> dict[str, Any]:
    """The fields by which an entry names its image."""
    if names is None:
        return {"image": index}
    return {"image": index, "location": names.location(index), "image_url": names.image_url(index)}


class Mistake(_OfImage):
    """A wrong prediction.

    Attributes:
        kind: "classification" for multi-class; "superfluous" (predicted but not present) or "overlooked" for
            multilabel; one of TIDE's kinds for detection and segmentation.
        predicted: the predicted class; empty if a class was overlooked.
        true: the true class; empty if there is none.
        score: score of the prediction in [0, 1]; for an overlooked class, 1 minus its probability.
        box: box of the predicted object.
        overlap: its IoU with the target that it is compared with.
    """

    kind: str
    predicted: str
    true: str
    score: float
    box: Box | None = None
    overlap: float | None = None


class WorstImage(_OfImage):
    """An image with many or serious mistakes.

    Attributes:
        loss: the image's loss in nats, for classification.
        right: number of correct predictions, in detection and segmentation at each class's best threshold.
        wrong: number of wrong predictions.
        missed: number of objects or classes that were not predicted.
        f1: F1 of these three numbers.
    """

    loss: float | None = None
    right: int
    wrong: int
    missed: int
    f1: float


class LabelIssue(_OfImage):
    """A label that is likely wrong, as the model confidently predicts something else: worth checking.

    Attributes:
        kind: "wrong class", "missing" (not labelled) or "superfluous" (labelled but likely not present); for
            objects also "badly placed".
        given: the label in the data; empty if it is missing.
        suggested: the model's label; empty if the label is superfluous.
        score: the model's confidence in [0, 1].
        box: box of the model's object.
        given_box: box of the object in the data.
    """

    kind: str
    given: str
    suggested: str
    score: float
    box: Box | None = None
    given_box: Box | None = None


class Slice(_Part):
    """The metrics on a part of the data.

    Attributes:
        by: what the data are sliced by: a JSON key, "object size" or "image size".
        value: its value in this slice.
        images: number of images.
        objects: number of target objects, without crowds; None in classification.
        metrics: the metrics as for the whole data; `figures` in JSON.
    """

    by: str
    value: str
    images: int
    objects: int | None = None
    metrics: dict[str, MetricValue] = Field(validation_alias="figures", serialization_alias="figures")


class Analysis(_Part):
    """The whole result of an evaluation; parts that do not apply to the task are empty or None.

    Attributes:
        images: number of images.
        objects: number of target objects, without crowds; None in classification.
        iou_threshold: minimum IoU for a match; None in classification.
        score_threshold: minimum score of the predictions, where curves end; None in classification.
        metrics: by the reference's names; `figures` in JSON.
        per_class: class name → metric → value.
        curves: by kind. Classification: roc (false positive rate → true positive rate), precision_recall
            (recall → precision), cumulative_gains (fraction of images → fraction of positives), lift
            (fraction of images → ratio to chance), calibration (mean probability → fraction of positives).
            Detection and segmentation: precision_recall, f1 (score threshold → F1) and image_level (recall →
            precision).
        confusion_matrices: one for multi-class; one per class for multilabel; in detection and segmentation
            one for each score threshold 0.0, 0.1 … 0.9.
        image_level: precision, recall and average_precision of "is any object in the image".
        errors: TIDE's kinds of errors and their cost.
        thresholds: score threshold of highest F1 of each class; classes without a match have none.
        served: for each class, the threshold that the model is served with, if a model was evaluated.
        mistakes: the most confident first.
        worst_images: the worst first.
        label_issues: the likeliest first.
        packaged_calibration: the validation images' scores before and after the calibration that is in the
            packaged model; None if it has none. `calibration` is of the scores as the model gives them.
        interval: confidence interval of the primary metric; None if it was not asked for or is undefined.
    """

    format: int = 1
    task: Task
    classes: list[str]
    images: int
    objects: int | None = None
    iou_threshold: float | None = None
    score_threshold: float | None = None
    metrics: dict[str, MetricValue] = Field(validation_alias="figures", serialization_alias="figures")
    per_class: dict[str, dict[str, MetricValue]]
    curves: dict[str, list[Curve]] = {}
    confusion_matrices: list[ConfusionMatrix] = []
    calibration: Calibration | None = None
    confused_pairs: list[ConfusedPair] = []
    image_level: dict[str, MetricValue] = {}
    errors: list[ErrorKind] = []
    thresholds: dict[str, Threshold] = {}
    served: dict[str, Threshold] = {}
    mistakes: list[Mistake] = []
    worst_images: list[WorstImage] = []
    label_issues: list[LabelIssue] = []
    slices: list[Slice] = []
    interval: Interval | None = None
    packaged_calibration: Calibration | None = None

    def to_json(self) -> str:
        """Convert to strict JSON, with null for NaN."""
        return self.model_dump_json(indent=1)

    @classmethod
    def read(cls, path: Path) -> Analysis:
        """Read what `to_json` wrote.

        Raises:
            RunError: the file is missing or is not an evaluation of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            details = "; ".join(map(str, problems_of(error)))
            raise RunError(f"{path}: is not an evaluation of this version: {details}") from error
