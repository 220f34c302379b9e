"""What an evaluation found, as one tree that is written to `metrics.json` and read by the report.

    analysis = analyse(task, classes, predictions, truths, sources=records)   # trainer.metrics.analysis
    path.write_text(analysis.to_json())
    Analysis.read(path).metrics["mean_average_precision"]

Numbers that are undefined are NaN in classification (null in JSON) and -1 in detection and segmentation.
An image is named by its index in the data, the place where it was read (`test.jsonl:17`) and its image_url;
boxes are normalised xyxy.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import RunError
from trainer.runs import MetricValue
from trainer.tasks import Task

Box = tuple[float, float, float, float]
"""left, top, right, bottom, each in [0, 1]."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)


class Curve(_Part):
    """A line through points, x rising.

    Attributes:
        name: of the class, or the average: micro, macro or weighted.
        x: of each point.
        y: of each point.
        scores: the score threshold that leads to each point, for ROC and precision-recall curves of single
            classes; else empty.
        counts: how many predictions each point of a calibration curve stands for; else empty.
    """

    name: str
    x: list[MetricValue]
    y: list[MetricValue]
    scores: list[MetricValue] = []
    counts: list[int] = []


class ConfusionMatrix(_Part):
    """How often each row's (true) class was taken for each column's.

    Attributes:
        name: the class, for multi-label, where each class has a matrix of two rows and columns; else empty.
        rows: names of the true classes.
        columns: names of the predicted ones; in detection and segmentation the last is "Missed".
        counts: of images, or in detection and segmentation of true objects; rows of columns.
        score_threshold: predictions below it were not looked at; None in classification.
    """

    name: str = ""
    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    score_threshold: float | None = None


class Calibration(_Part):
    """Whether probabilities mean what they say.

    Attributes:
        error: the expected calibration error (ECE) over `bins` bins of equal width.
        temperature: what the logits are best divided by: over 1 where the network is too sure of itself.
        log_loss: mean negative log likelihood, in nats, as it is.
        log_loss_scaled: the same at that temperature.
        error_scaled: the ECE at that temperature.
    """

    bins: int
    error: MetricValue
    temperature: MetricValue
    log_loss: MetricValue
    log_loss_scaled: MetricValue
    error_scaled: MetricValue


class ConfusedPair(_Part):
    """A class that was taken for another.

    Attributes:
        count: images, or objects.
        share: of all that are truly of the class.
        images: indices of some of them, the most confident mistake first.
    """

    true: str
    predicted: str
    count: int
    share: float
    images: list[int]


class ErrorKind(_Part):
    """One of TIDE's kinds of errors of a detector (see `trainer.metrics.tide`).

    Attributes:
        kind: classification, localisation, both, duplicate, background or missed; and, over all of them,
            false positives and false negatives.
        count: predictions, or, for missed and false negatives, objects.
        cost: by how much mean_average_precision would rise if errors of this kind alone were mended.
    """

    kind: str
    count: int
    cost: float


class Threshold(_Part):
    """A score threshold of a class, and what the class has there; -1 is undefined."""

    score: float
    f1: float
    precision: float
    recall: float


class _OfImage(_Part):
    image: int
    location: str = ""
    image_url: str = ""


class Mistake(_OfImage):
    """A prediction that is wrong.

    Attributes:
        kind: "classification" for classifiers; one of TIDE's kinds else. For multi-label "superfluous" (named
            but not in the image) or "overlooked".
        predicted: the class that was predicted; empty where a class was overlooked.
        true: the class that is true; empty where there is none.
        score: of the prediction, in [0, 1]; the lower the probability of what is overlooked, the higher.
        box: the predicted object.
        overlap: its IoU with the true object that it was held against.
    """

    kind: str
    predicted: str
    true: str
    score: float
    box: Box | None = None
    overlap: float | None = None


class WorstImage(_OfImage):
    """An image with much that is wrong.

    Attributes:
        loss: of the image in nats, for classification.
        right: objects found (detection and segmentation, at each class's best threshold), or classes.
        wrong: predictions that are wrong.
        missed: objects, or for multi-label classes, that were not found.
        f1: of the image, from the three numbers.
    """

    loss: float | None = None
    right: int
    wrong: int
    missed: int
    f1: float


class LabelIssue(_OfImage):
    """A label that is likely wrong: the model is sure of something else. Worth a look, no more than that.

    Attributes:
        kind: "wrong class", "missing" (nothing is labelled there) or "superfluous" (labelled, but likely not
            there); for objects also "badly placed".
        given: the label in the data; empty if something is missing.
        suggested: what the model sees; empty if something is superfluous.
        score: how sure the model is, in [0, 1]; the list is sorted by it.
        box: where the model sees an object.
        given_box: where the data have it.
    """

    kind: str
    given: str
    suggested: str
    score: float
    box: Box | None = None
    given_box: Box | None = None


class Slice(_Part):
    """The figures on a part of the data.

    Attributes:
        by: what the data were parted by: a JSON key, "object size" or "image size".
        value: of this part.
        images: in it.
        objects: in it, without crowds; None in classification.
        metrics: the same as those of the whole.
    """

    by: str
    value: str
    images: int
    objects: int | None = None
    metrics: dict[str, MetricValue] = Field(validation_alias="figures", serialization_alias="figures")


class Analysis(_Part):
    """Everything about one evaluation; what does not apply to the task is empty or None.

    Attributes:
        images: how many were evaluated.
        objects: how many true ones, without crowds; None in classification.
        iou_threshold: from which on an object counts as found; None in classification.
        score_threshold: predictions below were not made, so that curves end there; None in classification.
        metrics: by the reference's names; `figures` in JSON.
        per_class: for each class its figures by name.
        curves: by kind. Classification: roc (false positive rate → true positive rate), precision_recall
            (recall → precision), cumulative_gains (share of images → share of positives), lift (share of
            images → times better than chance), calibration (mean probability → share of positives).
            Detection and segmentation: precision_recall, f1 (score threshold → F1) and image_level (recall →
            precision).
        confusion_matrices: one for multi-class; one a class for multi-label; in detection and segmentation
            one for each score threshold 0.0, 0.1 … 0.9.
        image_level: precision, recall and average_precision of "is any object in the image".
        errors: TIDE's split.
        thresholds: for each class the score threshold at which its F1 is highest; classes without objects, or
            of which none is found, have none.
        served: for each class the threshold that the model answers with, where a model was evaluated.
        mistakes: the most confident first.
        worst_images: the worst first.
        label_issues: the likeliest first.
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

    def to_json(self) -> str:
        """As JSON text (strict: what is undefined is null)."""
        return self.model_dump_json(indent=1)

    @classmethod
    def read(cls, path: Path) -> Analysis:
        """Read what `to_json` wrote.

        Raises:
            RunError: the file is missing, or is something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise RunError(f"{path}: is no evaluation of this version: {error}") from error
