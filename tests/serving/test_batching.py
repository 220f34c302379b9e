"""How the service batches concurrent requests, and what it answers when overloaded."""

from __future__ import annotations

import json
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.scorer import Scorer
from serving.service.batching import Batcher, Item
from serving.service.options import Options
from tests.serving.checks import assert_alike, body, check_error, metric, scorer_of
from trainer.tasks import Task

pytestmark = pytest.mark.usefixtures("warm_processes")

MakeImage = Callable[..., bytes]
Encode = Callable[[bytes], str]
Packaged = Callable[..., Path]
ServeApp = Callable[..., AbstractContextManager[Any]]


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


def test_failed_batch_frees_its_memory_before_the_images_are_tried_alone() -> None:
    """On a GPU whose memory ran out, single images would not fit next to it either."""
    freed: list[bool] = []
    failed: list[weakref.ref[Any]] = []

    class Activations:
        """What the network holds of a batch."""

    class Small:
        def infer(self, tensors: list[Any], _: Any) -> list[Any]:
            held = Activations()
            if len(tensors) > 1:
                failed.append(weakref.ref(held))
                raise MemoryError("CUDA out of memory")
            freed.append(failed[0]() is None)
            return [None]

        def encoded(self, *_: Any) -> bytes:
            return b"{}"

    def item() -> Item:
        return Item(Any, Any, Any, Any, Any)  # type: ignore[arg-type]

    batcher = Batcher([], max_batch=2, max_wait=0, threads=0, observe=lambda *_: None)
    results = batcher._results(Small(), [item(), item()])  # type: ignore[arg-type]
    assert [result for _, result, _ in results] == [(b"{}", 1), (b"{}", 1)]
    assert freed == [True, True]


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
