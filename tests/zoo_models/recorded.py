"""A model that says what it takes, by timm's convention, for libraries whose models do not."""

from __future__ import annotations

from torch import nn

__all__ = ["recorded"]


def recorded(model: nn.Module, *shape: int) -> nn.Module:
    """Note the shape of one input sample, where fxprune looks for it."""
    model.default_cfg = {"input_size": shape}  # type: ignore[assignment]
    return model
