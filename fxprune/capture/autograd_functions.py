"""Autograd functions: the graph shows what they compute, and calls them for their own derivative.

`y = Round.apply(x)` becomes `like = x.round(); y = AutogradFunction(Round)(x, like=like)`.  Axes follow
`like`; the call is what runs, and what a pruned model keeps.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import _SingleLevelFunction

from fxprune.graph.copies import own, structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.own_nodes import AutogradFunction
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.tensors import floats_of, is_float
from fxprune.graph.values import called_with
from fxprune.rules.calls import call_of
from fxprune.rules.elementwise import ELEMENTWISE
from fxprune.rules.registry import DEFAULT_RULES

__all__ = [
    "OTHER_DERIVATIVE",
    "derivative_notes",
    "keep_elementwise_functions",
    "traced_apply",
    "traced_functions",
]

_ITSELF = {"view_as", "reshape_as", "expand_as"}
OTHER_DERIVATIVE = "training follows another derivative"


def traced_apply(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Make a `Function.apply` that, given a proxy, traces the forward and leaves a call in the graph."""

    def traced(function: Any, *args: Any) -> Any:
        tracer: Any = next((a.tracer for a in args if isinstance(a, fx.Proxy)), None)
        if tracer is None:
            return apply.__get__(None, function)(*args)
        with tracer.within_function():
            like = _forward(function, *args)
        if not isinstance(like, fx.Proxy):
            for made in like if isinstance(like, (tuple, list)) else ():
                if isinstance(made, fx.Proxy):
                    made.node.meta["traced_forward"] = function.__name__
            return like
        try:
            tracer.create_arg(args)
        except NotImplementedError:  # it is given what no graph can hold: a function, as checkpoints are
            like.node.meta["traced_forward"] = function.__name__
            return like
        name = tracer.add_helper_module(AutogradFunction(function))
        return tracer.create_proxy("call_module", name, args, {"like": like})

    return traced


def _forward(function: Any, *args: Any) -> Any:
    """Return the forward alone, which `apply` would run without gradients."""
    if function.setup_context is not _SingleLevelFunction.setup_context:
        return function.forward(*args)
    ignored = {name: lambda *a, **k: None for name in dir(torch.autograd.function.FunctionCtx)}
    ignored = {name: f for name, f in ignored.items() if not name.startswith("__")}
    return function.forward(types.SimpleNamespace(**ignored, needs_input_grad=(True,) * len(args)), *args)


@contextlib.contextmanager
def traced_functions(names: dict[str, None]) -> Iterator[None]:
    """Trace autograd functions as their forwards meanwhile; yields the names of those that are applied."""
    apply = vars(torch.autograd.Function)["apply"]
    exporting_here = this_thread_only()

    def traced(function: Any, *args: Any) -> Any:
        if not exporting_here():
            return apply.__get__(None, function)(*args)
        if not function.__name__.startswith("GeneratedBackwardFor_"):  # a custom op: called in the graph
            names[function.__name__] = None
        with _without_no_grad():
            return _forward(function, *args)

    torch.autograd.Function.apply = classmethod(traced)
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply


@contextlib.contextmanager
def _without_no_grad() -> Iterator[None]:
    """Ignore a forward's own `no_grad` (a checkpoint has one): it never records gradients anyway."""
    enter, leave = torch.no_grad.__enter__, torch.no_grad.__exit__
    here = this_thread_only()
    torch.no_grad.__enter__ = lambda self: None if here() else enter(self)  # type: ignore[method-assign]
    torch.no_grad.__exit__ = lambda self, *e: None if here() else leave(self, *e)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.no_grad.__enter__, torch.no_grad.__exit__ = enter, leave  # type: ignore[method-assign]


def keep_elementwise_functions(graph: fx.Graph, root: nn.Module) -> list[str]:
    """Leave the calls of elementwise functions; others become what they compute.  Returns notes on those.

    A slice of an elementwise function's result is its result on the slices, whatever its code looks like.
    """
    lost = {node.meta["traced_forward"]: None for node in graph.nodes if "traced_forward" in node.meta}
    for node in list(graph.nodes):
        if node.op != "call_module" or "like" not in node.kwargs:
            continue
        module = root.get_submodule(str(node.target))
        if isinstance(module, AutogradFunction) and not _is_elementwise(node, root):
            lost[module.function.__name__] = None
            node.replace_all_uses_with(node.kwargs["like"])
            graph.erase_node(node)
    return [
        f"the derivative of {name} is that of its forward, as for what is not elementwise" for name in lost
    ]


def derivative_notes(model: nn.Module, graph: fx.GraphModule, example: Example, lost: bool) -> list[str]:
    """Note where a graph has another derivative than its model, of the weights or of the inputs.

    lost: the graph lacks a function that has a derivative of its own; otherwise nothing is looked at.
    """
    if not lost:
        return []
    noise = seeded_noise(example, model)
    try:
        same = _alike(_derivatives(model, noise), _derivatives(graph, noise))
    except Exception:  # whatever the model's code raises, or a model without values
        same = False
    return [] if same else [f"{OTHER_DERIVATIVE} than the model's own autograd functions have"]


def _derivatives(module: nn.Module, noise: Example) -> dict[str, Tensor | None]:
    called = structural_copy(module, own)
    called.eval()
    given = noise.map(lambda t: t.clone().requires_grad_() if is_float(t) else t.clone())
    outputs = floats_of(called_with(called, given))
    weighed = [(out * torch.arange(out.numel()).cos().view(out.shape).to(out)).abs().sum() for out in outputs]
    torch.stack([w for w in weighed if w.requires_grad]).sum().backward()
    of_inputs = {f"input {i}": t.grad for i, t in enumerate(floats_of([given.args, given.kwargs]))}
    return of_inputs | {name: p.grad for name, p in called.named_parameters()}


def _alike(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> bool:
    """Are the derivatives by which both can be trained equal, up to rounding?"""
    for name in a.keys() & b.keys():
        x, y = (torch.zeros(()) if g is None else g.detach().to_dense() for g in (a[name], b[name]))
        scale = max(float(x.abs().max()), float(y.abs().max())) if x.numel() and y.numel() else 0.0
        if scale and float((x - y).abs().max()) > 10 * torch.finfo(x.dtype).eps ** 0.5 * scale:
            return False
    return True


def _is_elementwise(node: fx.Node, root: nn.Module) -> bool:
    given, front = set(node.all_input_nodes) - {node.kwargs["like"]}, [node.kwargs["like"]]
    while front:
        inner = front.pop()
        if inner in given:
            continue
        if not isinstance(inner, fx.Node) or inner.op not in ("call_function", "call_method"):
            return False
        if inner.target in _ITSELF and inner.args[0] is inner.args[1]:  # `x.view_as(x)`
            front.append(inner.args[0])
            continue
        rule = DEFAULT_RULES.get(call_of(inner, root, DEFAULT_RULES).op)
        if rule is None or inspect.unwrap(rule.function) not in ELEMENTWISE:
            return False
        front += inner.all_input_nodes
    return True
