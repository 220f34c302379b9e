"""Prometheus metrics, and an access log with a JSON line per request.

Several worker processes report their combined metrics: each writes its own into files in
PROMETHEUS_MULTIPROC_DIR, which must be set before prometheus_client is imported, and the process that answers
adds them up.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from serving.service.admission import Admission

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The service's Prometheus metrics."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=registry)
        gauge = partial(Gauge, registry=registry, multiprocess_mode="livesum")
        self.requests = counter("trainer_requests", "Requests answered.", ("path", "status"))
        self.errors = counter("trainer_errors", "Requests answered with an error, by kind.", ("kind",))
        self.seconds = seconds(
            "trainer_request_seconds", "Time from a request's headers to its answer.", ("path",)
        )
        self.images = counter("trainer_images", "Images scored.")
        self.batch = Histogram(
            "trainer_batch_images", "Images per batch.", buckets=_IMAGES, registry=registry
        )
        self.waited = seconds(
            "trainer_batch_wait_seconds", "Time that a batch's oldest image waited for the network."
        )
        self.network = seconds("trainer_batch_seconds", "Time of a batch in the network.")
        self.queue_images = gauge("trainer_queue_images", "Images accepted but not answered yet.")
        self.queue_bytes = gauge(
            "trainer_queue_bytes", "Bytes of requests that are being received or not answered yet."
        )
        admission.changed = self.refresh

    def saw_batch(self, images: int, waited: float, seconds: float) -> None:
        """Count a batch. Called by the lanes."""
        self.batch.observe(images)
        self.waited.observe(waited)
        self.network.observe(seconds)

    def saw_request(self, path: str, status: int, seconds: float, kind: str | None, rows: int) -> None:
        """Count an answered request; `kind` is the code of its error."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
        if kind is not None:
            self.errors.labels(kind).inc()
        elif rows:
            self.images.inc(rows)

    def refresh(self) -> None:
        """Update the queue's gauges."""
        self.queue_images.set(self._admission.images)
        self.queue_bytes.set(self._admission.bytes)

    def text(self) -> tuple[bytes, str]:
        """The metrics in Prometheus's text format, and its content type."""
        registry = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


class AccessLog:
    """Writes a JSON line per request, unbuffered."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def write(self, **fields: Any) -> None:
        """Write a line: `time` (UTC, ISO 8601) and the fields."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with suppress(OSError, ValueError):  # the log's reader is gone; keep answering requests
            self._stream.write(json.dumps({"time": now, **fields}) + "\n")
            self._stream.flush()
