"""`trainer predict`, `trainer serve` and `trainer export`: what is done with a trained model."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.cli.application import app
from trainer.cli.arguments import Count
from trainer.errors import RequestError
from trainer.scoring import ScoringParameters


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
    box_score_threshold: float | None = None,
    nms_iou_threshold: float | None = None,
    box_detections_per_image: Count | None = None,
    mask_pixel_score_threshold: float | None = None,
    max_number_of_polygon_points: Count | None = None,
    tile_grid_size: str | None = None,
    tile_overlap_ratio: float | None = None,
    tile_predictions_nms_threshold: float | None = None,
) -> None:
    """Score images with a trained model; a JSON line for each.

    Parameters
    ----------
    run_or_model
        A run's directory or an MLflow model directory.
    images
        Image files, folders of them, or patterns.
    output
        Write the lines to this file instead of printing them.
    draw
        Write a picture of each image with its answer into this folder.
    explain
        Show what each answer rests on, by xrai, integrated_gradients, guided_gradcam or guided_backprop,
        boxes by drise. Pictures are written beside --draw's, else as base64 into the lines.
    xai_parameters
        More about it as JSON, as requests have it: '{"n_steps": 20, "attributions": true}'.
    box_score_threshold
        Return no boxes with a lower score. This and the following default to the model's own values.
    nms_iou_threshold
        Of two boxes of one class overlapping by more than this IoU, keep one.
    box_detections_per_image
        Return at most this many boxes an image.
    mask_pixel_score_threshold
        A pixel with at least this score belongs to the object.
    max_number_of_polygon_points
        Simplify polygons to at most this many points.
    tile_grid_size
        Score the image's tiles, too: columns and rows as 3x2, or none; helps with small objects.
    tile_overlap_ratio
        Neighbouring tiles share this part of their width and height.
    tile_predictions_nms_threshold
        Of two boxes of one class from different tiles with a higher IoU, keep one.
    """
    import json

    arguments = locals()
    parameters = {
        name: arguments[name] for name in ScoringParameters.model_fields if arguments[name] is not None
    }
    from serving.payload import parse_json
    from serving.predict import find_images, predict_files
    from trainer.data.progress import track
    from trainer.drawing.fonts import is_drawable

    escaped = not (sys.stdout.encoding or "").lower().startswith("utf")  # JSON's escapes stay JSON
    asked = None if explain is None else {"xai_algorithm": explain}
    if xai_parameters is not None:
        given = parse_json(xai_parameters)
        if not isinstance(given, dict):
            raise RequestError(f"--xai-parameters must be a JSON object, got {xai_parameters}")
        asked = {**given, **(asked or {})}
    lines = predict_files(
        run_or_model, images, output=output, draw=draw, parameters=parameters, explain=asked
    )
    if output is not None:
        lines = track(lines, "scoring images", len(find_images(images)))
    undrawable: set[str] = set()
    for line in lines:
        if output is None:
            print(json.dumps(line, ensure_ascii=escaped))
        if draw is not None:
            labels = line.get("labels") or [box["label"] for box in line["boxes"]]
            undrawable.update(label for label in labels if not is_drawable(label))
    if undrawable:
        print(
            f"no font of this machine has {', '.join(sorted(undrawable)[:3])}, drawn as escapes: install one "
            "that has, for Korean apt-get install fonts-nanum, for most scripts fonts-noto",
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
    """Write a trained model as an ONNX file that answers alone, thresholds and NMS inside.

    A classifier takes any number of images, a detector one. How to prepare them, the classes and the
    thresholds stand in the file's metadata, as JSON under image-trainer.
    Needs pip install 'image-trainer[onnx]'.

    Parameters
    ----------
    run_or_model
        A run's directory or an MLflow model directory.
    output
        The file; an existing one is replaced.
    opset
        Version of ONNX's operators, 18 or newer. [default: what torch knows best]
    normalize
        Take images as uint8 in [0, 255] and normalise them in the file; else as float32, normalised.
        [default: the model's enable_onnx_normalization]
    """
    from serving.onnx_export import export as write

    made = write(run_or_model, output, opset=opset, normalize=normalize)
    given = made["input"]
    height, width = given["size"] or ("height", "width")
    print(
        f"written  {output}\ninput    {given['name']}: {given['type']} [N, 3, {height}, {width}], "
        f"{given['images']} at a time\noutputs  {', '.join(made['outputs'])}"
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
    max_batch: Count = 8,
    max_wait_ms: float = 5.0,
    max_queue: Count = 512,
    max_queue_mb: Count = 512,
    max_rows: Count = 1000,
    timeout_s: float = 180.0,
    read_timeout_s: float = 60.0,
    shutdown_timeout_s: float = 30.0,
    access_log: bool = True,
) -> None:
    """Answer scoring requests: POST /score as an Azure endpoint does, /invocations as MLflow does.

    /swagger.json describes both; /livez and /readyz are for probes, /metrics is for Prometheus. Requests that
    come together are scored together. Each worker process has the limits for itself.

    Parameters
    ----------
    run_or_model
        A run's directory or an MLflow model directory.
    host
        Address to listen on; 0.0.0.0 for all.
    port
        Port to listen on; 0 takes any free one.
    workers
        Processes that answer, each with the model in its memory. One uses all cores of a CPU; more help
        where one GPU is not kept busy by one.
    auth_key_file
        File with the key that requests must bear (Authorization: Bearer KEY); a second line may hold a
        secondary key. [default: everybody may ask]
    device
        cpu, cuda, cuda:1 … [default: the first GPU, else the CPU]
    max_batch
        Images that the network sees at once, at most.
    max_wait_ms
        How long a batch waits for images that are still being decoded.
    max_queue
        Images accepted and not answered yet; what comes beyond is refused by 429 with Retry-After.
    max_queue_mb
        The same in megabytes of requests, those that are still being read among them.
    max_rows
        Images in one request; more are refused by 413.
    timeout_s
        Seconds from a request's last byte to its answer; then it is given up by 504.
    read_timeout_s
        Seconds from a request's first byte to its last; then it is given up by 408.
    shutdown_timeout_s
        Seconds that accepted requests may take once the service is told to stop (SIGTERM, Ctrl-C).
    access_log
        Write a JSON line for each request to stdout.
    """
    from pydantic import ValidationError

    from serving.service.launch import serve as run_server
    from serving.service.options import Options
    from trainer.cores import available_cores
    from trainer.errors import RunError

    given = {name: value for name, value in locals().items() if name in Options.model_fields}
    try:
        options = Options(**given, cores=max(1, available_cores() // max(1, workers)))
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise RunError(f"{flag} is out of its range: {first['msg']}, got {first['input']}") from None
    run_server(
        run_or_model,
        host,
        port,
        workers=workers,
        auth_key_file=auth_key_file,
        device=device,
        options=options,
        access_log=access_log,
        announce=lambda url: print(f"serving {run_or_model} at {url}/score", flush=True),
    )
