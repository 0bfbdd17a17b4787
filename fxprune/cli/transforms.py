"""What is done to one photo, as a function: timm's transform, or an image processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fxprune.cli.preprocessing import Preprocessing
from fxprune.cli.processors import EXACT, Channels, Processor
from fxprune.errors import DataError

__all__ = ["transform_of"]

Transform = Callable[[Any], Tensor]


def transform_of(
    pixels: Preprocessing, shape: tuple[int, ...], augment: dict[str, Any] | None = None
) -> tuple[Transform, str]:
    """Return what makes an image [channels, height, width] of that shape of a photo, and says so in words.

    Args:
        augment: of timm's `create_transform`, for training; None to judge by.

    Raises:
        DataError: images can't be made so.
    """
    processor = pixels.processor
    if processor is None:
        return _timm(_with_channels(pixels, shape[0]), shape, augment)
    if pixels.given:
        config = _with_channels(pixels, shape[0]).config
        said = {"image_mean": list(config["mean"]), "image_std": list(config["std"])}
        pixels = replace(pixels, config=config)
        processor = replace(processor, said={**processor.said, **said})
    processor = processor.sized(*shape)
    channels = processor.channels()
    if pixels.given:
        _check_given(pixels, channels, processor)
    if augment is None:
        words = f"{shape[1]} x {shape[2]} pixels, {processor.name}, {_numbers(channels)} ({pixels.origin})"
        return processor, words
    by_channel = channels.sorted()
    config = {**pixels.config, "mean": by_channel.mean, "std": by_channel.std}
    transform, words = _timm(replace(pixels, config=config), shape, augment)
    return Ordered(transform, channels.order), words


def _timm(
    pixels: Preprocessing, shape: tuple[int, ...], augment: dict[str, Any] | None
) -> tuple[Transform, str]:
    from timm.data import create_transform

    config = {**pixels.config, "input_size": shape}
    transform = create_transform(**config, is_training=augment is not None, **augment or {})
    shown = f"crop {config['crop_pct']:.3g}" if augment is None else "random crops"
    words = f"{shape[1]} x {shape[2]} pixels, {config['interpolation']}, {shown}"
    return transform, f"{words}, {_numbers(Channels.of(config['mean'], config['std']))} ({pixels.origin})"


def _with_channels(pixels: Preprocessing, channels: int) -> Preprocessing:
    """Return as many numbers as there are channels: those recorded for colours may be for others.

    Raises:
        DataError: the user gave another number of them.
    """
    config = dict(pixels.config)
    for name in ("mean", "std"):
        values: Sequence[float] = config[name]
        if name in pixels.given and len(values) not in (1, channels):
            said = ",".join(map(str, values))
            raise DataError(
                f"--{name} {said}: the model's images have {channels} channels; a number each, or one"
            )
        config[name] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return replace(pixels, config=config)


def _check_given(pixels: Preprocessing, channels: Channels, processor: Processor) -> None:
    """Refuse an image processor that does something else with the channels than --mean and --std say.

    Raises:
        DataError: it does.
    """
    found = channels.sorted()
    pairs = [
        *zip(found.mean, pixels.config["mean"], strict=True),
        *zip(found.std, pixels.config["std"], strict=True),
    ]
    if any(abs(a - b) > EXACT * max(1.0, abs(b)) for a, b in pairs):
        raise DataError(
            f"--mean and --std: the model's image processor ({processor.name}) has settings of its own, and "
            f"would make {_numbers(found)} of them: leave them out"
        )


def _numbers(channels: Channels) -> str:
    mean, std = ("/".join(f"{v:.3g}" for v in some) for some in (channels.mean, channels.std))
    turned = channels.order != tuple(range(len(channels.order)))
    return f"mean {mean}, std {std}" + (f", channels {channels.order}" if turned else "")


@dataclass(frozen=True)
class Ordered:
    """A transform whose channels stand in another order afterwards."""

    transform: Transform
    order: tuple[int, ...]

    def __call__(self, image: Any) -> Tensor:
        return self.transform(image)[list(self.order)]
