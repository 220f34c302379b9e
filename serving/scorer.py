"""A packaged network, ready to score: image files in, documented answers out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from serving.answers import Answer, encode, to_answer
from serving.explain.explainer import Explainer
from serving.explain.request import ExplanationRequest, parse_explanation
from serving.parameters import parse_parameters
from serving.payload import ImageRow
from trainer.annotations import Image, Prediction
from trainer.data.images import ImageError, decode
from trainer.errors import RequestError, RunError, WeightsError
from trainer.models import Family, Spec, create
from trainer.models.family import Geometry
from trainer.scoring import ScoringParameters

if TYPE_CHECKING:
    from torch import Tensor, nn

SPEC_FILE = "spec.json"
WEIGHTS_FILE = "weights.pt"

# What is decoded at once is bounded in both, whatever a request holds.
_BATCH_IMAGES = 8
_BATCH_PIXELS = 32_000_000

Key = TypeVar("Key")


class Scorer:
    """One network with its spec. Safe to call from several threads: they take turns.

    Attributes:
        spec: what the network is, its classes and default parameters.
    """

    def __init__(self, family: Family, network: nn.Module) -> None:
        """`network` is in eval mode, on the device that it is to run on."""
        self.spec = family.spec
        self._family = family
        self._network = network
        self._lock = threading.Lock()
        self._explainer = Explainer(family, network)
        self.device = next(network.parameters()).device

    @classmethod
    def load(cls, directory: Path, device: str | None = None) -> Scorer:
        """Load `spec.json` and `weights.pt` from the artifacts of a packaged model.

        Args:
            device: torch's name of it; None takes the first GPU if there is one, else the CPU.

        Raises:
            RunError: a file is missing, or the spec is not one.
            WeightsError: the weights are damaged or belong to another network.
        """
        return cls(*load_network(directory, device))

    def parameters(self, given: Mapping[str, Any]) -> ScoringParameters:
        """A request's parameters over the model's own.

        Raises:
            RequestError: one of them is unknown to the task, of a wrong type or out of its range.
        """
        return parse_parameters(given, self.spec.task, self.spec.parameters)

    def explanation(self, given: Mapping[str, Any]) -> ExplanationRequest | None:
        """A row's `xai_parameters`, checked against the network; None if they ask for nothing.

        Raises:
            RequestError: one of them is wrong, or the network cannot be explained so.
        """
        asked = parse_explanation(given, self.spec.task)
        if asked is not None:
            self._explainer.check(asked)
        return asked

    def check(self, rows: Sequence[ImageRow]) -> None:
        """Refuse rows that ask for what this network cannot be explained by, before any work is done.

        Raises:
            RequestError: names the first such row, and the methods that can be used.
        """
        for index, row in enumerate(rows):
            if row.explanation is not None:
                self._explainer.check(row.explanation, index)

    def score(self, rows: Sequence[ImageRow], parameters: Mapping[str, Any]) -> list[Answer]:
        """One answer a row, in order, with explanations where a row asks for them.

        Raises:
            RequestError: a parameter is wrong, or a row holds no image that can be decoded, or asks for
                an explanation that the network does not allow.
            RunError: the network yields numbers that are not finite.
        """
        checked = self.parameters(parameters)
        self.check(rows)
        answers: list[Answer] = []
        for batch in in_batches(_decoded(rows)):
            found = self.score_images([image for _, image in batch], checked)
            for (index, image), answer in zip(batch, found, strict=True):
                asked = rows[index].explanation
                answers.append(answer if asked is None else self.explain(image, answer, asked, index))
        return answers

    def score_images(self, images: Sequence[Image], parameters: ScoringParameters) -> list[Answer]:
        """Score decoded images as one batch; one answer each, in order."""
        points = parameters.max_number_of_polygon_points
        return [
            to_answer(prediction, self.spec.classes, points)
            for prediction in self._predict(images, parameters)
        ]

    def explain(
        self, image: Image, answer: Answer, asked: ExplanationRequest, row: int | None = None
    ) -> Answer:
        """The answer to an image with what was asked of its explanation added.

        Takes seconds on a CPU. Others may score meanwhile: it holds no lock of theirs, and works on modules
        of its own that share the network's weights. Explanations take turns.

        Returns:
            A new answer: `visualizations`, a base64 PNG (multi-class) or a list of them (a class or a box
            each), and `attributions`, a float32 array or a list of them (`serving.answers.encode` writes it).

        Raises:
            RequestError: names the row; the network cannot be explained by that method, or so many classes.
            RunError: the network's gradients are not finite.
        """
        return {**answer, **self._explainer.explain(image, answer, asked, row)}

    def preprocess(self, image: Image) -> tuple[Tensor, Geometry]:
        """A decoded image as the network takes it, without tiles: float32 [3, h, w] on the CPU."""
        return self._family.preprocess(image)

    def infer(self, tensors: Sequence[Tensor], parameters: ScoringParameters) -> Sequence[Any]:
        """Preprocessed images through the network at once; one raw output each. One thread at a time."""
        import torch

        with torch.inference_mode():
            on_device = [tensor.to(self.device) for tensor in tensors]
            return self._family.infer(self._network, on_device, parameters)

    def encoded(self, output: Any, geometry: Geometry, parameters: ScoringParameters) -> bytes:
        """One image's raw output → its answer as JSON.

        Raises:
            RunError: the network yields numbers that are not finite.
        """
        prediction = self._family.postprocess(output, geometry, parameters)
        prediction = self._family.above_class_thresholds(prediction, parameters)
        return encode(to_answer(prediction, self.spec.classes, parameters.max_number_of_polygon_points))

    def replica(self) -> Scorer:
        """Another scorer that shares this one's weights, so that both can be used at the same time."""
        shared = {id(tensor): tensor for tensor in self._network.state_dict(keep_vars=True).values()}
        return Scorer(create(self.spec), copy.deepcopy(self._network, shared))

    def speed_up(self) -> None:
        """Lay the weights out in memory as convolutions on a CPU are fastest; answers stay what they were."""
        import torch

        if self.device.type == "cpu":
            self._network.to(memory_format=torch.channels_last)

    def _predict(self, images: Sequence[Image], parameters: ScoringParameters) -> list[Prediction]:
        import torch

        with self._lock, torch.inference_mode():
            return self._family.predict(self._network, images, parameters)


def load_network(directory: Path, device: str | None = None) -> tuple[Family, nn.Module]:
    """A packaged model's family and its network in eval mode, with arguments and errors of `Scorer.load`."""
    import torch

    family = create(read_spec(directory))
    network = family.build()
    network.load_state_dict(_read_weights(directory / WEIGHTS_FILE, network))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return family, network.to(device).eval().requires_grad_(False)


def read_spec(directory: Path) -> Spec:
    """The spec among a packaged model's artifacts.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = directory / SPEC_FILE
    try:
        return Spec.from_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: does not exist; the model is incomplete, package it again") from None
    except ValueError as error:
        raise RunError(f"{path}: is not a model's spec: {error}") from error


def _read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """The state dict in a file, checked against the network that it is for."""
    import pickle

    import torch

    try:
        # Weights only: a pickle could run code.
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: does not exist; the model is incomplete, package it again") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path}: is damaged: {error}") from error
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    if expected != found:
        differing = sorted(expected.items() ^ found.items())
        raise WeightsError(
            f"{path}: belongs to another network than {SPEC_FILE} beside it describes; "
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
    """Images, each with what it is called, in batches whose memory is bounded; in order."""
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
