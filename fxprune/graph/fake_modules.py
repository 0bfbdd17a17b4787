"""A model's modules with fake tensors in place of their own, each made when it is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from fxprune.graph.quick_layouts import outline_of_tensor

__all__ = ["FakeModules", "fake_of"]


class FakeModules:
    """The modules of a root as they are now, whatever code changes later: fake tensors, all else shared."""

    def __init__(self, root: nn.Module, mode: FakeTensorMode) -> None:
        self._root, self._mode = root, mode
        kinds = ("_parameters", "_buffers", "_modules")
        # By id, here and below: a model's class may say what is equal.
        self._held: dict[int, dict[str, Any]] = {
            id(m): m.__dict__ | {kind: dict(getattr(m, kind)) for kind in kinds} for m in root.modules()
        }
        self._made: dict[int, nn.Module] = {}
        self._fakes: dict[int, Tensor] = {}

    def original(self, path: str) -> nn.Module | None:
        """Return the module at a path, with its own tensors; None if there is none."""
        module: nn.Module | None = self._root
        for name in path.split(".") if path else ():
            module = self._held[id(module)]["_modules"].get(name) if module is not None else None
        return module

    def fake(self, module: nn.Module) -> nn.Module:
        """Return a module with fake tensors, and with parts that have such."""
        if id(module) not in self._made:
            made = object.__new__(nn.Module if module is self._root else type(module))
            self._made[id(module)] = made
            held = self._held[id(module)]
            made.__dict__.update(held)
            for kind in ("_parameters", "_buffers"):
                made.__dict__[kind] = {name: self._fake_tensor(t) for name, t in held[kind].items()}
            parts = held["_modules"].items()
            made.__dict__["_modules"] = {n: None if m is None else self.fake(m) for n, m in parts}
        return self._made[id(module)]

    def attribute(self, path: str, name: str) -> Any:
        """Return what the module at a path holds under a name: fake if it is a parameter, a buffer, a part.

        Raises:
            AttributeError: it held nothing there.
        """
        module = self.original(path)
        held = self._held[id(module)] if module is not None else {}
        for kind in ("_parameters", "_buffers"):
            if name in held.get(kind, ()):
                return self._fake_tensor(held[kind][name])
        if (part := held.get("_modules", {}).get(name)) is not None:
            return self.fake(part)
        if name in held:
            return held[name]
        raise AttributeError(f"{path} held no {name}")

    def _fake_tensor(self, tensor: Any) -> Tensor | None:
        """Return one fake for a tensor, however many names it has; None for what is no tensor."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) not in self._fakes:
            self._fakes[id(tensor)] = fake_of(tensor, self._mode)
        return self._fakes[id(tensor)]


def fake_of(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Make a fake tensor as mode.from_tensor does, without what views and symbolic sizes need."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return mode.from_tensor(tensor, static_shapes=True)
    with unset_fake_temporarily():
        return FakeTensor(mode, outline_of_tensor(tensor), tensor.device)
