"""A teacher that is used to images of another normalisation than the student's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Renormalised"]


class Renormalised(nn.Module):
    """A model for images of one normalisation, called with images of another.

    scale, shift: [1, channels, 1, 1].  order: which of the channels given is each that the model takes.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        own_mean: Sequence[float],
        own_std: Sequence[float],
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        given_mean, given_std, wanted_mean, wanted_std = (
            torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std, own_mean, own_std)
        )
        self.model = model
        self.order = None if order is None or list(order) == sorted(order) else list(order)
        self.register_buffer("scale", given_std / wanted_std)
        self.register_buffer("shift", (given_mean - wanted_mean) / wanted_std)

    def forward(self, images: Tensor) -> Any:
        images = images if self.order is None else images[:, self.order]
        return self.model(images * self.scale + self.shift)
