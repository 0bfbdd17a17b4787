"""Calls of layers that follow the mode, marked while torch.export looks, which opens every other layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.settings import Settings
from fxprune.graph.modes import follows_mode
from fxprune.graph.own_nodes import ForwardOnly
from fxprune.rules.modules import native

__all__ = ["MarkedLayers", "is_norm_with_modes"]


@torch.library.custom_op("fxprune::layer_marker", mutates_args=())
def _layer_marker(x: Tensor, path: str) -> Tensor:
    """Mark where a module that follows the mode is called, while torch.export looks."""
    return x.clone()


@_layer_marker.register_fake
def _(x: Tensor, path: str) -> Tensor:
    return torch.empty_like(x)


class MarkedLayers:
    """The layers of a model that follow the mode: they leave a marker where they are called.

    opened: the paths of those whose calls say more than a marker can, once they did.
    """

    def __init__(self, model: nn.Module) -> None:
        self.opened: set[str] = set()
        self._layers = {path: m for path, m in model.named_modules() if _is_marked(m)}
        self._always: set[str] = set()
        for path, module in self._layers.items():
            module.forward = self._marked(path, module)
        self._settings = Settings(self._layers.values())

    def switched(self) -> None:
        """Take the mode that they are in now for theirs; what was opened in the other one is in this."""
        self._settings.note_mode()
        self._always |= self.opened

    def unmark(self) -> None:
        """Let them be called as they were before."""
        for module in self._layers.values():
            del module.forward

    def _marked(self, path: str, module: nn.Module) -> Callable[..., Any]:
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            # `drop(x, 0.3)`, `drop.p = 0.3`: the call of a marker would lose that
            says_more = kwargs or len(args) != 1 or self._settings.changed(module)
            if says_more or path in self._always:
                self.opened.add(path)
                return own(*args, **kwargs)
            return torch.ops.fxprune.layer_marker(args[0], path)

        forward.layer_marker = True  # type: ignore[attr-defined]
        return forward


def is_norm_with_modes(module: nn.Module) -> bool:
    """Is this a batch or instance norm, with the forward of PyTorch's own layer?"""
    return isinstance(module, nn.modules.batchnorm._NormBase) and native(module) is not None


def _is_marked(module: nn.Module) -> bool:
    return follows_mode(module) or is_norm_with_modes(module) or isinstance(module, ForwardOnly)
