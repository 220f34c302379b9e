"""`trainer predict`, `trainer serve` and `trainer export`: the commands that use a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from serving.service.options import Options
from trainer.cli.application import app
from trainer.cli.arguments import Count
from trainer.cli.flags import flag, flags_of, values_of
from trainer.cores import available_cores
from trainer.errors import RequestError, RunError, problems_of
from trainer.models.precision import Precision
from trainer.scoring import OLDER_NAMES, ScoringParameters

ScoringFlags: Any = flags_of(
    ScoringParameters,
    group="Scoring",
    aliases=lambda name: OLDER_NAMES.get(name, ()),
    default=lambda _: "the model's",
)
ServiceFlags: Any = flags_of(Options, group="Limits", leave_out=("cores",))


@app.command
def predict(
    run_or_model: Path,
    images: list[Path],
    /,
    *,
    output: Path | None = None,
    draw: Path | None = None,
    explain: str | None = None,
    xai_parameters: str | None = None,
    precision: Precision = "auto",
    scoring: ScoringFlags | None = None,
) -> None:
    """Score images with a trained model and print a JSON line for each.

    Examples:

        trainer predict runs/… photo.jpg
        trainer predict runs/… photos --output answers.jsonl --draw drawn

    Parameters
    ----------
    run_or_model
        Directory of a run or of an MLflow model.
    images
        Image files, folders of images, or patterns.
    output
        Write the lines to this file instead of printing them.
    draw
        Draw each answer on its image and write it into this folder.
    explain
        Explain each answer with xrai, integrated_gradients, guided_gradcam or guided_backprop; boxes with
        drise. The explanations are written as images to the folder of --draw; without --draw, as base64 in
        the lines.
    xai_parameters
        Parameters of the explanation as JSON, as in requests: '{"n_steps": 20, "attributions": true}'.
    precision
        Precision in which the network computes: float32, tf32, bf16 or fp16. auto is tf32 on a GPU, which
        multiplies float32 in fewer digits, and float32 on the CPU. bf16 and fp16 are mixed precision: faster
        on GPUs, with answers that differ a little.
    """
    import json

    from serving.payload import parse_json
    from serving.predict import find_images, predict_files
    from trainer.data.progress import track
    from trainer.drawing.fonts import is_drawable

    escaped = not (sys.stdout.encoding or "").lower().startswith("utf")  # JSON's escapes stay JSON
    explanation = None if explain is None else {"xai_algorithm": explain}
    if xai_parameters is not None:
        more = parse_json(xai_parameters)
        if not isinstance(more, dict):
            raise RequestError(f"--xai-parameters must be a JSON object, got {xai_parameters}")
        explanation = {**more, **(explanation or {})}
    found = find_images(images)
    lines = predict_files(
        run_or_model,
        found.files,
        output=output,
        draw=draw,
        parameters=values_of(scoring),
        explain=explanation,
        precision=precision,
    )
    if output is not None:
        lines = track(lines, "scoring images", len(found.files))
    if found.left_out:
        print(f"left out, as their names are not those of images: {found.left_out}", file=sys.stderr)
    undrawable: set[str] = set()
    for line in lines:
        if output is None:
            print(json.dumps(line, ensure_ascii=escaped))
        if draw is not None:
            labels = line.get("labels") or [box["label"] for box in line["boxes"]]
            undrawable.update(label for label in labels if not is_drawable(label))
    if undrawable:
        print(
            f"no font on this machine has {', '.join(sorted(undrawable)[:3])}, drawn as escapes; install "
            "one that does: apt-get install fonts-nanum for Korean, fonts-noto for most scripts",
            file=sys.stderr,
        )
    for written in (output, draw):
        if written is not None:
            print(f"written: {written}", file=sys.stderr)


@app.command
def export(
    run_or_model: Path,
    /,
    *,
    output: Path = Path("model.onnx"),
    opset: Count | None = None,
    normalize: bool | None = None,
) -> None:
    """Export a trained model to an ONNX file that includes thresholds and NMS.

    A classifier takes any number of images, a detector one. The file's metadata describe the classes, the
    thresholds and how to prepare images, as JSON under image-trainer. Requires pip install
    'image-trainer[onnx]'.

    Example:

        trainer export runs/… --output model.onnx

    Parameters
    ----------
    run_or_model
        Directory of a run or of an MLflow model.
    output
        File to write; an existing one is replaced.
    opset
        Version of ONNX's operators, 18 or newer. [default: chosen by torch]
    normalize
        Take images as uint8 in [0, 255] and normalise them in the file, instead of taking normalised float32.
        [default: the model's enable_onnx_normalization]
    """
    from serving.onnx_export import export as write

    made = write(run_or_model, output, opset=opset, normalize=normalize)
    entry = made["input"]
    height, width = entry["size"] or ("height", "width")
    print(
        f"written  {output}\ninput    {entry['name']}: {entry['type']} [N, 3, {height}, {width}], "
        f"{entry['images']} at a time\noutputs  {', '.join(made['outputs'])}"
    )


@app.command
def serve(
    run_or_model: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: Count = 5001,
    workers: Count = 1,
    auth_key_file: Path | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    access_log: bool = True,
    limits: ServiceFlags | None = None,
) -> None:
    """Serve a trained model: POST /score as an Azure endpoint, POST /invocations as MLflow.

    /swagger.json describes both, /livez and /readyz are probes, /metrics is for Prometheus. Concurrent
    requests are batched. The limits apply to each worker process.

    Examples:

        trainer serve runs/…
        trainer serve runs/… --host 0.0.0.0 --port 8080 --auth-key-file key

    Parameters
    ----------
    run_or_model
        Directory of a run or of an MLflow model.
    host
        Address to listen on; 0.0.0.0 for all.
    port
        Port to listen on; 0 picks a free one.
    workers
        Number of worker processes, each with the model in its memory. One uses all cores of a CPU; more help
        if one does not keep a GPU busy.
    auth_key_file
        File with the key that requests must send (Authorization: Bearer KEY); a second line may hold a
        secondary key. [default: no key is needed]
    device
        cpu, cuda, cuda:1 … [default: the first GPU, or the CPU if there is none]
    precision
        Precision in which the network computes: float32, tf32, bf16 or fp16. auto is tf32 on a GPU, which
        multiplies float32 in fewer digits, and float32 on the CPU. bf16 and fp16 are mixed precision: faster
        on GPUs, with answers that differ a little.
    access_log
        Write a JSON line for each request to stdout.
    """
    from pydantic import ValidationError

    from serving.service.launch import serve as run_server

    def announce(url: str) -> None:
        print(f"serving {run_or_model} at {url}/score", flush=True)
        print(f"to try it in a browser: {url}/", file=sys.stderr)

    try:
        options = Options(cores=max(1, available_cores() // max(1, workers)), **values_of(limits))
    except ValidationError as error:
        problem = problems_of(error)[0]
        raise RunError(f"{flag(problem.field)}: {problem.rule}, got {problem.got}") from None
    run_server(
        run_or_model,
        host,
        port,
        workers=workers,
        auth_key_file=auth_key_file,
        device=device,
        precision=precision,
        options=options,
        access_log=access_log,
        announce=announce,
    )
