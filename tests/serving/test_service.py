"""What operates the service: keys, limits, batches, probes, metrics, logs, workers, and its end."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pandas as pd
import psutil
import pytest

from serving.scorer import Scorer
from serving.service import protocol
from serving.service.keys import Keys
from serving.service.options import Options
from serving.service.telemetry import AccessLog
from trainer.errors import RunError
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")

MakeImage = Callable[..., bytes]
Encode = Callable[[bytes], str]
Packaged = Callable[..., Path]
ServeApp = Callable[..., AbstractContextManager[Any]]


def body(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"input_data": {"columns": ["image"], "data": list(rows)}, **more}


def scorer_of(packaged: Packaged, task: Task = Task.CLASSIFICATION) -> Scorer:
    return Scorer.load(packaged(task) / "artifacts")


def check_error(answer: httpx.Response, status: int, code: str, reason: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert reason in error["message"]


def metric(client: httpx.Client, name: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[1])


class Gate:
    """Holds up the network until it is opened."""

    def __init__(self, scorer: Scorer) -> None:
        self.opened = threading.Event()
        self.reached = threading.Semaphore(0)
        gate, replica = self, scorer.replica

        def gated() -> Scorer:
            copy = replica()
            infer = copy.infer

            def wait(*arguments: Any) -> Any:
                gate.reached.release()
                gate.opened.wait(30)
                return infer(*arguments)

            copy.infer = wait  # type: ignore[method-assign]
            return copy

        scorer.replica = gated  # type: ignore[method-assign]


# Keys.


def test_requests_need_a_key(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("primary-key\n\nsecondary-key\n")
    file.chmod(0o600)
    image, kind = make_image(), {"Content-Type": "image/png"}
    with serve_app(scorer_of(packaged), keys=Keys.read(file)) as client:
        for given in ("Bearer primary-key", "bearer secondary-key"):
            headers = {"Authorization": given, **kind}
            assert client.post("/score", content=image, headers=headers).status_code == 200
        for wrong in (
            None,
            "Bearer",
            "Bearer primary",
            "Bearer primary-keyx",
            "Basic primary-key",
            "Bearer é",
        ):
            headers = kind if wrong is None else {"Authorization": wrong.encode("utf-8"), **kind}
            for path in ("/score", "/invocations"):
                answer = client.post(path, content=image, headers=headers)
                check_error(answer, 401, "unauthorized", "Authorization: Bearer KEY")
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/swagger.json").status_code == client.get("/metrics").status_code == 401
        for path in ("/livez", "/readyz", "/ping", "/health"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no key"),
        (b" \n\n", "holds no key"),
        (b"a\nb\nc\n", "at most a secondary key"),
        (b"two words\n", "visible ASCII"),
        ("schlüssel\n".encode(), "visible ASCII"),
        (b"\xff\xfe", "must be text"),
        (None, "cannot be read"),
    ],
)
def test_invalid_key_file_is_rejected(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RunError, match=reason):
        Keys.read(file)


# What is sent.


def test_image_file_is_accepted_as_body(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    image = make_image(3)
    with serve_app(scorer_of(packaged)) as client:
        expected = client.post("/score", json=body(encode(image))).json()
        for kind in ("image/png", "IMAGE/JPEG", "application/octet-stream"):
            (answer,) = client.post("/score", content=image, headers={"Content-Type": kind}).json()
            assert answer["probs"] == pytest.approx(expected[0]["probs"], abs=1e-5)
        damaged = client.post("/score", content=image[:200], headers={"Content-Type": "image/png"})
        check_error(damaged, 422, "not_an_image", "row 0: the image is")
        empty = client.post("/score", content=b"", headers={"Content-Type": "image/png"})
        check_error(empty, 400, "bad_request", "empty")
        # As Java's HTTP client asks, in case the server speaks HTTP/2.
        offer = {
            "Connection": "Upgrade, HTTP2-Settings",
            "Upgrade": "h2c",
            "HTTP2-Settings": "AAMAAABkAAQCAAAA",
        }
        answer = client.post("/score", json=body(encode(image)), headers=offer)
        assert answer.status_code == 200, answer.text


def test_a_row_in_any_place_is_explained_by_its_own_parameters(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    def asking(**parameters: Any) -> str:
        image = encode(make_image(5))
        form = {"image_base64": image, "model_explainability": True, "xai_parameters": parameters}
        return json.dumps(form)

    few = {"xai_algorithm": "integrated_gradients", "n_steps": 2}
    rows = [
        encode(make_image(5)),
        asking(**few, visualizations=False, attributions=True),
        asking(**few),
        encode(make_image(5)),
    ]
    with serve_app(scorer_of(packaged)) as client:
        answers = client.post("/score", json=body(*rows)).json()
        alone = client.post("/score", json=body(*rows[2:3])).json()
        predicted = client.post("/invocations", json={"dataframe_split": body(*rows)["input_data"]}).json()
    assert [sorted(set(answer) - {"probs", "labels"}) for answer in answers] == [
        [],
        ["attributions"],
        ["visualizations"],
        [],
    ]
    assert np.shape(answers[1]["attributions"]) == (3, 32, 32)
    assert set(alone[0]) == {"probs", "labels", "visualizations"}
    assert [set(answer) for answer in predicted["predictions"]] == [set(answer) for answer in answers]
    for answer in answers:
        assert answer["probs"] == pytest.approx(answers[0]["probs"], abs=1e-5)


@pytest.mark.parametrize("task", [Task.MULTILABEL, Task.DETECTION, Task.SEGMENTATION])
def test_mlflow_and_we_answer_alike(
    task: Task,
    packaged: Packaged,
    load_model: Callable[[Task], Any],
    serve_app: ServeApp,
    make_image: MakeImage,
    encode: Encode,
) -> None:
    """What `mlflow models serve` runs, pyfunc, /invocations and /score, in every form that MLflow reads."""
    import uvicorn
    from mlflow.pyfunc import scoring_server

    rows = [encode(make_image(seed, size)) for seed, size in enumerate([(60, 40), (60, 40), (40, 70)])]
    params = {} if task is Task.MULTILABEL else {"params": {"box_detections_per_image": 2}}
    expected = load_model(task).predict(pd.DataFrame({"image": rows}), **params).to_dict("records")
    forms = [
        {"dataframe_split": {"columns": ["image"], "index": [5, 6, 7], "data": [[row] for row in rows]}},
        {"dataframe_records": [{"image": row} for row in rows]},
        {"instances": [{"image": row} for row in rows]},
        {"inputs": {"image": rows}},
        {"inputs": rows},
        {"instances": rows},
    ]
    listener = socket.create_server(("127.0.0.1", 0))
    stock = uvicorn.Server(
        uvicorn.Config(scoring_server.init(load_model(task)), ws="none", log_level="critical")
    )
    thread = threading.Thread(target=stock.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with serve_app(scorer_of(packaged, task)) as ours:
            score = ours.post("/score", json=body(*rows, **params)).json()
            assert_alike(score, expected)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/invocations"
            for form in forms:
                theirs = httpx.post(url, json={**form, **params}, timeout=60).json()
                mine = ours.post("/invocations", json={**form, **params}).json()
                assert list(mine) == list(theirs) == ["predictions"]
                assert_alike(theirs["predictions"], expected)
                assert_alike(mine["predictions"], expected)
            if not params:
                csv = pd.DataFrame({"image": rows}).to_csv(index=False)
                for answer in (
                    httpx.post(url, content=csv, headers={"Content-Type": "text/csv"}, timeout=60),
                    ours.post("/invocations", content=csv, headers={"Content-Type": "text/csv"}),
                ):
                    assert_alike(answer.json()["predictions"], expected)
    finally:
        stock.should_exit = True
        thread.join()
        listener.close()


def assert_alike(left: Any, right: Any) -> None:
    """Equal JSON, numbers but for the rounding that goes with a batch."""
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key, value in left.items():
            assert_alike(value, right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_alike(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=1e-4)
    else:
        assert left == right


# Batches.


def test_concurrent_images_share_batches(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    scorer = scorer_of(packaged)
    expected = {
        seed: scorer.score_images([np.asarray(_decoded(make_image(seed)))], scorer.spec.parameters)[0]
        for seed in range(12)
    }
    gate = Gate(scorer)
    with serve_app(scorer, Options(cores=1, max_batch=4, max_wait_ms=2000)) as client:

        def ask(seed: int) -> httpx.Response:
            row = "AAAA" if seed == 7 else encode(make_image(seed))
            return client.post("/score", json=body(row))

        with ThreadPoolExecutor(12) as pool:
            asked = {seed: pool.submit(ask, seed) for seed in range(12)}
            time.sleep(1.0)
            gate.opened.set()
            got = {seed: future.result() for seed, future in asked.items()}
        # One wrong image fails its own request.
        check_error(got.pop(7), 422, "not_an_image", "row 0: not an image")
        for seed, answer in got.items():
            assert answer.json()[0]["probs"] == pytest.approx(expected[seed]["probs"], abs=1e-5)
        assert metric(client, "trainer_batch_images_sum") == 11
        assert 3 <= metric(client, "trainer_batch_images_count") <= 6
        assert metric(client, "trainer_queue_images") == metric(client, "trainer_queue_bytes") == 0


def test_images_in_a_batch_are_not_padded(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    """Faster R-CNN's tensors have the images' shapes, and padding would change what is found."""
    scorer = scorer_of(packaged, Task.DETECTION)
    images = [make_image(seed, size) for seed, size in enumerate([(60, 40), (40, 60), (90, 40), (61, 40)])]
    alone = [scorer.score_images([_decoded(image)], scorer.spec.parameters)[0] for image in images]
    with serve_app(scorer, Options(cores=1, max_wait_ms=1000)) as client:
        together = client.post("/score", json=body(*map(encode, images)))
    assert_alike(together.json(), alone)


def test_a_batch_on_a_cpu_fits_its_caches() -> None:
    import torch

    from serving.service.batching import largest_batch

    large, small = torch.empty(3, 640, 640), torch.empty(3, 224, 224)
    assert largest_batch(large, 8, on_cpu=True) < largest_batch(large, 8, on_cpu=False) == 8
    assert largest_batch(small, 8, on_cpu=True) == 8
    assert largest_batch(torch.empty(3, 4000, 4000), 8, on_cpu=True) == 1


def _decoded(content: bytes) -> Any:
    from trainer.data.images import decode

    return decode(content)


def test_failed_batch_is_retried_image_by_image(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    scorer = scorer_of(packaged)
    replica = scorer.replica

    def short_of_memory() -> Scorer:
        copy = replica()
        infer = copy.infer

        def for_one(tensors: Any, parameters: Any) -> Any:
            if len(tensors) > 1:
                raise MemoryError("no room for a batch")
            return infer(tensors, parameters)

        copy.infer = for_one  # type: ignore[method-assign]
        return copy

    scorer.replica = short_of_memory  # type: ignore[method-assign]
    with serve_app(scorer) as client:
        answers = client.post("/score", json=body(*[encode(make_image(seed)) for seed in range(6)]))
    assert len(answers.json()) == 6


# Limits.


def test_full_queue_is_answered_with_429(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    scorer = scorer_of(packaged)
    gate = Gate(scorer)
    row = encode(make_image())
    with serve_app(scorer, Options(max_queue=3, max_queue_mb=1, cores=1)) as client:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.post, "/score", json=body(row, row))
            assert gate.reached.acquire(timeout=30)
            busy = client.post("/score", json=body(row, row))
            check_error(busy, 429, "busy", "this request has 2 more, over the limit of 3")
            assert 1 <= int(busy.headers["Retry-After"]) <= 60
            check_error(client.post("/score", content=b" " * 1_000_000), 429, "busy", "MB are waiting")
            second = pool.submit(client.post, "/score", json=body(row))
            while metric(client, "trainer_queue_images") < 3:
                time.sleep(0.01)
            check_error(client.post("/score", json=body(row)), 429, "busy", "which is the limit")
            gate.opened.set()
            assert first.result().status_code == second.result().status_code == 200
        assert client.post("/score", json=body(row)).status_code == 200
        assert metric(client, "trainer_queue_images") == 0


def test_slow_answer_is_answered_with_504(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    scorer = scorer_of(packaged)
    gate = Gate(scorer)
    row = encode(make_image())
    with serve_app(scorer, Options(timeout_s=0.3, cores=1)) as client:
        check_error(client.post("/score", json=body(row)), 504, "timeout", "no answer within 0.3 s")
        gate.opened.set()
        until = time.monotonic() + 10
        while (answer := client.post("/score", json=body(row))).status_code == 504:
            assert time.monotonic() < until
        assert answer.status_code == 200
        assert metric(client, "trainer_queue_images") == 0


def test_work_stops_when_the_client_disconnects(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    scorer = scorer_of(packaged)
    gate = Gate(scorer)
    content = json.dumps(body(*[encode(make_image())] * 500)).encode()
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
    with serve_app(scorer, Options(cores=1)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(head + content)
            assert gate.reached.acquire(timeout=30)
        until = time.monotonic() + 10
        while metric(client, "trainer_queue_images") > 0:
            assert time.monotonic() < until
        gate.opened.set()
        assert client.post("/score", json=body(encode(make_image()))).status_code == 200
        assert metric(client, "trainer_batch_images_sum") < 100
        assert 'trainer_errors_total{kind="client_gone"} 1.0' in client.get("/metrics").text


def test_too_many_rows_are_rejected(packaged: Packaged, serve_app: ServeApp) -> None:
    with serve_app(scorer_of(packaged), Options(max_rows=3)) as client:
        check_error(client.post("/score", json=body(*["AAAA"] * 4)), 413, "too_large", "over the limit of 3")


def _talk(client: httpx.Client, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes as they are, and read until the server closes."""
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
    return answer


def test_slow_and_malformed_requests_are_rejected(
    packaged: Packaged, serve_app: ServeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 0.5)
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with serve_app(scorer_of(packaged), Options(read_timeout_s=0.5)) as client:
        answers = {
            b"408": [
                _talk(client, head + b"Content-Length: 99\r\n\r\n{"),
                _talk(client, head),
                _talk(client, b""),
                _talk(client, head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"),
            ],
            b"431": [
                _talk(client, head + b"X: " + b"x" * 300_000),
                _talk(client, head + b"X: x\r\n" * 60_000),
            ],
            b"400": [
                _talk(client, b"nonsense\r\n\r\n"),
                _talk(client, head + b"Content-Length: x\r\n\r\n"),
                _talk(client, head + b"Transfer-Encoding: chunked\r\n\r\nz\r\n"),
            ],
        }
        for status, each in answers.items():
            for answer in each:
                top, _, content = answer.partition(b"\r\n\r\n")
                assert top.startswith(b"HTTP/1.1 " + status), answer
                assert set(json.loads(content)["error"]) == {"code", "message", "row"}
        assert metric(client, "trainer_queue_bytes") == 0


# What it tells of itself.


def test_every_request_is_a_line_in_the_log(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    log = io.StringIO()
    with serve_app(scorer_of(packaged), access_log=AccessLog(log)) as client:
        rows = [encode(make_image(seed)) for seed in range(3)]
        answer = client.post("/score", json=body(*rows), headers={"X-Request-ID": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
        client.post("/score", content=b"{}", headers={"x-request-id": "no good"})
        client.get("/none")
    scored, refused, missing = map(json.loads, log.getvalue().splitlines())
    assert (scored["method"], scored["path"], scored["status"]) == ("POST", "/score", 200)
    assert (scored["rows"], scored["request_id"], scored["client"]) == (3, "abc-1", "127.0.0.1")
    assert 1 <= scored["batch"] <= 3
    assert scored["ms"] > 0
    assert scored["bytes_in"] == len(answer.request.content)
    assert scored["bytes_out"] == len(answer.content)
    assert (refused["status"], refused["error"], len(refused["request_id"])) == (400, "bad_request", 32)
    assert (missing["status"], missing["error"]) == (404, "not_found")


def test_metrics_count_requests_errors_and_batches(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    with serve_app(scorer_of(packaged)) as client:
        client.post("/score", json=body(*[encode(make_image())] * 5))
        client.post("/score", content=b"{}")
        for number in range(3):
            client.get(f"/scan/{number}")
        text = client.get("/metrics").text
    for line in (
        'trainer_requests_total{path="/score",status="200"} 1.0',
        'trainer_requests_total{path="/score",status="400"} 1.0',
        'trainer_requests_total{path="other",status="404"} 3.0',
        'trainer_errors_total{kind="bad_request"} 1.0',
        'trainer_request_seconds_count{path="/score"} 2.0',
        "trainer_images_total 5.0",
        "trainer_batch_images_sum 5.0",
        "trainer_queue_images 0.0",
    ):
        assert line in text.splitlines()
    assert "/scan" not in text


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.SEGMENTATION])
def test_swagger_describes_requests_and_answers(
    task: Task, packaged: Packaged, serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    with serve_app(scorer_of(packaged, task)) as client:
        document = client.get("/swagger.json?version=3").json()
        assert document["openapi"].startswith("3.")
        for path in ("/score", "/invocations"):
            operation = document["paths"][path]["post"]
            given = operation["requestBody"]["content"]["application/json"]
            answered = operation["responses"]["200"]["content"]["application/json"]
            answer = client.post(path, json=given["example"])
            assert answer.status_code == 200, answer.text
            validate(document, given["schema"], given["example"])
            validate(document, answered["schema"], answered["example"])
            validate(document, answered["schema"], answer.json())
            wrong = client.post(path, json={})
            validate(document, {"$ref": "#/components/schemas/Error"}, wrong.json())
        request = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for sent in (
            body([encode(make_image())]),
            body({"image_base64": encode(make_image())}),
            {"data": []},
        ):
            valid = client.post("/score", json=sent).status_code == 200
            with pytest.raises(jsonschema.ValidationError) if not valid else _nothing():
                validate(document, request, sent)
        for path in ("/livez", "/readyz"):
            assert path in document["paths"]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def validate(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Against a schema of the document; OpenAPI 3.0's nullable said as JSON Schema says it."""

    def translated(node: Any) -> Any:
        if isinstance(node, list):
            return [translated(each) for each in node]
        if not isinstance(node, dict):
            return node
        made = {key: translated(each) for key, each in node.items() if key != "nullable"}
        if node.get("nullable") is True:
            made["type"] = [made["type"], "null"]
        return made

    whole = {**translated(schema), "components": translated(document["components"])}
    jsonschema.Draft202012Validator(whole).validate(value)


# Processes.


def start(model: Path, *flags: str, environment: dict[str, str] | None = None) -> tuple[Any, httpx.Client]:
    server = subprocess.Popen(
        [sys.executable, "-m", "trainer", "serve", str(model), "--port", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        pytest.fail(f"the server did not start: {server.communicate()[1]}")
    url = line.split()[-1].removesuffix("/score")
    return server, httpx.Client(base_url=url, timeout=120)


def running_workers(server: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server).children():
        with suppress(psutil.NoSuchProcess):  # a zombie, for a moment
            if any("spawn_main" in part for part in child.cmdline()):
                found.append(child)
    return found


def test_workers_share_work_and_metrics_and_finish_accepted_requests(
    packaged: Packaged, make_image: MakeImage, encode: Encode
) -> None:
    server, client = start(packaged(Task.CLASSIFICATION), "--workers", "2", "--max-queue", "5000")
    try:
        image, headers = make_image(), {"Content-Type": "image/png", "Connection": "close"}
        for _ in range(20):
            assert client.post("/score", content=image, headers=headers).status_code == 200
        # Whichever worker is asked knows of all requests.
        for _ in range(5):
            answer = client.get("/metrics", headers={"Connection": "close"})
            assert 'trainer_requests_total{path="/score",status="200"} 20.0' in answer.text.splitlines()
        workers = running_workers(server.pid)
        workers[0].kill()
        until = time.monotonic() + 120
        while len(running_workers(server.pid)) < 2 or workers[0] in running_workers(server.pid):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert client.post("/score", content=image, headers=headers).status_code == 200
        with ThreadPoolExecutor(4) as pool:
            rows = body(*[encode(image)] * 400)
            asked = [
                pool.submit(httpx.post, f"{client.base_url}/score", json=rows, timeout=120) for _ in range(4)
            ]
            until = time.monotonic() + 30
            while metric(client, "trainer_queue_images") < 1600:
                assert time.monotonic() < until
            server.send_signal(signal.SIGTERM)
            assert [len(future.result().json()) for future in asked] == [400] * 4
        out, errors = server.communicate(timeout=60)
    finally:
        server.kill()
        server.communicate()
        client.close()
    assert server.returncode == 0
    assert "Traceback" not in errors
    lines = [json.loads(line) for line in out.splitlines()]
    assert sum(line["path"] == "/score" and line["status"] == 200 for line in lines) == 25


def test_readiness_ends_before_the_service(packaged: Packaged, serve_app: ServeApp) -> None:
    with serve_app(scorer_of(packaged)) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        client.app.state.service.draining = True
        check_error(client.get("/readyz"), 503, "stopping", "stopping")
        assert client.get("/livez").status_code == 200


@pytest.mark.fresh_processes
def test_memory_does_not_grow_with_requests(
    packaged: Packaged, make_image: MakeImage, encode: Encode
) -> None:
    """A shorter form of the run in benchmarks/serving.py --memory."""
    server, client = start(packaged(Task.CLASSIFICATION), "--no-access-log")
    try:
        rows = [json.dumps(body(encode(make_image(seed, (320, 240))))).encode() for seed in range(8)]
        sizes = []
        for count in (150, 600):
            with ThreadPoolExecutor(4) as pool:
                sent = [
                    pool.submit(client.post, "/score", content=rows[number % 8]) for number in range(count)
                ]
                assert all(future.result().status_code == 200 for future in sent)
            sizes.append(psutil.Process(server.pid).memory_info().rss)
    finally:
        server.kill()
        server.communicate()
        client.close()
    assert sizes[1] <= 1.05 * sizes[0]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--device", "cuda:99"), "--device cuda:99: cannot be used"),
        (("--workers", "0"), "--workers must be at least 1"),
        (("--max-batch", "0"), "--max-batch: input should be greater than or equal to 1, got 0"),
        (("--timeout-s", "-1"), "--timeout-s: input should be greater than 0, got -1"),
        (("--auth-key-file", "/nowhere/keys"), "/nowhere/keys: the key file cannot be read"),
    ],
)
def test_error_names_the_wrong_flag(flags: tuple[str, ...], reason: str, packaged: Packaged) -> None:
    from trainer import cli

    model = str(packaged(Task.CLASSIFICATION))
    with pytest.raises(RunError, match=reason):
        cli.app(["serve", model, "--port", "0", *flags], exit_on_error=False)


def test_all_variants_of_base64_are_accepted(
    packaged: Packaged, serve_app: ServeApp, make_image: MakeImage
) -> None:
    image = make_image(11)
    text = base64.b64encode(image).decode()
    rows = [
        text,
        base64.encodebytes(image).decode(),
        base64.urlsafe_b64encode(image).decode(),
        text.rstrip("="),
    ]
    rows += [f"data:image/png;base64,{text}", f"data:image/png;charset=utf-8;base64,{text}"]
    rows += [json.dumps({"image_base64": row}) for row in list(rows)]
    with serve_app(scorer_of(packaged)) as client:
        for sent in (body(*rows), body(*[[row] for row in rows], params={}), body(*rows, params=None)):
            sent["input_data"]["index"] = list(range(100, 100 + len(rows)))
            answers = client.post("/score", json=sent).json()
            assert len(answers) == len(rows)
            for answer in answers:
                assert answer["probs"] == pytest.approx(answers[0]["probs"], abs=1e-5)
