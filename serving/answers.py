"""Turns predictions into the documented JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from trainer.annotations import Classification, Detections, Prediction
from trainer.errors import RunError

Answer: TypeAlias = dict[str, Any]
"""`{"probs", "labels"}` of a classifier, or `{"boxes": [{"box", "label", "score"[, "polygon"]}]}`.

Explained answers also have `visualizations` and `attributions`; the latter are NumPy arrays.
"""


def to_answer(prediction: Prediction, classes: Sequence[str], max_polygon_points: int) -> Answer:
    """Turn one image's prediction into plain Python values, with finite numbers only.

    Classes are sorted, boxes are in descending order of score, coordinates are in [0, 1].

    Raises:
        RunError: the network returned numbers that are not finite.
    """
    if isinstance(prediction, Classification):
        _check_finite(prediction.probs)
        return {"probs": [float(prob) for prob in prediction.probs], "labels": list(classes)}
    return {"boxes": _boxes(prediction, classes, max_polygon_points)}


def encode(value: Any) -> bytes:
    """Encode answers, or a structure of them, as JSON in UTF-8; arrays become nested lists.

    All numbers must be finite, as they are in answers.
    """
    # Imported here because packaged models do not need it: MLflow's servers write JSON themselves.
    import orjson

    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def to_lists(answer: Answer) -> Answer:
    """The answer in plain Python values, with arrays as nested lists."""
    if "attributions" not in answer:
        return answer
    arrays = answer["attributions"]
    nested = [each.tolist() for each in arrays] if isinstance(arrays, list) else arrays.tolist()
    return {**answer, "attributions": nested}


def _boxes(detections: Detections, classes: Sequence[str], max_polygon_points: int) -> list[dict[str, Any]]:
    _check_finite(detections.scores, detections.boxes)
    boxes = detections.boxes.clip(0, 1)
    answers = []
    for index in np.argsort(-detections.scores, kind="stable"):
        left, top, right, bottom = (float(side) for side in boxes[index])
        answer = {
            "box": {"topX": left, "topY": top, "bottomX": right, "bottomY": bottom},
            "label": classes[int(detections.labels[index])],
            "score": float(detections.scores[index]),
        }
        if detections.masks is not None:
            # Only segmentation models need OpenCV.
            from serving.polygons import mask_polygons

            answer["polygon"] = mask_polygons(
                detections.masks[index], detections.image_size, boxes[index], max_polygon_points
            )
        answers.append(answer)
    return answers


def _check_finite(*arrays: np.ndarray[Any, Any]) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise RunError(
            "the network returned numbers that are not finite: its weights are damaged, or its training "
            "diverged; package another checkpoint"
        )
