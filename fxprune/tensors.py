"""A module's tensors by name."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["named_tensors"]


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return [*parameters, *module.named_buffers(remove_duplicate=False)]
