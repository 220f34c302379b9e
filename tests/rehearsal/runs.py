"""Rehearses whole runs: training by Lightning, resume, packaging, and the service with explanations.

`python -m tests.rehearsal.runs DIRECTORY CASE …` prints one line of JSON for each case.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.rehearsal import cuda

cuda.install()

import torch  # noqa: E402 (after the device is there)
from starlette.testclient import TestClient  # noqa: E402

from serving.locate import find_artifacts  # noqa: E402
from serving.scorer import Scorer  # noqa: E402
from serving.service.options import Options  # noqa: E402
from serving.service.server import create_app  # noqa: E402
from trainer.data.samples import make  # noqa: E402
from trainer.job.job import Job  # noqa: E402
from trainer.runs import Run  # noqa: E402
from trainer.tasks import Task  # noqa: E402
from trainer.training.fit import fit  # noqa: E402

SMALL = {"number_of_workers": 0, "random_seed": 1, "number_of_epochs": 1, "early_stopping": False}
CASES: dict[str, tuple[Task, str, dict[str, Any], list[str]]] = {
    "classifier": (
        Task.CLASSIFICATION,
        "timm/test_resnet",
        {"training_crop_size": 48, "validation_crop_size": 48, "training_batch_size": 8},
        ["xrai", "integrated_gradients", "guided_gradcam", "guided_backprop"],
    ),
    "detector": (
        Task.DETECTION,
        "fasterrcnn_resnet18_fpn",
        {"min_size": 64, "max_size": 96, "training_batch_size": 8, "box_score_threshold": 0.0},
        ["drise"],
    ),
}


def rehearse(directory: Path, task: Task, model: str, settings: dict[str, Any], methods: list[str]) -> Any:
    """Train, resume, package and serve. Returns what each step says."""
    data = make(task, directory / "data", images=8, seed=1)
    backward: Counter[str] = Counter()
    products: set[str] = set()
    watch_backward(backward, products)
    before = torch.get_float32_matmul_precision()
    job = Job(
        task=task,
        training_data=(str(data.train),),
        validation_data=(str(data.validation),),
        model=model,
        weights="none",
        gpus=1,
        settings={**SMALL, **settings},
        output=directory / "run",
        tracking_uri="none",
    )
    first = fit(job, packages=False)
    first_backward, first_products = dict(backward), sorted(products)
    backward.clear()
    products.clear()
    changes = {"output": first.directory, "precision": "float32", "settings": {"number_of_epochs": 2}}
    run = fit(Job.of_run(first.job).changed(**changes), earlier=Run.open(first.directory))
    told: dict[str, Any] = {
        "device": "cuda" if "GPU" in run.read_result().peak_memory else "cpu",
        "epochs": run.read_result().epochs,
        "backward": first_backward,
        "products": first_products,
        "exact backward": dict(backward),
        "exact products": sorted(products),
        "afterwards": [before, torch.get_float32_matmul_precision()],
        "predictions": len(run.predictions.read_text("utf-8").splitlines()),
    }
    image = next((data.train.parent / "images").rglob("*.jpg"))
    scorer = Scorer.load(find_artifacts(run.directory))
    told["served on"] = scorer.device.type
    with TestClient(create_app(scorer, Options(cores=2))) as client:
        rows: list[Any] = [base64.b64encode(image.read_bytes()).decode()] * 8
        for method in ("", *methods):
            if method:
                values = {"xai_algorithm": method, "n_steps": 2, "n_masks": 10, "visualizations": True}
                row = {"image_base64": rows[0], "model_explainability": True, "xai_parameters": values}
                rows = [json.dumps(row)]
            body = {"input_data": {"columns": ["image"], "data": rows}}
            response = client.post("/score", json=body)
            told[method or "answers"] = [response.status_code, len(response.json())]
            if response.status_code != 200:
                told[method or "answers"].append(response.text[:300])
            rows = [base64.b64encode(image.read_bytes()).decode()] * 8
    return told


def watch_backward(types: Counter[str], products: set[str]) -> None:
    """Watch the matrix products of backward passes, which run in the engine's threads.

    Args:
        types: counts them by type.
        products: takes PyTorch's precisions of float32 products.
    """
    dispatch = cuda._dispatch

    def watched(function: Any, args: Any, kwargs: Any) -> Any:
        name = function._schema.name.split("::")[1]
        if threading.current_thread() is not threading.main_thread() and name in cuda._MULTIPLYING:
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            types[str(tensors[0].dtype).removeprefix("torch.")] += 1
            products.add(torch.get_float32_matmul_precision())
        return dispatch(function, args, kwargs)

    cuda._dispatch = watched


def main() -> None:
    for name in sys.argv[2:]:
        try:
            result = rehearse(Path(sys.argv[1]) / name, *CASES[name])
        except Exception:  # noqa: BLE001 (the test shows it)
            result = {"error": traceback.format_exc(limit=-8)}
        print(json.dumps({"case": name, **result}), flush=True)


if __name__ == "__main__":
    main()
