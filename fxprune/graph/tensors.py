"""A module's tensors and parts by name, where they are, in what precision, and those of what it returns."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

__all__ = [
    "at_least_float32",
    "called_modules",
    "cuda_devices_of",
    "device_of",
    "floats_of",
    "get_or_create_submodule",
    "holds_attributes",
    "in_float64",
    "is_float",
    "is_inside",
    "like_weights",
    "module_of",
    "modules_around",
    "named_tensors",
    "on_meta",
    "seed_anew",
    "tensor_at",
]


def called_modules(module: fx.GraphModule) -> list[str]:
    """List the paths of the modules that a graph calls, each once, in the order of its first call."""
    return list(dict.fromkeys(str(n.target) for n in module.graph.nodes if n.op == "call_module"))


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer under each of its names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return [*parameters, *module.named_buffers(remove_duplicate=False)]


def modules_around(name: str) -> list[str]:
    """List the modules that a tensor or a module lies in, outermost first, without the root.

    >>> modules_around("blocks.0.mlp.weight")
    ['blocks', 'blocks.0', 'blocks.0.mlp']
    """
    return list(itertools.accumulate(name.split(".")[:-1], "{}.{}".format))


def module_of(node: fx.Node) -> str:
    """Return the path of the module whose code a node comes from; the root's, or one unknown, is empty."""
    return str(node.meta.get("module") or "")


def is_inside(path: str, modules: Collection[str]) -> bool:
    """Return whether a path is that of one of some modules, or of what lies in one; the root's is empty.

    >>> is_inside("blocks.0.mlp.weight", ["blocks.0"]), is_inside("blocks.01", ["blocks.0"])
    (True, False)
    """
    return any(around in modules for around in ("", *modules_around(path), path))


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """Return the tensor of a dotted name: a parameter, a buffer, or a plain attribute."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), leaf)
    return tensor


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the weights; the CPU for a module without any."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def on_meta(*modules: nn.Module) -> bool:
    """Return whether any tensor of these modules has a shape only, no values."""
    return any(t.is_meta for m in modules for t in (*m.parameters(), *m.buffers()))


def like_weights(model: nn.Module) -> Tensor:
    """Return a tensor of the dtype and on the device of the model's weights."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def cuda_devices_of(module: nn.Module) -> list[torch.device]:
    """Return the CUDA devices that the weights lie on, each once: a run may draw random numbers of each."""
    return list(dict.fromkeys(p.device for p in module.parameters() if p.device.type == "cuda"))


def seed_anew(devices: Iterable[torch.device], seed: int = 0) -> None:
    """Fix the seed of what is drawn on the CPU, and on some CUDA devices, and on no others."""
    torch.default_generator.manual_seed(seed)  # (torch.manual_seed takes milliseconds)
    for device in devices:
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def is_float(t: Tensor) -> bool:
    """Return whether a tensor holds real or complex numbers, rather than integers or truth values."""
    return t.is_floating_point() or t.is_complex()


def floats_of(value: Any) -> list[Tensor]:
    """Find all tensors of real or complex numbers in a nest of containers and objects, in order."""
    if isinstance(value, Tensor):
        return [value] if is_float(value) else []
    if dataclasses.is_dataclass(value) and not isinstance(value, dict):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif holds_attributes(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in floats_of(v)] if isinstance(value, (list, tuple)) else []


def holds_attributes(value: Any) -> bool:
    """Return whether a value is an object that code stores results in, such as a cache of keys and values."""
    plain = (Tensor, nn.Module, dict, list, tuple, type, Enum, torch.Generator)
    return bool(getattr(value, "__dict__", None)) and not isinstance(value, plain) and not callable(value)


def at_least_float32(t: Tensor) -> Tensor:
    """Return a tensor of real numbers in a precision that sums can be taken in: float64 stays."""
    return t if t.dtype == torch.float64 else t.float()


Raised = TypeVar("Raised", Tensor, nn.Module)


def in_float64(value: Raised) -> Raised:
    """Return a tensor in double precision, or a module (changed in place) all of whose tensors are."""
    if isinstance(value, nn.Module):
        value._apply(in_float64)  # type: ignore[no-untyped-call]
        for module in value.modules():  # a graph's constants, which its casts leave alone
            for name, t in module._buffers.items():
                module._buffers[name] = None if t is None else in_float64(t)
        return value
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def get_or_create_submodule(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a path, made of empty modules where there is none yet."""
    here = root
    for part in path.split(".") if path else ():
        if part not in here._modules:
            here.add_module(part, nn.Module())
        here = here._modules[part]  # type: ignore[assignment]
    return here
