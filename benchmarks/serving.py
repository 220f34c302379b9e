"""Compares the throughput and latency of the service with a ceiling, MLflow's own server and LitServe.

    python benchmarks/serving.py                       # about 15 minutes
    python benchmarks/serving.py --memory              # also measures memory growth; about 10 minutes more

Everything runs on this machine, one server at a time, in rounds that alternate between the contenders, with
untrained networks of four classes and 640 x 480 JPEGs. The clients share one process; each has its own
connection and sends its next request when the last one is answered.

ceiling   decoding, preprocessing and the batched network in one process with the service's threads, without
          HTTP, JSON or base64: the fastest of several ways, with the same memory layout as the service
serve     trainer serve, POST /score
serve (i) the same, POST /invocations
mlflow    mlflow models serve, POST /invocations
litserve  LitServe around the same network with batches as large as the service's

Goals: serve reaches 0.85 of the ceiling and 1.3 of mlflow; its memory after 10,000 requests is within 5 % of
that after 1,000. Measurements on a machine with other load mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

# This script has the name of the package that it measures.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measuring  # noqa: E402
from benchmarks.measuring import need, number  # noqa: E402

CEILING_GOAL, MLFLOW_GOAL, MEMORY_GOAL = 0.85, 1.3, 0.05
CONTENDERS = ("ceiling", "serve", "serve (i)", "mlflow", "litserve")
MODELS = {"resnet18": "image-classification", "yolo11n": "object-detection"}
HERE = Path(__file__).resolve()
MAX_BATCH = 8


def jpegs(count: int, width: int, height: int) -> list[bytes]:
    """Make JPEGs with about as much detail as photographs."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        layers = np.zeros((height, width, 3))
        for cells, strength in ((4, 120), (16, 60), (80, 30)):
            noise = generator.uniform(0, strength, (max(2, cells * 3 // 4), cells, 3)).astype(np.uint8)
            layers += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
        file = io.BytesIO()
        Image.fromarray(layers.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def package(model: str, directory: Path, network_size: int | None) -> Path:
    """Package an untrained model and return its directory."""
    from importlib import import_module

    from serving.package import write_model
    from trainer.models import Spec, create
    from trainer.models.catalog import find
    from trainer.models.defaults import resolve
    from trainer.scoring import ScoringParameters
    from trainer.tasks import Task

    task = Task(MODELS[model])
    given = {}
    if network_size is not None:
        sizes = (
            ("validation_resize_size", "validation_crop_size") if task.is_classification else ("image_size",)
        )
        given = dict.fromkeys(sizes, network_size)
    family = find(model, task).family
    module = import_module(f"trainer.models.{family}")
    spec = Spec(
        family=family,
        model=model,
        task=task,
        classes=("can", "carton", "milk_bottle", "water_bottle"),
        options=module.FAMILY.options(task, model, resolve(task, model, given), False),
        parameters=ScoringParameters(),
    )
    return write_model(directory / model, spec, create(spec).build())


# Contenders and load


def ceiling(model: Path, files: list[bytes], seconds: float, device: str) -> float:
    """Return images per second without a server, in this process."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from serving.scorer import Scorer
    from serving.service.batching import largest_batch
    from trainer.cores import available_cores
    from trainer.data.images import decode

    cores = available_cores()
    scorer = Scorer.load(model / "artifacts", device)
    scorer.speed_up()
    parameters = scorer.spec.parameters

    def batch(start: int, size: int) -> list[bytes]:
        return [files[(start + offset) % len(files)] for offset in range(size)]

    def prepared(file: bytes) -> Any:
        return scorer.preprocess(decode(file))

    def answered(by: Scorer, images: list[Any]) -> None:
        outputs = by.infer([tensor for tensor, _ in images], parameters)
        for output, (_, geometry) in zip(outputs, images, strict=True):
            by.encoded(output, geometry, parameters)

    def together(size: int) -> float:
        """Run the network on all cores while the next batch is decoded."""
        torch.set_num_threads(cores)
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            done, ahead = 0, [pool.submit(prepared, file) for file in batch(0, size)]
            began = time.perf_counter()
            while (spent := time.perf_counter() - began) < seconds:
                images = [future.result() for future in ahead]
                ahead = [pool.submit(prepared, file) for file in batch(done, size)]
                answered(scorer, images)
                done += size
        return done / spent

    def apart(size: int) -> float:
        """Process each batch on one core."""
        until = time.perf_counter() + seconds

        def work(own: Scorer) -> int:
            torch.set_num_threads(1)
            done = 0
            while time.perf_counter() < until:
                answered(own, [prepared(file) for file in batch(done, size)])
                done += size
            return done

        began = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            done = sum(pool.map(work, [scorer.replica() for _ in range(cores)]))
        return done / (time.perf_counter() - began)

    tensor, _ = first = prepared(files[0])
    answered(scorer, [first])
    sizes = {MAX_BATCH, largest_batch(tensor, MAX_BATCH, on_cpu=device == "cpu")}
    return max(way(size) for size in sizes for way in (together, apart))


def litserve(model: Path, port: int, device: str) -> None:
    """Serve the same network with LitServe, in batches as large as ours; on a CPU with a worker per core."""
    import litserve as ls

    from benchmarks.contenders.litserve_api import API
    from serving.scorer import Scorer
    from serving.service.batching import largest_batch
    from trainer.cores import available_cores

    tensor, _ = Scorer.load(model / "artifacts").preprocess(np.zeros((480, 640, 3), dtype=np.uint8))
    size = largest_batch(tensor, MAX_BATCH, on_cpu=device == "cpu")
    api = API(model / "artifacts", max_batch_size=size, batch_timeout=0.005)
    workers = available_cores() if device == "cpu" else 1
    ls.LitServer(api, accelerator=device, devices=1, workers_per_device=workers).run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="warning"
    )


def load(url: str, bodies: list[bytes], clients: int, warm_up: float, seconds: float) -> dict[str, Any]:
    """Send requests for a while and return images per second and latencies in ms."""
    host, _, rest = url.removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    requests = [
        f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
    begin = time.perf_counter() + warm_up
    latencies: list[float] = []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        turn = number
        while (sent := time.perf_counter()) < begin + seconds:
            writer.write(requests[turn % len(requests)])
            turn += clients + 1
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{url} answered {head!r}")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            now = time.perf_counter()
            if begin <= now <= begin + seconds:
                latencies.append((now - sent) * 1000)
        writer.close()

    async def run() -> None:
        await asyncio.gather(*(client(number) for number in range(clients)))

    asyncio.run(run())
    p50, p95, p99 = np.percentile(latencies or [0.0], (50, 95, 99))
    return {"rate": len(latencies) / seconds, "p50": p50, "p95": p95, "p99": p99}


# Running the contenders


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(contender: str, model: Path, device: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run a contender's server and yield the URL to post to and its process."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    if contender.startswith("serve"):
        arguments = ["-m", "trainer", "serve", str(model), "--port", str(port), "--max-batch", str(MAX_BATCH)]
        arguments += ["--device", device]
        probe, path = "readyz", "score" if contender == "serve" else "invocations"
    elif contender == "mlflow":
        arguments = ["-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
        arguments += ["-h", "127.0.0.1", "-p", str(port)]
        probe, path = "ping", "invocations"
    else:
        arguments = [str(HERE), "--role", "litserve", "--model-directory", str(model), "--port", str(port)]
        arguments += ["--device", device]
        probe, path = "health", "predict"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    # mlflow starts uvicorn by name.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(f"{base}/{probe}", server, log)
            yield f"{base}/{path}", psutil.Process(server.pid)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(server.pid, number)
                    server.wait(10)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
            server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Any) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"the server at {url} did not start:\n{log.read().decode(errors='replace')[-3000:]}")


def processor_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children."""
    family = [process, *process.children(recursive=True)]
    return float(sum(sum(each.cpu_times()[:2]) for each in family))


def resident(process: psutil.Process) -> int:
    return int(sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]))


def child(arguments: argparse.Namespace, role: str, **more: Any) -> Any:
    """Run this script in another role in a process of its own and return what it printed."""
    command = [sys.executable, str(HERE), "--role", role, "--image-size", arguments.image_size]
    command += ["--device", arguments.device]
    for name, value in more.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace, contender: str, model: Path) -> dict[str, float]:
    seconds, clients = arguments.seconds, arguments.clients
    if contender == "litserve":
        need("litserve")
    if contender == "ceiling":
        found = child(arguments, "ceiling", model_directory=model, seconds=seconds / 2)
        return {"rate": found}
    with running(contender, model, arguments.device) as (url, process):
        before = processor_seconds(process)
        result: dict[str, float] = child(
            arguments, "load", url=url, clients=clients, seconds=seconds, warm_up=arguments.warm_up
        )
        spent = processor_seconds(process) - before
        result["cpu"] = 1000 * spent / max(1.0, result["rate"] * (seconds + arguments.warm_up))
        return result


def compare(arguments: argparse.Namespace, name: str, model: Path) -> bool:
    """Measure a model in alternating rounds, print its table and return whether all goals are met."""
    contenders = {each: partial(measure, arguments, each, model) for each in arguments.contenders}
    found, absent = measuring.alternate(contenders, arguments.rounds)
    rows = []
    for contender in arguments.contenders:
        measurements = found.get(contender, [])
        rates = [each["rate"] for each in measurements]
        row = [contender, measuring.spread(rates) if rates else absent[contender]]
        for key in ("p50", "p95", "p99", "cpu"):
            row.append(
                number(measuring.median(measurements, key)) if measurements and key in measurements[0] else ""
            )
        rows.append(row)
    headers = (name, "images/s", "p50 ms", "p95 ms", "p99 ms", "server's CPU ms per image")
    print(f"\n{measuring.table(headers, rows)}\n", flush=True)
    met = True
    for other, goal in (("ceiling", CEILING_GOAL), ("mlflow", MLFLOW_GOAL), ("litserve", None)):
        ratios = measuring.ratios(found.get("serve", []), found.get(other, []), "rate")
        if ratios:
            print(f"- serve / {other}: {measuring.spread(ratios)}; {measuring.verdict(ratios, goal)}")
        elif goal is not None:
            print(f"- serve / {other}: goal ≥ {goal}, not measured")
        if goal is not None and {"serve", other} <= set(arguments.contenders):
            met &= bool(ratios) and statistics.median(ratios) >= goal
    return met


def memory(arguments: argparse.Namespace, name: str, model: Path) -> bool:
    """Measure resident memory after a tenth of the requests and after all; return whether it is stable."""
    total = arguments.memory_requests
    bodies = request_bodies(arguments, "score")
    with running("serve", model, arguments.device) as (url, process):
        sizes = []
        for count in (total // 10, total - total // 10):
            _send(url, bodies, count, arguments.clients)
            sizes.append(resident(process))
    growth = sizes[1] / sizes[0] - 1
    met = abs(growth) <= MEMORY_GOAL
    print(
        f"\n- {name}: resident memory {sizes[0] / 1e6:.0f} MB after {total // 10:,} requests, "
        f"{sizes[1] / 1e6:.0f} MB after {total:,}: {growth:+.1%}, goal within {MEMORY_GOAL:.0%}: "
        f"{'met' if met else 'MISSED'}"
    )
    return met


def _send(url: str, bodies: list[bytes], count: int, clients: int) -> None:
    import http.client

    host, path = url.removeprefix("http://").split("/")

    def send(count: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=300)
        for turn in range(count):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/{path}", bodies[turn % len(bodies)], headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{url} answered {answer.status}")
        connection.close()

    counts = [count // clients + (number < count % clients) for number in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, counts))


def request_bodies(arguments: argparse.Namespace, path: str) -> list[bytes]:
    width, height = map(int, arguments.image_size.split("x"))
    key = {"score": "input_data", "invocations": "dataframe_split"}.get(path)
    bodies = []
    for file in jpegs(32, width, height):
        text = base64.b64encode(file).decode("ascii")
        table = {"columns": ["image"], "data": [text]}
        bodies.append(json.dumps({"image": text} if key is None else {key: table}).encode("ascii"))
    return bodies


def main() -> int:
    parser = measuring.arguments(__doc__, rounds=5, device=True, tiny=False)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seconds", type=float, default=12.0, help="duration of each measurement")
    parser.add_argument("--warm-up", type=float, default=4.0, help="seconds before each measurement")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--image-size", default="640x480")
    parser.add_argument("--network-size", type=int, help="side of the network's input, in pixels")
    parser.add_argument("--memory", action="store_true", help="also measure memory growth")
    parser.add_argument("--memory-requests", type=int, default=10_000)
    for hidden in ("--role", "--url", "--model-directory", "--port"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    width, height = map(int, arguments.image_size.split("x"))
    if arguments.role == "ceiling":
        files = jpegs(32, width, height)
        rate = ceiling(Path(arguments.model_directory), files, arguments.seconds, arguments.device)
        print(json.dumps(rate))
        return 0
    if arguments.role == "litserve":
        litserve(Path(arguments.model_directory), int(arguments.port), arguments.device)
        return 0
    if arguments.role == "load":
        bodies = request_bodies(arguments, arguments.url.rpartition("/")[2])
        found = load(arguments.url, bodies, arguments.clients, arguments.warm_up, arguments.seconds)
        print(json.dumps(found))
        return 0

    print(measuring.heading("Scoring", "torch", "mlflow", "litserve"))
    measuring.hide_gpus(arguments.device)
    print(
        f"{arguments.clients} clients on the same cores, JPEGs of {arguments.image_size}, {arguments.rounds} "
        f"rounds of {arguments.seconds:g} s, {arguments.device}; median (smallest–largest)."
    )
    met = True
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.models:
            model = package(name, Path(directory), arguments.network_size)
            met &= compare(arguments, name, model)
            if arguments.memory:
                try:
                    met &= memory(arguments, name, model)
                except RuntimeError as error:
                    met = False
                    print(f"\n- {name}: memory not measured: {error}")
    print(f"\ngoals of the selected contenders: {'met' if met else 'missed, or not all measured'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
