"""How transformers' preprocessors prepare the images of a model of the Hub, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from PIL import Image as PILImage
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from trainer.models.weights.description import Description


class Preprocessor:
    """A model's preprocessing in numbers, from its preprocessor_config.json or else its library's defaults.

    Attributes:
        mean, std: for each channel of pixels in [0, 1], in the order red, green, blue.
        interpolation: PIL's name of it.
        stretches: images are resized to squares, whatever their shape.
        reverses_channels: the network takes blue, green, red.
    """

    def __init__(self, description: Description) -> None:
        own = description.preprocessor
        default = _default_preprocessor(description)

        def value(name: str, otherwise: Any = None) -> Any:
            given = own.get(name)
            return getattr(default, name, otherwise) if given is None else given

        scale = 255 * float(value("rescale_factor") or 1 / 255) if value("do_rescale", True) else 255.0
        mean, std = [0.0] * 3, [1.0] * 3
        if value("do_normalize", False):
            mean, std = _three(value("image_mean", 0.0)), _three(value("image_std", 1.0))
        if value("rescale_offset", False):
            mean = [each + 1 for each in mean]
        if value("include_top", False):  # EfficientNet's divides by the standard deviation twice
            std = [each * each for each in std]
        self.reverses_channels = bool(value("do_flip_channel_order", False))
        if self.reverses_channels:
            mean, std = mean[::-1], std[::-1]
        self.mean = [each / scale for each in mean]
        self.std = [each / scale for each in std]
        self.interpolation = PILImage.Resampling(int(value("resample", 2))).name.lower()
        self.stretches = self._stretches(own, default)

    @staticmethod
    def _stretches(own: Mapping[str, Any], default: Any) -> bool:
        size = own.get("size")
        edge: int | None
        if isinstance(size, Mapping):
            edge = size.get("shortest_edge")
        elif getattr(default, "default_to_square", True):
            edge = None
        else:  # older files state a number
            edge = size if isinstance(size, int) else 0
        # ConvNeXt's preprocessor crops only smaller images.
        return edge is None or bool(own.get("crop_pct", getattr(default, "crop_pct", None)) and edge >= 384)


def _three(value: Any) -> list[float]:
    return [float(value)] * 3 if isinstance(value, (int, float)) else [float(each) for each in value]


def _default_preprocessor(description: Description) -> Any:
    """The library's class of the preprocessor, whose attributes are its defaults; None if it has none."""
    own = description.preprocessor
    # Older files name a feature extractor, others the fast variant of the class.
    named = str(own.get("image_processor_type") or own.get("feature_extractor_type") or "")
    name = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    if not name.endswith("ImageProcessor") or getattr(transformers, name, None) is None:
        usual: Any = IMAGE_PROCESSOR_MAPPING_NAMES.get(description.config["model_type"]) or {}
        name = usual.get("torchvision") or usual.get("pil") or ""
    return getattr(transformers, name, None) if name else None
