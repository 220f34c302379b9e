"""Whatever is sent to the service: a 4xx that names row and reason, or a whole answer; never a 5xx.

Over 5,000 requests to `trainer serve` itself: generated ones, mutations of their bytes, damaged and lying
images, and those that are known to have brought other servers down.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from serving.explain.request import as_boolean
from trainer.tasks import Task

REQUESTS = 5000
EXAMPLES, MUTATIONS = 700, 4
IMAGES = 1500

IMAGE = base64.b64encode(b"P6 2 1 255\n" + bytes(range(6))).decode()

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.binary(max_size=60).map(lambda content: base64.b64encode(content).decode()),
    st.just(IMAGE),
)
KEYS = st.one_of(
    st.sampled_from(["image", "image_base64", "model_explainability", "xai_parameters", "columns", "data"]),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
GOOD_ROWS = (IMAGE, [IMAGE], json.dumps({"image_base64": IMAGE, "model_explainability": False}))
# An explanation takes seconds: only such as are refused are asked for.
UNWANTED = VALUES.filter(lambda value: as_boolean(value) is not True)
ROWS = st.lists(
    st.one_of(
        *(st.just(row) for row in GOOD_ROWS),
        VALUES,
        VALUES.map(json.dumps),
        st.fixed_dictionaries(
            {"image_base64": VALUES}, optional={"model_explainability": UNWANTED, "xai_parameters": VALUES}
        ).map(json.dumps),
    ),
    min_size=1,
    max_size=4,
)
GOOD_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "box_score_threshold": st.floats(0, 1),
        "box_detections_per_image": st.integers(1, 5),
        "tile_grid_size": st.sampled_from(["2x1", "(1, 2)", "none", None]),
        "tile_overlap_ratio": st.floats(0, 1, exclude_max=True),
    },
)
PARAMS = st.dictionaries(
    st.sampled_from(["box_score_threshold", "tile_grid_size", "box_detections_per_image", "x", "\ud800"]),
    VALUES | st.floats(0, 1) | st.integers(1, 5),
    max_size=2,
)
FRAMED = st.one_of(
    ROWS.map(lambda rows: ("/score", {"input_data": {"columns": ["image"], "data": rows}})),
    ROWS.map(lambda rows: ("/invocations", {"dataframe_split": {"columns": ["image"], "data": rows}})),
    ROWS.map(lambda rows: ("/invocations", {"instances": rows})),
    ROWS.map(lambda rows: ("/invocations", {"inputs": {"image": rows}})),
)
WITH_PARAMS = st.tuples(FRAMED, GOOD_PARAMS | PARAMS).map(
    lambda pair: (pair[0][0], {**pair[0][1], "params": pair[1]})
)
TABLES = st.fixed_dictionaries(
    {"columns": st.just(["image"]) | VALUES, "data": ROWS | VALUES},
    optional={"index": VALUES, "params": PARAMS | VALUES, "more": VALUES},
)
SCORES = st.fixed_dictionaries({"input_data": TABLES | VALUES}, optional={"params": PARAMS | VALUES})
INVOCATIONS = st.dictionaries(
    st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"]),
    TABLES | ROWS | PARAMS | VALUES,
    max_size=2,
)


class Server(NamedTuple):
    connection: http.client.HTTPConnection
    pid: int
    sent: list[int]

    def post(self, path: str, content: Any, media_type: str = "application/json", **headers: str) -> Any:
        """Status and body; the connection stays open for the next, unless the server closed it."""
        self.sent[0] += 1
        try:
            self.connection.request("POST", path, content, {"Content-Type": media_type, **headers})
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise


@pytest.fixture(scope="module")
def server(packaged: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("fuzzed") / "log"
    model = packaged(Task.DETECTION, "yolo11n")
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "serve", str(model), "--port", "0", "--no-access-log"],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env=os.environ.copy(),
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            port = int(line.split()[-1].removesuffix("/score").rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            yield Server(connection, process.pid, [0])
            connection.close()
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()


def check(path: str, content: bytes, status: int, answer: bytes, rows: int | None = None) -> Any:
    """A refusal in its form, or one answer for each row that was sent; returns the refusal."""
    shown = (path, content[:300], status, answer[:300])
    found = json.loads(answer)
    if status == 200:
        answers = found if path == "/score" else found["predictions"]
        if rows is None:
            rows = len(sent_rows(json.loads(content)))
        assert len(answers) == rows, shown
        assert all(list(each) == ["boxes"] for each in answers), shown
        return None
    assert 400 <= status < 500, shown
    error = found["error"]
    assert set(error) == {"code", "message", "row"}, shown
    assert 0 < len(error["message"]) < 1000, shown
    if error["row"] is not None:
        assert error["message"].startswith(f"row {error['row']}: "), shown
    return error


def sent_rows(request: dict[str, Any]) -> list[Any]:
    (table,) = (value for key, value in request.items() if key != "params")
    if isinstance(table, list):
        return table
    rows = table["data"] if "data" in table else table["image"]
    return rows if isinstance(rows, list) else [rows]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=st.one_of(
        FRAMED,
        WITH_PARAMS,
        st.tuples(st.just("/score"), SCORES | VALUES),
        st.tuples(st.just("/invocations"), INVOCATIONS | VALUES),
    ),
    seed=st.integers(0, 2**32),
)
def test_no_request_gets_a_5xx_or_a_shortened_answer(
    case: tuple[str, Any], seed: int, server: Server
) -> None:
    path, request = case
    # Through ASCII, so that lone surrogates reach the server as JSON escapes.
    content = json.dumps(request).encode("ascii")
    error = check(path, content, *server.post(path, content))
    if error is not None and error["row"] is not None:
        assert sent_rows(request)[error["row"]] not in GOOD_ROWS
    generator = random.Random(seed)
    for _ in range(MUTATIONS):
        mutated = mutation(content, generator)
        check(path, mutated, *server.post(path, mutated))


def mutation(content: bytes, generator: random.Random) -> bytes:
    """The same bytes with a few of them changed, left out, repeated, or cut off."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(changed)) if changed else 0
        kind = generator.randrange(5)
        if kind == 0:
            changed[at : at + 1] = bytes([generator.randrange(256)])
        elif kind == 1:
            del changed[at : at + generator.randint(1, 8)]
        elif kind == 2:
            changed[at:at] = changed[at : at + generator.randint(1, 30)]
        elif kind == 3:
            changed[at:at] = generator.choice([b"NaN", b"null", b"{", b"[", b'"', b"\\ud800", b"1e999", b"-"])
        else:
            del changed[at:]
    return bytes(changed)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), media_type=st.text(st.characters(codec="latin-1"), max_size=30))
def test_no_bytes_get_a_5xx(content: bytes, media_type: str, server: Server) -> None:
    for path, kind in (("/score", "application/json"), ("/invocations", "text/csv"), ("/score", "image/x")):
        check(path, content, *server.post(path, content, kind), rows=1)
    printable = "".join(character for character in media_type if character.isprintable())
    check("/score", content, *server.post("/score", content, printable), rows=1)


def picture(file_format: str, mode: str = "RGB", size: tuple[int, int] = (23, 17)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(noise).convert(mode).save(file, file_format)
    return file.getvalue()


def test_damaged_images_are_rejected(server: Server) -> None:
    files = [picture(name) for name in ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM")]
    files += [picture("PNG", "P"), picture("PNG", "I;16"), picture("TIFF", "F"), picture("JPEG", "CMYK")]
    generator = random.Random(1)
    answered = 0
    for number in range(IMAGES):
        content = mutation(files[number % len(files)], generator)
        # What it claims to be means nothing; what it is decides.
        status, answer = server.post("/score", content, generator.choice(["image/jpeg", "image/gif"]))
        error = check("/score", content, status, answer, rows=1)
        assert error is None or (status in (400, 422) and error["row"] == 0), error
        answered += error is None
    assert 0 < answered < IMAGES


def _png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1_000_000)) for _ in range(count // 1_000_000)]
    return b"".join([*parts, packer.flush()])


def test_decompression_bombs_need_little_memory(server: Server) -> None:
    import psutil

    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    over = _png(10_001, 10_000, _zeros(1_000_000))
    bombs = [
        (over, "too many pixels"),
        (_png(2**31 - 1, 2**31 - 1, b""), ""),
        (_png(64, 64, _zeros(300_000_000)), None),  # more pixels than it has room for
        (_png(9_000, 9_000, zlib.compress(b"")), ""),
        (_png(64, 64, zlib.compress(bytes(193 * 64))[:-9]), ""),
        (b"P6 99999 99999 255\n", "too many pixels"),
        (b"GIF89a\xff\xff\xff\xff" + bytes(20), ""),
    ]
    for content, reason in bombs:
        status, answer = server.post("/score", content, "image/png")
        error = check("/score", content, status, answer, rows=1)
        if reason is not None:
            assert error is not None
            assert reason in error["message"]
        for row in range(2):
            rows = [IMAGE, IMAGE]
            rows[row] = base64.b64encode(content[:200_000]).decode()
            request = json.dumps({"input_data": {"columns": ["image"], "data": rows}}).encode()
            error = check("/score", request, *server.post("/score", request))
            assert error is None or error["row"] == row
    assert process.memory_info().rss < before + 500_000_000


def test_known_attacks_are_rejected(server: Server) -> None:
    tiny = base64.b64encode(picture("GIF", "P", (1, 1))).decode()

    def table(rows: str, more: str = "") -> bytes:
        return f'{{"input_data": {{"columns": ["image"], "data": {rows}}}{more}}}'.encode()

    good = json.dumps(IMAGE)
    asking = {"image_base64": IMAGE, "model_explainability": True}
    params = ["NaN", "Infinity", "-Infinity", "1e999", "1e400", "-0.1", "1.1", '"0.5"', "true", "[]", "{}"]
    cases: list[tuple[bytes, str, int | None]] = [
        (table("[" + ", ".join(["null"] * 1_000_000) + "]"), "got null", 0),
        (table("[" + ", ".join(["[]"] * 1_000_000) + "]"), "a list of 0", 0),
        (table("[" + ", ".join([f'"{tiny}"'] * 600_000) + "]"), "over the limit of 1000", None),
        (table(json.dumps([IMAGE] * 900 + [None])), "got null", 900),
        (b"[" * 10_000_000, "nested too deeply", None),
        (b'{"a":' * 2_000_000, "nested too deeply", None),
        (table("[" * 900 + "1" + "]" * 900), "", 0),
        (table(json.dumps(["[" * 100_000])), "not base64", 0),
        (table(json.dumps(["{" * 100_000])), "JSON", 0),
        (table(json.dumps(['{"image_base64": ' + "[" * 100_000])), "nested too deeply", 0),
        (table(f"[{good}]", ', "params": {"box_detections_per_image": ' + "9" * 4000 + "}"), "", None),
        (table(f"[{good}]", ', "params": {"box_detections_per_image": ' + "9" * 5000 + "}"), "", None),
        (table(f"[{good}]", ', "params": {"tile_grid_size": "20x21"}'), "2 to 400 tiles", None),
        (table(f"[{good}]", ', "params": {"tile_grid_size": "' + "9" * 9999 + 'x1"}'), "2 to 400", None),
        (table(f"[{good}]", ', "parameters": {}'), "unknown key 'parameters'", None),
        (b'{"inputdata": {}}', "unknown key 'inputdata'", None),
        (b'{"input_data": {"columns": ["image"], "data": ["AAAA"], "data": []}}', "occurs twice", None),
        (b"\xff\xfe" + '{"input_data": {}}'.encode("utf-16-le"), "", None),
        (b"\xef\xbb\xbf{}", "", None),
        *(
            (table(f"[{good}]", f', "params": {{"box_score_threshold": {value}}}'), "", None)
            for value in params
        ),
        *(
            (table(json.dumps([IMAGE, {**asking, "xai_parameters": wrong}])), "", 1)
            for wrong in ({"n_steps": -5}, {"xai_algorithm": "x"}, {"n_steps": 3, "more": []})
        ),
    ]
    for content, reason, row in cases:
        began = time.monotonic()
        error = check("/score", content, *server.post("/score", content))
        assert error is not None, content[:200]
        assert reason in error["message"], (content[:200], error)
        assert error["row"] == row, (content[:200], error)
        assert time.monotonic() - began < 60
    for content in (b"", b"image\n" + b"null\n" * 1_000_000, b"image\n" + b'"' * 1_000_000, b"a" * 3_000_000):
        assert check("/invocations", content, *server.post("/invocations", content, "text/csv")) is not None


def test_chunked_bodies_and_huge_headers(server: Server) -> None:
    whole = json.dumps({"input_data": {"columns": ["image"], "data": [IMAGE] * 3}}).encode()
    status, answer = server.post("/score", iter([whole[:7], whole[7:40], whole[40:]]))
    assert check("/score", whole, status, answer) is None
    status, answer = server.post("/score", iter([b"[" * 1000] * 1000))
    assert check("/score", b"", status, answer) is not None
    status, answer = server.post("/score", whole, "application/json", **{"X-Large": "x" * 30_000})
    assert check("/score", whole, status, answer) is None
    for headers in ({"X-Large": "x" * 100_000}, {f"X-{number}": "x" * 900 for number in range(90)}):
        try:
            status, answer = server.post("/score", whole, "application/json", **headers)
        except (ConnectionError, http.client.HTTPException):
            server.connection.close()  # cut off before it had said all
            continue
        assert status == 431
        assert json.loads(answer)["error"]["code"] == "headers_too_large"
    for kind in (
        "application/xml",
        "multipart/form-data; boundary=x",
        "x" * 2000,
        "application/json; charset=x",
    ):
        status, answer = server.post("/score", whole, kind)
        assert status == 415
        check("/score", whole, status, answer)


def test_fuzzing_sent_enough_requests(server: Server) -> None:
    """And the service is as it was before them."""
    assert server.sent[0] >= REQUESTS
    whole = json.dumps({"input_data": {"columns": ["image"], "data": [IMAGE]}}).encode()
    assert server.post("/score", whole)[0] == 200
    server.connection.request("GET", "/metrics")
    text = server.connection.getresponse().read().decode()
    assert "trainer_queue_images 0.0" in text
    assert "trainer_queue_bytes 0.0" in text
    assert not [line for line in text.splitlines() if 'status="5' in line]
