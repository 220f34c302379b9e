"""Takes a detector from data to answers on the CPU, without network access; run by `make demo`.

Writes a small real data set, trains YOLO11n on it from scratch, packages the model, serves it with
`mlflow models serve`, sends it one image, and prints the answer and the paths of everything. YOLO11n needs
`pip install '.[yolo]'`, which is under the AGPL; `make demo` installs it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="directory, replaced if it exists")
    parser.add_argument("--images", type=int, default=400, help="size of the data set")
    parser.add_argument("--epochs", type=int, default=20, help="epochs to train")
    arguments = parser.parse_args()
    output: Path = arguments.output
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()

    say("1. Write a data set: scenes of handwritten digits")
    data, run = output / "data", output / "run"
    trainer("sample-data", "object-detection", data, "--images", arguments.images)

    say("2. Train YOLO11n from scratch and package it")
    trainer(
        *("fit", "--task", "object-detection", "--output", run),
        *("--data", data / "train.jsonl", "--validation-data", data / "validation.jsonl"),
        *("--model", "yolo11n", "--weights", "none", "--image-size", 160, "--seed", 0),
        *("--number-of-epochs", arguments.epochs, "--no-early-stopping", "--training-batch-size", 16),
        *("--optimizer", "adamw", "--learning-rate", 0.002, "--warmup-cosine-lr-warmup-epochs", 1),
    )

    say("3. Serve it with `mlflow models serve` and send one image")
    image = data / json.loads((data / "validation.jsonl").read_text("utf-8").splitlines()[0])["image_url"]
    answer = ask_mlflow(run / "model", image)
    print(json.dumps(answer, indent=2))

    say("4. Draw the answer onto the image")
    trainer("predict", run, image, "--draw", output / "drawn", "--output", output / "predictions.jsonl")

    result = json.loads((run / "result.json").read_text("utf-8"))
    print(
        f"\nmean average precision  {result['value']:.3f} on {arguments.images // 5} validation images"
        f"\nrun                     {run}\nmodel                   {run / 'model'}"
        f"\nannotated image         {next((output / 'drawn').iterdir())}"
        f"\ntime                    {time.perf_counter() - started:.0f} s"
    )
    if result["value"] < 0.5:
        sys.exit("the detector is too weak: mean average precision is below 0.5")


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def trainer(*arguments: object) -> None:
    subprocess.run([BIN / "trainer", *map(str, arguments)], check=True)


def ask_mlflow(model: Path, image: Path) -> object:
    """Start `mlflow models serve`, wait until it responds, and score one image."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [BIN / "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "-p", str(port)]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    log = model.parent / "mlflow-serve.log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as server,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/ping", server, log)
            rows = {"columns": ["image"], "data": [base64.encodebytes(image.read_bytes()).decode()]}
            request = urllib.request.Request(
                f"{url}/invocations",
                json.dumps({"dataframe_split": rows}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        finally:
            # mlflow starts the server as a child process, so end the whole process group.
            os.killpg(server.pid, 15)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    sys.exit(f"the server did not start; see {log}")


if __name__ == "__main__":
    main()
