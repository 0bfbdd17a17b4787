"""Functions that take no proxies, or would answer while they are traced, patched for that time."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.capture import patched
from fxprune.capture.autograd_functions import traced_apply
from fxprune.capture.precisions import AUTOCAST, LIMITS
from fxprune.capture.regions import traced_regions
from fxprune.capture.symbolic.numbers import numbers_as_nodes
from fxprune.capture.symbolic.numpy_sizes import arrays_of_sizes
from fxprune.capture.symbolic.proxies import TracedAttribute, TracedValue, stands_for
from fxprune.graph.own_nodes import dtype_limit
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = ["kept_calls", "patched_for_tracing"]

# These take sizes one by one, and know no proxies among them.
FACTORIES = (
    *("empty", "ones", "zeros", "full", "arange", "eye", "linspace", "logspace", "tensor", "as_tensor"),
    *("promote_types", "can_cast", "from_numpy"),  # nor proxies among dtypes
    *("tril_indices", "triu_indices", "range", "hann_window", "hamming_window", "empty_strided"),
)
# Functions of tensors which ask a stand-in among their numbers for its number, and fix it.
OF_SIZES = (
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "layer_norm"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "unflatten"),
    *("roll", "narrow", "select", "topk", "kthvalue", "tril", "triu", "tensor_split"),
)
# Methods of a tensor that the code made, which know no stand-in for their first size.
METHODS = ("expand", "view", "reshape", "repeat", "tile", "new_empty", "new_zeros", "new_ones", "roll")
# What torch._check and its kind call.
CHECKS = ("_check_with", "_check_tensor_all_with")
# Drawn anew in every call of the result, not once while it is traced.
RANDOM = ("normal", "rand", "randint", "randn", "randperm")


_BUILTIN = type(torch.roll)


@contextlib.contextmanager
def patched_for_tracing(tracer: fx.Tracer) -> Iterator[None]:
    """Patch what rejects proxies or answers for them: `isinstance`, `len`, `torch.zeros`, `torch.finfo`."""
    tracing_here = this_thread_only()
    # It notes what the builtins are when it is loaded, and a capture loads it: else torch.compile would know
    # the user's `isinstance` no more afterwards.
    importlib.import_module("torch._dynamo")
    with contextlib.ExitStack() as patches:
        patch = partial(patched.patch, patches)
        patch(builtins, "isinstance", _instance_check(builtins.isinstance, tracer))
        patch(builtins, "len", _length(builtins.len))
        patch(builtins, "callable", lambda x, of=builtins.callable: not isinstance(x, fx.Proxy) and of(x))
        for name in FACTORIES:
            patch(torch, name, _given_sizes(getattr(torch, name), tracer))
        for owner in (torch, torch.nn.functional):
            for name in OF_SIZES:
                if type(vars(owner).get(name)) is _BUILTIN:  # one in Python hands over by itself
                    patch(owner, name, _given_sizes(getattr(owner, name), tracer))
        for name in ("arange", "linspace"):
            patch(np, name, _given_sizes(getattr(np, name), tracer))
        for name, replacement in arrays_of_sizes().items():
            patch(np, name, replacement)
        for name in METHODS:
            patch(torch.Tensor, name, _method_given_sizes(getattr(torch.Tensor, name), tracer))
        patch(torch.nn.functional, "l1_loss", _weighted(torch.nn.functional.l1_loss))
        for (owner, name), value in numbers_as_nodes(tracer).items():
            patch(owner, name, value)
        for name in RANDOM:
            patch(torch, name, _always_a_node(getattr(torch, name), tracer, tracing_here))
        for owner in (torch, torch.func):
            patch(owner, "vmap", _no_vmap(owner.vmap))
        patch(torch, "finfo", _limits(torch.finfo, (*LIMITS, "bits")))
        patch(torch, "iinfo", _limits(torch.iinfo, ("max", "min", "bits")))
        for name in AUTOCAST:
            patch(torch, name, _asked_by_users(getattr(torch, name), tracer, tracing_here))
        for name in CHECKS:
            patch(torch, name, _guarded(getattr(torch, name)))
        patch(torch, "_assert", _guarded_assert(torch._assert))
        autocast = torch.amp.autocast_mode.autocast
        enter, leave = traced_regions(autocast, tracer, tracing_here)
        patch(autocast, "__enter__", enter)
        patch(autocast, "__exit__", leave)
        function = torch.autograd.Function
        patch(function, "apply", classmethod(traced_apply(vars(function)["apply"])))
        yield


def _instance_check(is_instance: Callable[[Any, Any], bool], tracer: Any) -> Callable[[Any, Any], bool]:
    """Patch `isinstance(x, Tensor)` in a model's code to ask what x stands for; torch's own asks x itself."""
    traced = (TracedValue, TracedAttribute)

    def check(x: Any, classes: Any) -> bool:
        if is_instance(x, classes):
            if type(x) in traced and is_users((caller := sys._getframe(1)).f_code.co_filename):
                tracer.proxy_questions[f"{caller.f_code.co_filename}:{caller.f_lineno}"] = None
                tracer.type_is_asked(x)
            return True
        if type(x) not in traced:  # there are no other stand-ins; asked a hundred thousand times
            return False
        file = sys._getframe(1).f_code.co_filename
        theirs = is_users(file) or file == torch.__file__  # torch.is_tensor
        if theirs:
            tracer.type_is_asked(x)
        return theirs and stands_for(x, classes)

    return check


def _length(of: Callable[[Any], int]) -> Callable[[Any], Any]:
    """Patch `len`: of a tensor a node, of a shape, a list or a dictionary a number."""

    def length(x: Any) -> Any:
        if not isinstance(x, fx.Proxy):
            return of(x)
        tracer: Any = x.tracer
        if isinstance(tracer.value_or_self(x), (tuple, list, dict, str)):
            return of(x)
        return tracer.create_proxy("call_function", of, (x,), {})

    return length


def _given_sizes(function: Callable[..., Any], tracer: fx.Tracer) -> Callable[..., Any]:
    """Return a node where any argument, or an item of one, is a proxy."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _any_proxy((args, kwargs)):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return call


def _method_given_sizes(method: Callable[..., Any], tracer: fx.Tracer) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not _any_proxy(args):
            return method(tensor, *args, **kwargs)
        return tracer.create_proxy("call_method", method.__name__, (tensor, *args), kwargs)

    return call


def _weighted(l1_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Spell a weighted loss out: torch hands the weight to nobody who takes its functions over."""

    @functools.wraps(l1_loss)
    def loss(input: Any, target: Any, *given: Any, weight: Any = None, **named: Any) -> Any:
        options = {**dict(zip(("size_average", "reduce", "reduction"), given, strict=False)), **named}
        if weight is None or not _any_proxy((input, target, weight)):
            return l1_loss(input, target, weight=weight, **options)
        errors = (input - target).abs() * weight
        if options.get("size_average") is not None or options.get("reduce") is not None:
            raise NotImplementedError("size_average and reduce are not followed: give reduction")
        reduction = options.get("reduction", "mean")
        if reduction == "none":
            return errors
        return errors.sum() if reduction == "sum" else errors.sum() / weight.sum()

    return loss


@contextlib.contextmanager
def kept_calls(tracer: fx.Tracer, places: Iterable[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Keep calls of functions that a user taught rules for in the graph; `places` hold the functions."""
    places = list(places)
    for space, name, function in places:
        space[name] = _given_sizes(function, tracer)
    try:
        yield
    finally:
        for space, name, function in places:
            space[name] = function


def _any_proxy(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return isinstance(value, fx.Proxy)
    return any(map(_any_proxy, value))


def _always_a_node(
    function: Callable[..., Any], tracer: fx.Tracer, tracing_here: Callable[[], bool]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not tracing_here():
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return call


def _guarded(check: Callable[..., None]) -> Callable[..., None]:
    """Make a guard of what a model asserts, of sizes or of all values of a tensor."""

    def checked(error: Any, cond: Any, *message: Any) -> None:
        if not isinstance(cond, fx.Proxy):
            check(error, cond, *message)
        else:
            of_all = isinstance(cond, TracedValue) and stands_for(cond, Tensor)
            _hold(cond.all() if of_all else cond)

    return checked


def _guarded_assert(check: Callable[..., None]) -> Callable[..., None]:
    """Return the same for `torch._assert`, which takes the condition first.

    Code that imported it by name has torch's own, which hands over to this one while a mode is entered:
    `WeightsRead` is one.
    """

    def checked(condition: Any, message: Any) -> None:
        if not isinstance(condition, fx.Proxy):
            check(condition, message)
        else:
            _hold(condition)

    return checked


def _hold(condition: fx.Proxy) -> None:
    if not condition:
        raise AssertionError("the model's own assertion fails for the example")


def _no_vmap(vmap: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse torch.vmap of proxies: what it runs is no code on whole batches, as a graph is."""

    def mapped(function: Callable[..., Any], *options: Any, **named: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if _any_proxy((args, kwargs)):
                raise NotImplementedError("torch.vmap is not followed: call the function on the whole batch")
            return vmap(function, *options, **named)(*args, **kwargs)

        return call

    return mapped


def _limits(of: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Patch `torch.finfo` and `iinfo` to give limits that are nodes, of a dtype that is one."""

    def limits(dtype: Any = None) -> Any:
        if isinstance(dtype, fx.Proxy):
            return _Limits(dtype, names)
        return of() if dtype is None else of(dtype)

    return limits


class _Limits:
    """What stands for `torch.finfo(dtype)`: its limits are nodes."""

    def __init__(self, dtype: fx.Proxy, names: tuple[str, ...]) -> None:
        self.dtype = dtype
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(name)
        return self.dtype.tracer.create_proxy("call_function", dtype_limit, (self.dtype, name), {})


def _asked_by_users(
    function: Callable[..., Any], tracer: Any, tracing_here: Callable[[], bool]
) -> Callable[..., Any]:
    """Return a node where a model's code asks."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not tracing_here() or not is_users(sys._getframe(1).f_code.co_filename):
            return function(*args, **kwargs)
        args = (*(tracer.device_word(a) for a in args),)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return call
