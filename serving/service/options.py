"""Limits and sizes of the scoring service; `trainer serve` derives a flag from each field of `Options`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from trainer.cores import available_cores


class Options(BaseModel):
    """Limits and sizes of one worker process of the service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: int = Field(default=8, ge=1, le=1024, description="Maximum number of images in a batch.")
    max_wait_ms: float = Field(
        default=5.0,
        ge=0,
        le=10_000,
        description="Maximum time in milliseconds that a batch waits for images still being decoded.",
    )
    max_queue: int = Field(
        default=512,
        ge=1,
        description="Maximum number of images that are accepted but not answered yet; requests beyond it are "
        "answered with 429 and Retry-After.",
    )
    max_queue_mb: int = Field(
        default=512,
        ge=1,
        description="Maximum size in megabytes of all unanswered requests together, including those still "
        "being received; requests beyond it are answered with 429 and Retry-After.",
    )
    max_rows: int = Field(
        default=1000,
        ge=1,
        description="Maximum number of images in one request; larger requests are answered with 413.",
    )
    timeout_s: float = Field(
        default=180.0,
        gt=0,
        description="Maximum time in seconds from the last byte of a request to its answer; later, it is "
        "answered with 504.",
    )
    read_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Maximum time in seconds from the first to the last byte of a request; later, it is "
        "answered with 408.",
    )
    shutdown_timeout_s: float = Field(
        default=30.0,
        ge=0,
        description="Time in seconds to finish accepted requests after SIGTERM or Ctrl-C.",
    )
    cores: int = Field(
        default_factory=available_cores,
        ge=1,
        description="CPU cores that a worker process plans its threads for.",
    )
