"""The scoring service answers what the documentation says, and rejects the rest by row and reason."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from serving.payload import MAX_REQUEST_BYTES
from serving.scorer import Scorer, read_spec
from serving.service.launch import serve
from trainer.errors import RunError
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")

MakeImage = Callable[..., bytes]
Encode = Callable[[bytes], str]


ServeApp = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="module")
def classifier(packaged: Callable[..., Path], serve_app: ServeApp) -> Iterator[httpx.Client]:
    with serve_app(Scorer.load(packaged(Task.CLASSIFICATION) / "artifacts")) as client:
        yield client


@pytest.fixture(scope="module")
def detector(packaged: Callable[..., Path], serve_app: ServeApp) -> Iterator[httpx.Client]:
    with serve_app(Scorer.load(packaged(Task.DETECTION) / "artifacts")) as client:
        yield client


def body(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"input_data": {"columns": ["image"], "index": list(range(len(rows))), "data": list(rows)}, **more}


def check_error(answer: httpx.Response, status: int, reason: str, row: int | None = None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "row"}
    assert reason in error["message"]
    assert error["row"] == row
    if row is not None:
        assert error["message"].startswith(f"row {row}: ")


def test_score_answers_with_a_bare_list_in_order(
    classifier: httpx.Client, make_image: MakeImage, encode: Encode
) -> None:
    rows = [encode(make_image(seed)) for seed in range(20)]
    answers = classifier.post("/score", json=body(*rows)).json()
    assert len(answers) == 20
    for row, answer in zip(rows, answers, strict=True):
        assert list(answer) == ["probs", "labels"]
        assert answer["labels"] == ["can", "carton", "우유병"]
        assert sum(answer["probs"]) == pytest.approx(1, abs=1e-5)
        (alone,) = classifier.post("/score", json=body(row)).json()
        np.testing.assert_allclose(answer["probs"], alone["probs"], atol=1e-5)


def test_every_form_of_a_row_scores_alike(
    classifier: httpx.Client, make_image: MakeImage, encode: Encode
) -> None:
    image = make_image(3)
    one_line = base64.b64encode(image).decode()
    rows = [
        encode(image),
        [one_line],
        "data:image/png;base64," + one_line,
        json.dumps({"image_base64": encode(image), "model_explainability": False, "xai_parameters": {}}),
    ]
    answers = classifier.post("/score", json=body(*rows)).json()
    assert len(answers) == 4
    for answer in answers:
        np.testing.assert_allclose(answer["probs"], answers[0]["probs"], atol=1e-6)


def test_parameters_change_the_answer(detector: httpx.Client, make_image: MakeImage, encode: Encode) -> None:
    rows = [encode(make_image(1)), encode(make_image(2))]

    def boxes(**params: Any) -> list[list[Any]]:
        answer = detector.post("/score", json=body(*rows, params=params))
        assert answer.status_code == 200, answer.text
        return [each["boxes"] for each in answer.json()]

    assert [len(found) for found in boxes()] == [7, 7]
    assert [len(found) for found in boxes(box_detections_per_image=3)] == [3, 3]
    assert boxes(box_score_threshold=1) == [[], []]
    for found in boxes()[0]:
        assert set(found) == {"box", "label", "score"}
        assert 0 <= found["box"]["topX"] <= found["box"]["bottomX"] <= 1
        assert 0 <= found["box"]["topY"] <= found["box"]["bottomY"] <= 1
    for found in (boxes()[0], boxes(tile_grid_size="2x2")[0]):
        scores = [each["score"] for each in found]
        assert scores == sorted(scores, reverse=True)
    assert boxes(tile_grid_size="2x2") != boxes()
    for found, same in zip(boxes(), boxes(tile_grid_size=None), strict=True):
        # Alike but for the rounding that goes with the batch.
        assert [each["label"] for each in found] == [each["label"] for each in same]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in same], abs=1e-5)
    check_error(
        detector.post("/score", json=body(*rows, params={"mask_pixel_score_threshold": 0.5})),
        400,
        "no parameter 'mask_pixel_score_threshold'; it has box_score_threshold",
    )


def test_invocations_answers_as_mlflow_does(
    classifier: httpx.Client, load_model: Callable[[Task], Any], make_image: MakeImage, encode: Encode
) -> None:
    rows = [encode(make_image(seed)) for seed in range(3)]
    expected = load_model(Task.CLASSIFICATION).predict(pd.DataFrame({"image": rows}))
    split = {"columns": ["image"], "data": [[row] for row in rows]}
    answers = [
        classifier.post("/invocations", json={"dataframe_split": split}),
        classifier.post("/invocations", json={"dataframe_records": [{"image": row} for row in rows]}),
        classifier.post("/invocations", json={"inputs": {"image": rows}}),
        classifier.post(
            "/invocations",
            content=pd.DataFrame({"image": rows}).to_csv(index=False),
            headers={"content-type": "text/csv"},
        ),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == ["predictions"]
        probs = [each["probs"] for each in answer.json()["predictions"]]
        np.testing.assert_allclose(probs, expected["probs"].tolist(), atol=1e-6)


def test_mlflows_own_client_is_served(
    classifier: httpx.Client, make_image: MakeImage, encode: Encode
) -> None:
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    client = ScoringServerClient(classifier.base_url.host, classifier.base_url.port)
    answer = client.invoke(pd.DataFrame({"image": [encode(make_image(1))]})).get_predictions()
    assert list(answer.columns) == ["probs", "labels"]


def test_health_and_version(classifier: httpx.Client) -> None:
    import mlflow

    assert classifier.get("/ping").status_code == 200
    assert classifier.get("/health").text == "\n"
    assert classifier.get("/version").text == mlflow.__version__


def test_unknown_addresses_and_methods_get_json_errors(classifier: httpx.Client) -> None:
    check_error(classifier.get("/docs"), 404, "POST to /score")
    check_error(classifier.get("/score"), 405, "Method Not Allowed")


@pytest.mark.parametrize(
    ("row", "status", "reason"),
    [
        ("http://127.0.0.1:9/a.png", 400, "not base64"),
        ("/etc/passwd", 422, "not an image"),
        ("file:///etc/passwd", 400, "not base64"),
        ("..", 400, "not base64"),
        (base64.b64encode(b"<svg/>").decode(), 422, "not an image"),
        (
            base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode(),
            422,
            "not an image",
        ),
        ("", 400, "empty"),
        (None, 400, "got null"),
        (5, 400, "got 5"),
        (["a", "b"], 400, "one image"),
        ('{"image_base64": "http://x"}', 400, "not base64"),
        ('{"image_base64": "QUFB", "model_explainability": true}', 422, "not an image"),
    ],
)
def test_wrong_row_fails_the_request_and_is_named(
    row: Any, status: int, reason: str, classifier: httpx.Client, make_image: MakeImage, encode: Encode
) -> None:
    good = encode(make_image())
    check_error(classifier.post("/score", json=body(good, row, good)), status, reason, row=1)
    split = {"columns": ["image"], "data": [good, row]}
    check_error(classifier.post("/invocations", json={"dataframe_split": split}), status, reason, row=1)


def test_a_truncated_image_is_named(classifier: httpx.Client, make_image: MakeImage, encode: Encode) -> None:
    whole = make_image(1, (300, 300), "JPEG")
    rows = [encode(whole)] * 9 + [encode(whole[: len(whole) // 2])]
    check_error(classifier.post("/score", json=body(*rows)), 422, "truncated", row=9)


def _png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims to be of this size."""
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_an_image_over_100_megapixels_is_refused_before_it_is_decoded(
    classifier: httpx.Client, encode: Encode
) -> None:
    started = time.monotonic()
    for size in ((10_001, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        answer = classifier.post("/score", json=body(encode(_png_header(*size))))
        check_error(answer, 422, "", row=0)
    assert time.monotonic() - started < 5


def test_a_request_over_50_mb_is_refused_however_it_is_sent(classifier: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    large = b" " * (MAX_REQUEST_BYTES + 1)
    check_error(classifier.post("/score", content=large, headers=headers), 413, "over 50 MB")
    check_error(classifier.post("/invocations", content=large, headers=headers), 413, "over 50 MB")

    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield b" " * 1_000_000

    check_error(classifier.post("/score", content=chunks(), headers=headers), 413, "over 50 MB")
    allowed = b"{" + b" " * (MAX_REQUEST_BYTES - 2) + b"}"
    check_error(classifier.post("/score", content=allowed, headers=headers), 400, "'input_data'")


@pytest.mark.parametrize(
    ("content", "headers", "status", "reason"),
    [
        (b"", {"content-type": "application/json"}, 400, "not valid JSON"),
        (b"null", {"content-type": "application/json"}, 400, "must be an object"),
        (b'{"input_data": NaN}', {"content-type": "application/json"}, 400, "NaN is not a JSON number"),
        (b"[" * 1_000_000, {"content-type": "application/json"}, 400, "nested too deeply"),
        (b'{"input_data": ' + b"9" * 100_000 + b"}", {"content-type": "application/json"}, 400, "not valid"),
        (b"\xff\xfe{}", {"content-type": "application/json; charset=utf-8"}, 400, "not valid JSON"),
        (b"{}", {"content-type": "application/json; charset=latin-1"}, 415, "only charset=utf-8"),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415, "must be application/json"),
        (b"{}", {"content-type": "video/mp4"}, 415, "must be application/json"),
        (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 415, "compressed"),
        (b"{}", {}, 400, "'input_data'"),
    ],
)
def test_invalid_bodies_are_rejected(
    content: bytes, headers: dict[str, str], status: int, reason: str, classifier: httpx.Client
) -> None:
    check_error(classifier.post("/score", content=content, headers=headers), status, reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid CSV"),
        (b"image\n", "data is empty"),
        (b"picture\nQUFB\n", "one column image"),
        (b"image,x\nQUFB,1\n", "one column image"),
        (b"image\n\xff\xfe\n", "not valid CSV"),
        (b'image\n"QUFB', "not valid CSV"),
        (b"image\nhttp://x\n", "row 0: not base64"),
    ],
)
def test_invalid_csv_is_rejected(content: bytes, reason: str, classifier: httpx.Client) -> None:
    answer = classifier.post("/invocations", content=content, headers={"content-type": "text/csv"})
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


def test_concurrent_requests_get_their_own_answers(
    classifier: httpx.Client, make_image: MakeImage, encode: Encode
) -> None:
    rows = [encode(make_image(seed)) for seed in range(8)]
    expected = [classifier.post("/score", json=body(row)).json() for row in rows]
    got: dict[int, Any] = {}

    def post(number: int) -> None:
        got[number] = classifier.post("/score", json=body(rows[number])).json()

    threads = [threading.Thread(target=post, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert got[number][0]["probs"] == pytest.approx(expected[number][0]["probs"], abs=1e-5)


def test_non_finite_outputs_are_a_server_error(
    packaged: Callable[..., Path], serve_app: ServeApp, make_image: MakeImage, encode: Encode
) -> None:
    import torch

    from trainer.models import create

    spec = read_spec(packaged(Task.CLASSIFICATION) / "artifacts")
    network = create(spec).build().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    with serve_app(Scorer(create(spec), network)) as client:
        check_error(client.post("/score", json=body(encode(make_image()))), 500, "not finite")


@pytest.mark.slow
def test_serve_announces_its_url_and_stops_on_ctrl_c(
    packaged: Callable[..., Path], make_image: MakeImage, encode: Encode, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.service.launch import serve\n"
        "serve(Path(sys.argv[1]), port=0, announce=lambda url: print(url, flush=True))"
    )
    run = packaged(Task.CLASSIFICATION).parent
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(run)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        answer = httpx.post(f"{url}/score", json=body(encode(make_image())), timeout=60)
        assert len(answer.json()) == 1
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=30)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0
    assert "Traceback" not in errors


def test_taken_port_is_reported_before_the_model_loads(packaged: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"127.0.0.1:{port}: cannot listen there: .*choose another --port"):
            serve(packaged(Task.CLASSIFICATION), port=port)
    with pytest.raises(RunError, match="cannot listen there"):
        serve(packaged(Task.CLASSIFICATION), port=99_999)
    with pytest.raises(RunError, match="does not exist"):
        serve(packaged(Task.CLASSIFICATION) / "nothing")
