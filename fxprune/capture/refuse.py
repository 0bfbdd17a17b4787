"""Refuse what no graph of a model shows: parametrizations, hooks, TorchScript, weights that calls write."""

from __future__ import annotations

import functools
import keyword
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fxprune.errors import OptionError, UnsupportedModuleError, shown
from fxprune.rules.modules import native

__all__ = ["refuse_unsupported"]


def refuse_unsupported(model: nn.Module) -> None:
    """Refuse by name modules that compute what no graph of the model shows, and names that no graph can have.

    A forward hook that the model's own library put on one of its modules is part of the library's code,
    and is traced with it.
    """
    if not isinstance(model, nn.Module):
        program = isinstance(model, torch.export.ExportedProgram)
        cure = "the module that it was exported from" if program else "build or load one first"
        raise OptionError(f"model is a torch.nn.Module, and was given {shown(model)}: {cure}")
    if isinstance(getattr(model, "meta", None), dict) and hasattr(model, "_guards_fn"):
        raise UnsupportedModuleError(
            f"{type(model).__name__} is what torch.export made of a model, which holds no layers: prune the "
            f"module that it was exported from, and export the result"
        )
    for path, module in model.named_modules():
        name = path or type(model).__name__
        if type(module).__module__.startswith("torch._dynamo") and "_orig_mod" in module._modules:
            raise UnsupportedModuleError(
                f"{name} is what torch.compile returned, which runs other code than can be traced: prune the "
                f"model that it was made from (it holds it as _orig_mod), and compile the result"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModuleError(
                f"{name} is TorchScript, which holds no Python code to trace: prune the module that it was "
                f"made from, and script or trace the result"
            )
        if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            raise UnsupportedModuleError(
                f"{name} is a lazy layer without weights yet: call the model once on an input first"
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise UnsupportedModuleError(
                f"{name} has max_norm={module.max_norm:g}, which writes into its weight at each call: scale "
                f"the rows once, and set max_norm to None"
            )
        if "parametrizations" in module._modules and parametrize.is_parametrized(module):
            raise UnsupportedModuleError(
                f"{name} has a parametrised weight ({', '.join(module.parametrizations)}): call "
                f"torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
        for kind in (
            "_forward_pre_hooks",
            "_forward_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        ):
            if not (hooks := vars(module).get(kind)):
                continue
            hooks = {key: hook for key, hook in hooks.items() if not _is_of_a_result(hook)}
            for hook in hooks.values():
                _refuse_rewritten_weight(hook, name)
            if not all("forward" in kind and _of_its_library(hook, module) for hook in hooks.values()):
                raise UnsupportedModuleError(
                    f"{name} carries a {kind.strip('_').replace('_', ' ')[:-1]}, which a rewritten graph "
                    f"would lose: remove it first and register it on the result"
                )
    _refuse_names(model)


# What a result has beside: see `PrunedModule`, which stands above.
OF_RESULTS = frozenset(
    {"_parts", "_state", "constants", "folded", "modes", "no_weight_decay", "record", "restore", "ties"}
)


@functools.cache
def _taken_names() -> frozenset[str]:
    """Return what a graph module uses on itself, beyond what any module does."""
    own = {*dir(fx.GraphModule(nn.Module(), fx.Graph()))} - {*dir(nn.Module())}
    return frozenset(own | OF_RESULTS | {"self"})


def _refuse_names(model: nn.Module) -> None:
    """Refuse names of layers and weights that no graph module can have: its own, and Python's keywords."""
    for path, module in model.named_modules():
        for name in (*module._modules, *module._parameters, *module._buffers):
            full = f"{path}.{name}".lstrip(".")
            if keyword.iskeyword(name):
                raise UnsupportedModuleError(
                    f"{full} of {type(model).__name__} is named by a keyword of Python, which code that is "
                    f"generated can't spell: rename it"
                )
            if not path and name in _taken_names():
                raise UnsupportedModuleError(
                    f"{type(model).__name__} has something named {name!r}, which a pruned graph "
                    f"needs for itself: rename it, or prune torch.nn.Sequential(model)"
                )


def _refuse_rewritten_weight(hook: Any, name: str) -> None:
    """Refuse torch.nn.utils.weight_norm and its like, which compute a weight before each call."""
    package, _, kind = type(hook).__module__.rpartition(".")
    if package == "torch.nn.utils":
        undo = "prune.remove" if kind == "prune" else f"remove_{kind}"
        raise UnsupportedModuleError(
            f"{name} has its weight from torch.nn.utils.{kind}: call torch.nn.utils.{undo} on it first"
        )


def _of_its_library(hook: Any, module: nn.Module) -> bool:
    """Did the package of the module's class register this, on a module that is traced through?"""
    package = _package(type(module))
    return package not in ("torch", "__main__") and package == _package(hook) and native(module) is None


def _is_of_a_result(hook: Any) -> bool:
    """Did fxprune register this, on a result that is pruned again?  It refuses calls, no more."""
    return isinstance(hook, functools.partial) and _package(hook.func) == __name__.partition(".")[0]


def _package(thing: Any) -> str:
    return str(getattr(thing, "__module__", "")).partition(".")[0]
