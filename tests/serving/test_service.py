"""What operates the service: keys, limits, probes, metrics and logs."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pandas as pd
import pytest

from serving.service import protocol
from serving.service.keys import Keys
from serving.service.options import Options
from serving.service.telemetry import AccessLog
from tests.serving.checks import assert_alike, body, check_error, metric, scorer_of
from trainer.errors import RunError
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")

MakeImage = Callable[..., bytes]
Encode = Callable[[bytes], str]
Packaged = Callable[..., Path]
ServeApp = Callable[..., AbstractContextManager[Any]]


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


# Limits.


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


def test_readiness_ends_before_the_service(packaged: Packaged, serve_app: ServeApp) -> None:
    with serve_app(scorer_of(packaged)) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        client.app.state.service.draining = True
        check_error(client.get("/readyz"), 503, "stopping", "stopping")
        assert client.get("/livez").status_code == 200


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
