"""A Hugging Face image processor, run as it is: its class computes with more than its file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import DataError, first_line
from fxprune.result.saved.folder import PREPROCESSOR

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Channels", "Processor"]

EXACT = 1e-4  # of normalised pixels


@dataclass(frozen=True)
class Channels:
    """What becomes of a pixel p, whose channels are from 0 to 1.

    Channel c is (p[order[c]] - mean[c]) / std[c].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: tuple[int, ...]

    @staticmethod
    def of(mean: Sequence[float], std: Sequence[float]) -> Channels:
        count = max(len(mean), len(std))
        mean, std = (tuple(some) * (count if len(some) == 1 else 1) for some in (mean, std))
        return Channels(mean, std, tuple(range(count)))

    def of_all(self, count: int) -> Channels:
        """Return the same for so many channels, where there is one number for all."""
        return Channels.of(self.mean * count, self.std * count) if len(self.order) == 1 else self

    def sorted(self) -> Channels:
        """Return the same of each channel, in the order that images have them."""
        places = [self.order.index(c) for c in range(len(self.order))]
        return Channels.of([self.mean[i] for i in places], [self.std[i] for i in places])


@dataclass(frozen=True)
class Processor:
    """The image processor whose file stands in a folder.

    folder: where transformers finds it.  said: its settings that are others than there.
    colours: "RGB", or "L" for images of one channel.
    """

    folder: str
    said: Mapping[str, Any] = field(default_factory=dict)
    colours: str = "RGB"

    @cached_property
    def own(self) -> Any:
        """The processor, of its own class.

        Raises:
            DataError: transformers is missing, or can't make it.
        """
        try:
            from transformers import AutoImageProcessor
        except ImportError as error:
            raise DataError(f"{PREPROCESSOR} needs transformers to be followed: {error}") from error
        try:
            return AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=False, **self.said)
        except Exception as error:  # whatever it makes of a file
            raise self._refusal(f"transformers can't make it: {first_line(error)}") from error

    @property
    def name(self) -> str:
        """The name of its class, as files spell it: of whichever backend."""
        return type(self.own).__name__.removesuffix("Fast").removesuffix("Pil")

    def __call__(self, image: Image) -> Tensor:
        """Return what the model sees of a photo: [channels, height, width].

        Raises:
            DataError: it gives anything else.
        """
        try:
            found = self.own(images=image, return_tensors="pt")["pixel_values"]
        except Exception as error:  # whatever it makes of an image
            raise self._refusal(f"it takes no photo: {first_line(error)}") from error
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 1:
            raise self._refusal("it gives no image for a photo, but something else")
        return found[0]

    def sized(self, channels: int, height: int, width: int) -> Processor:
        """Return the processor that gives images of this size, its own sizes in proportion.

        Raises:
            DataError: there is none, or the size is that of the photo.
        """
        fitting = replace(self, colours="L" if channels == 1 else "RGB")
        given = fitting._shape()
        if given[1:] != (height, width):
            fitting = replace(
                fitting, said={**self.said, **fitting._scaled(height / given[1], width / given[2])}
            )
            given = fitting._shape()
        if given != (channels, height, width):
            raise self._refusal(
                f"it gives images of {' x '.join(map(str, given))}, and the model takes "
                f"{channels} x {height} x {width}: see its size and crop_size"
            )
        return fitting

    def channels(self) -> Channels:
        """Measure what it makes of colours, on images of one colour each.

        Raises:
            DataError: it is more than a shift, a scale and an order of channels.
        """
        count = len(self.colours)
        black = self._of_colour([0] * count)
        scale = torch.stack(
            [self._of_colour([255 * (c == i) for c in range(count)]) - black for i in range(count)], 1
        )
        order = scale.abs().argmax(1)
        picked = scale.gather(1, order[:, None]).squeeze(1)
        alone = (scale - torch.zeros_like(scale).scatter_(1, order[:, None], picked[:, None])).abs().max()
        middle = [51 + 68 * c for c in range(count)]
        wanted = black + scale @ torch.tensor(middle, dtype=torch.float64) / 255
        close = EXACT * float(picked.abs().max())
        if (
            sorted(order.tolist()) != list(range(count))
            or float(picked.min()) <= 0
            or float(alone) > close
            or float((self._of_colour(middle) - wanted).abs().max()) > close
        ):
            raise self._refusal("it does something else with colours than to shift and to scale each channel")
        std = 1 / picked
        mean = -black * std
        rounded_mean, rounded_std = (tuple(round(v, 6) + 0.0 for v in t.tolist()) for t in (mean, std))
        return Channels(rounded_mean, rounded_std, tuple(order.tolist()))

    def _of_colour(self, colour: list[int]) -> Tensor:
        """Return what is in the middle of such an image; there may be margins."""
        found = self(_photo(np.full((64, 64, len(colour)), colour, dtype=np.uint8))).double()
        return found[:, found.shape[1] // 2, found.shape[2] // 2]

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of its images, which is that of no photo."""
        found = {
            tuple(self(_photo(np.zeros((*size, len(self.colours)), dtype=np.uint8))).shape)
            for size in ((96, 160), (160, 96))
        }
        if len(found) > 1:
            raise self._refusal("the size of its images is that of the photo: it must resize or crop to one")
        return found.pop()

    def _scaled(self, vertical: float, horizontal: float) -> dict[str, dict[str, int]]:
        scaled = {}
        for name in ("size", "crop_size"):
            sizes = {k: v for k, v in dict(getattr(self.own, name, None) or {}).items() if v is not None}
            if sizes:
                scaled[name] = {
                    k: round(v * (horizontal if "width" in k else vertical)) for k, v in sizes.items()
                }
        return scaled

    def _refusal(self, why: str) -> DataError:
        kind = f" ({type(self.own).__name__})" if "own" in vars(self) else ""
        return DataError(f"the image processor of {PREPROCESSOR}{kind}: {why}")


def _photo(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
