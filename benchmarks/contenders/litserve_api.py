"""The same network behind LitServe; a module of its own, because LitServe's worker processes import it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import litserve as ls
import torch

from serving.scorer import Scorer
from trainer.data.images import decode


class API(ls.LitAPI):
    def __init__(self, artifacts: Path, **options: Any) -> None:
        super().__init__(**options)
        self.artifacts = artifacts

    def setup(self, device: str) -> None:
        if device == "cpu":  # a worker for each core
            torch.set_num_threads(1)
        self.scorer = Scorer.load(self.artifacts, device)
        self.scorer.speed_up()

    # LitServe would read an annotation as the schema of the request's body.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return decode(base64.b64decode(request["image"]))

    def predict(self, x: Any) -> Any:
        parameters = self.scorer.spec.parameters
        if not isinstance(x, list):  # LitServe does not batch
            return self.scorer.score_images([x], parameters)[0]
        return self.scorer.score_images(x, parameters)

    def batch(self, inputs: Any) -> Any:
        return inputs

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output
