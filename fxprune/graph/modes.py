"""Put models in eval mode, and find modules whose code depends on the mode: it looks at `self.training`."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator

import torch
from torch import nn

from fxprune.graph.code_names import assigned_in, names_in, plain_functions

__all__ = ["follows_mode", "forward_reads_mode", "in_eval_mode", "reads_mode"]


@contextlib.contextmanager
def in_eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode, and every module of theirs back in its own mode at the end."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def reads_mode(module: nn.Module) -> bool:
    """Does any code of the module's class look at `training`, called or not, or set more by its mode?"""
    classes = (cls for cls in type(module).__mro__ if cls not in (nn.Module, object))
    return any(_switches_more(cls) or any(map(_reads_training, _methods(cls))) for cls in classes)


def _switches_more(cls: type) -> bool:
    """Does a class's own `train` or `eval` set what other code may read?"""
    own = [vars(cls)[name] for name in ("train", "eval") if name in vars(cls)]
    functions = [function for member in own for function in plain_functions(member)]
    users = not cls.__module__.startswith("torch.")
    return users and any(assigned_in(function) - {"training"} for function in functions)


def forward_reads_mode(module: nn.Module) -> bool:
    """Does `forward`, or a method that it calls, look at `training`?  (What it overrides may well.)"""
    mro = type(module).__mro__
    queue, seen = [(mro, "forward")], set()
    while queue:
        classes, name = queue.pop()
        owner = next((cls for cls in classes if name in vars(cls) and cls not in (nn.Module, object)), None)
        if owner is None or (owner, name) in seen:
            continue
        seen.add((owner, name))
        for function in plain_functions(vars(owner)[name]):
            if _reads_training(function):
                return True
            named = set(names_in(function.__code__))
            queue += [(mro, other) for other in named]
            if "super" in named:
                queue += [(classes[classes.index(owner) + 1 :], other) for other in named]
    return False


def follows_mode(module: nn.Module) -> bool:
    """Is this dropout by another name: no state, no children, random in training, nothing in eval?

    Such a module stays a module call, so that the result's own `.train()` switches it.
    """
    if getattr(module.__dict__.get("forward"), "layer_marker", False):
        return not isinstance(module, nn.modules.batchnorm._NormBase)
    if any(True for _ in module.children()) or module._parameters or module._buffers:
        return False
    if isinstance(module, (nn.Dropout, nn.modules.dropout._DropoutNd)):
        return True
    if type(module).forward is nn.Module.forward or not reads_mode(module):
        return False
    return _is_identity_in_eval(module)


def _is_identity_in_eval(module: nn.Module) -> bool:
    probe = torch.zeros(2, 3, 4, 4, device="meta")  # b c h w
    was = module.training
    module.training = False
    try:
        return module(probe) is probe
    except Exception:  # it takes something else than one feature map: not a dropout
        return False
    finally:
        module.training = was


def _methods(cls: type) -> Iterator[types.FunctionType]:
    for name, member in vars(cls).items():
        if name not in ("train", "__init__"):
            yield from plain_functions(member)


@functools.cache
def _reads_training(function: types.FunctionType) -> bool:
    """Does the function look at `training`, or a helper beside it that it calls?"""
    named = set(names_in(function.__code__))
    helpers = (function.__globals__.get(name) for name in named)
    others = (
        h for h in helpers if isinstance(h, types.FunctionType) and not h.__module__.startswith("torch")
    )
    return "training" in named or any("training" in names_in(helper.__code__) for helper in others)
