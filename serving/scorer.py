"""Scores images with a packaged network: image files in, documented answers out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from serving.answers import Answer, encode, to_answer
from serving.explain.explainer import Explainer
from serving.explain.request import ExplanationRequest, parse_explanation
from serving.inference_settings import SETTINGS_FILE, apply_settings
from serving.parameters import parse_parameters
from serving.payload import ImageRow
from trainer.annotations import Image, Prediction
from trainer.data.images import ImageError, decode
from trainer.errors import RequestError, RunError, WeightsError
from trainer.models import Family, Spec, create
from trainer.models.geometry import Geometry
from trainer.models.precision import (
    Precision,
    check_scoring_precision,
    float32_products,
    half_of,
    in_precision,
)
from trainer.scoring import ScoringParameters

if TYPE_CHECKING:
    from torch import Tensor, nn

SPEC_FILE = "spec.json"
WEIGHTS_FILE = "weights.pt"

# Bounds on the images that are decoded at a time, whatever the size of a request.
_BATCH_IMAGES = 8
_BATCH_PIXELS = 32_000_000

Key = TypeVar("Key")


class Scorer:
    """One network with its spec. Thread-safe: calls take turns.

    Attributes:
        spec: what the network is, its classes and default parameters.
    """

    def __init__(self, family: Family, network: nn.Module, precision: Precision = "auto") -> None:
        """`network` is in eval mode and on its device.

        Args:
            precision: bf16 and fp16 score in mixed precision. Otherwise a GPU multiplies in TF32, except
                with float32.
        """
        self.spec = family.spec
        self._family = family
        self._network = network
        self._lock = threading.Lock()
        self._explainer = Explainer(family, network)
        self.device = next(network.parameters()).device
        self.precision: Precision = precision

    @classmethod
    def load(cls, directory: Path, device: str | None = None, precision: Precision = "auto") -> Scorer:
        """Load `spec.json`, `weights.pt` and `settings.json` from the artifacts of a packaged model.

        Args:
            device: a PyTorch device; None takes the first GPU, or the CPU if there is none.
            precision: see the constructor.

        Raises:
            RunError: the spec is missing, damaged or of a newer format, a setting is wrong, or the device
                does not compute in the precision.
            WeightsError: the weights are missing, damaged or belong to another network.
        """
        family, network = load_network(directory, device)
        check_scoring_precision(precision, next(network.parameters()).device)
        return cls(family, network, precision)

    def parameters(self, requested: Mapping[str, Any]) -> ScoringParameters:
        """A request's parameters, with the model's defaults for those that it does not set.

        Raises:
            RequestError: a parameter does not apply to the task, is of a wrong type or out of range.
        """
        return parse_parameters(requested, self.spec.task, self.spec.parameters)

    def explanation(self, parameters: Mapping[str, Any]) -> ExplanationRequest | None:
        """Parse a row's `xai_parameters` and check them against the network; None if they request nothing.

        Raises:
            RequestError: a parameter is wrong, or the method cannot explain the network.
        """
        request = parse_explanation(parameters, self.spec.task)
        if request is not None:
            self._explainer.check(request)
        return request

    def check(self, rows: Sequence[ImageRow]) -> None:
        """Reject rows whose explanation method does not suit the network, before any work is done.

        Raises:
            RequestError: names the first such row, and the methods that suit.
        """
        for index, row in enumerate(rows):
            if row.explanation is not None:
                self._explainer.check(row.explanation, index)

    def score(self, rows: Sequence[ImageRow], parameters: Mapping[str, Any]) -> list[Answer]:
        """Score rows in order, with explanations where a row requests one.

        Raises:
            RequestError: a parameter is wrong, a row is not an image that can be decoded, or its explanation
                method does not suit the network.
            RunError: the network returned numbers that are not finite.
        """
        checked = self.parameters(parameters)
        self.check(rows)
        answers: list[Answer] = []
        for batch in in_batches(_decoded(rows)):
            scored = self.score_images([image for _, image in batch], checked)
            for (index, image), answer in zip(batch, scored, strict=True):
                request = rows[index].explanation
                answers.append(answer if request is None else self.explain(image, answer, request, index))
        return answers

    def score_images(self, images: Sequence[Image], parameters: ScoringParameters) -> list[Answer]:
        """Score decoded images as one batch; returns one answer per image, in order."""
        import torch

        with self._lock, torch.inference_mode(), self._products():
            half = half_of(self.precision)
            predictions = self._family.predict(self._network, images, parameters, half)
        return [self._answer(prediction, parameters) for prediction in predictions]

    def explain(
        self, image: Image, answer: Answer, request: ExplanationRequest, row: int | None = None
    ) -> Answer:
        """Add the requested explanation to the answer to an image.

        This takes seconds on a CPU. Other threads can score meanwhile: explanations use their own lock and
        their own modules, which share the network's weights. Explanations take turns.

        Returns:
            A new answer with `visualizations`, a base64 PNG (multi-class) or a list of them (one per class or
            box), and `attributions`, a float32 array or a list of them, as requested.

        Raises:
            RequestError: names the row; the method cannot explain the network, or too many classes qualify.
            RunError: the network's gradients are not finite.
        """
        return {**answer, **self._explainer.explain(image, answer, request, row)}

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """Preprocess a decoded image, without tiles: float32 [3, h, w] on the CPU."""
        return self._family.preprocess(image)

    def infer(self, tensors: Sequence[Tensor], parameters: ScoringParameters) -> Sequence[Any]:
        """Run the network on preprocessed images; one raw output each, on the CPU. Not thread-safe."""
        import torch

        from trainer.models.transfers import as_full, on_cpu, to_device

        half = half_of(self.precision)
        with torch.inference_mode(), self._products(), in_precision(self.device, half):
            on_device = [to_device(tensor, self.device) for tensor in tensors]
            own_parameters = self._family.network_parameters(parameters)
            outputs: Sequence[Any] = on_cpu(
                as_full(self._family.infer(self._network, on_device, own_parameters))
            )
            return outputs

    def _products(self) -> AbstractContextManager[None]:
        return float32_products(self.precision, on_gpu=self.device.type == "cuda")

    def encoded(self, output: Any, geometry: Geometry, parameters: ScoringParameters) -> bytes:
        """Turn an image's raw output into its answer as JSON.

        Raises:
            RunError: the network returned numbers that are not finite.
        """
        own_parameters = self._family.network_parameters(parameters)
        prediction = self._family.postprocess(output, geometry, own_parameters)
        prediction = self._family.finished(prediction, parameters)
        return encode(self._answer(prediction, parameters))

    def replica(self) -> Scorer:
        """A scorer with its own modules and the same weights; both can be used at the same time."""
        shared = {id(tensor): tensor for tensor in self._network.state_dict(keep_vars=True).values()}
        return Scorer(create(self.spec), copy.deepcopy(self._network, shared), self.precision)

    def speed_up(self) -> None:
        """Use the memory layout in which convolutions are fastest, as in training; answers do not change."""
        import torch

        self._network.to(memory_format=torch.channels_last)

    def _answer(self, prediction: Prediction, parameters: ScoringParameters) -> Answer:
        return to_answer(prediction, self.spec.classes, parameters.max_number_of_polygon_points)


def load_network(directory: Path, device: str | None = None) -> tuple[Family, nn.Module]:
    """A packaged model's family and its network in eval mode; arguments and errors as for `Scorer.load`."""
    import torch

    family = read_family(directory)
    network = family.build()
    network.load_state_dict(_read_weights(directory / WEIGHTS_FILE, network))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return family, network.to(device).eval().requires_grad_(False)


def read_family(directory: Path) -> Family:
    """The family and spec of a packaged model, with the values that its `settings.json` changes.

    Raises:
        RunError: the spec is missing, damaged or of a newer format, or a value in `settings.json` is wrong.
    """
    return apply_settings(create(read_spec(directory)), directory / SETTINGS_FILE)


def read_spec(directory: Path) -> Spec:
    """Read the spec among a packaged model's artifacts, as it was packaged.

    Raises:
        RunError: the spec is missing, damaged or of a newer format.
    """
    path = directory / SPEC_FILE
    try:
        return Spec.from_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: does not exist; the model is incomplete, package it again") from None
    except ValueError as error:
        raise RunError(f"{path}: is not a model's spec that this version can read: {error}") from error


def _read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Read a state dict and check it against its network."""
    import pickle

    import torch

    try:
        # A pickle could run code; weights_only prevents that.
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: does not exist; the model is incomplete, package it again") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path}: is damaged: {error}") from error
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    actual = {name: tensor.shape for name, tensor in weights.items()}
    if expected != actual:
        differing = sorted(expected.items() ^ actual.items())
        raise WeightsError(
            f"{path}: belongs to another network than the one in {SPEC_FILE} next to it; "
            f"they differ in {len({name for name, _ in differing})} tensors, first {differing[0][0]}"
        )
    return weights


def _decoded(rows: Sequence[ImageRow]) -> Iterator[tuple[int, Image]]:
    for index, row in enumerate(rows):
        try:
            yield index, decode(row.image)
        except ImageError as error:
            raise RequestError(str(error), row=index, status=422) from error


def in_batches(images: Iterable[tuple[Key, Image]]) -> Iterator[list[tuple[Key, Image]]]:
    """Group images with their keys into batches of bounded memory, in order."""
    batch: list[tuple[Key, Image]] = []
    pixels = 0
    for key, image in images:
        size = image.shape[0] * image.shape[1]
        if batch and (len(batch) == _BATCH_IMAGES or pixels + size > _BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append((key, image))
        pixels += size
    if batch:
        yield batch
