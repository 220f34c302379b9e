"""Metrics of several ranks are those of one to the last digit, whoever scored which image, once or twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RANK = """
import json, sys
from dataclasses import replace
from datetime import timedelta
import numpy as np, torch.distributed as dist
from trainer.annotations import Classification, Detections, Objects
from trainer.errors import TrainingError
from trainer.models import create, specify
from trainer.models.defaults import resolve
from trainer.tasks import Task
from trainer.training.evaluation import Evaluation, compressed

rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if ranks > 1:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
rng = np.random.default_rng(0)
found = {}
for task, model in ((Task.MULTILABEL, "resnet18"), (Task.DETECTION, "fasterrcnn_resnet18_fpn")):
    targets, predictions = [], []
    for _ in range(11):
        if task is Task.MULTILABEL:
            targets.append(rng.random(3) < 0.5)
            predictions.append(Classification(np.round(rng.random(3), 1).astype(np.float32)))
            continue
        boxes = rng.uniform(0, 0.5, (4, 4)).astype(np.float32)
        boxes[:, 2:] += 0.3
        labels = rng.integers(0, 3, 4)
        targets.append(Objects(boxes, labels, rng.random(4) < 0.2))
        near = (boxes + rng.normal(0, 0.05, (4, 4))).clip(0, 1).astype(np.float32)
        scores = np.sort(np.round(rng.random(4), 1))[::-1].astype(np.float32)  # many equal ones
        predictions.append(Detections(near, labels, scores, (100, 120)))
    settings = resolve(task, model, {"validation_metric_type": "coco_voc"} if task.has_boxes else {})
    family = create(specify(task, model, settings, ("a", "b", "c"), pretrained=False))
    evaluation = Evaluation(family, targets, settings)
    # as a sampler deals them out: in turn, and one image twice so that all ranks have the same number
    own = range(rank, 11, ranks) if ranks > 1 else range(11)
    evaluation._predictions = [(i, *compressed(predictions[i])) for i in [*own, *([0] if rank else [])]]
    found[task] = evaluation.compute(ranks)
    if task is Task.DETECTION:
        evaluation._predictions = [(0, replace(predictions[0], scores=np.full(4, np.nan)), None)][rank:]
        try:
            evaluation.compute(ranks)
        except TrainingError as error:
            found["error"] = str(error)[:40]
print(json.dumps(found))
"""


def test_two_ranks_have_the_figures_of_one(tmp_path: Path) -> None:
    def start(rank: int, ranks: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(ranks), str(tmp_path / "store")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    printed = []
    for process in (start(0, 1), start(0, 2), start(1, 2)):
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        printed.append(json.loads(out.splitlines()[-1]))
    alone, first, second = printed
    assert first == second == alone
    assert set(alone["image-classification-multilabel"]) >= {"iou", "iou_classwise.a", "iou_classwise.c"}
    assert alone["error"].startswith("the network predicts boxes")
    assert 0 < alone["object-detection"]["map"] < 1
    assert 0 < alone["object-detection"]["mean_average_precision"] < 1
