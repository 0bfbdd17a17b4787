"""Autograd functions: the graph shows what they compute, and calls them for their own derivative.

`y = Round.apply(x)` becomes `like = x.round(); y = AutogradFunction(Round)(x, like=like)`.  Axes follow
`like`; the call is what runs, and what a pruned model keeps.  Where a graph can't hold the call, its result
is `ForwardOnly`, unless the derivative of the forward is the function's own.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import _SingleLevelFunction
from torch.utils import _pytree as pytree

from fxprune.graph.copies import own, structural_copy
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.own_nodes import AutogradFunction, ForwardOnly, ModeValue
from fxprune.graph.tensors import cuda_devices_of, floats_of, is_float
from fxprune.graph.values import called_with
from fxprune.rules.calls import call_of
from fxprune.rules.elementwise import ELEMENTWISE
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["forward_of", "keep_derivatives", "traced_apply"]

_ITSELF = {"view_as", "reshape_as", "expand_as"}


def traced_apply(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Make a `Function.apply` that, given a proxy, traces the forward and leaves a call in the graph."""

    def traced(function: Any, *args: Any) -> Any:
        tracer: Any = next((a.tracer for a in args if isinstance(a, fx.Proxy)), None)
        if tracer is None:
            return apply.__get__(None, function)(*args)
        given = [a.node for a in args if isinstance(a, fx.Proxy)]
        with tracer.within_function():
            like = forward_of(function, *args)

        def forward_only(value: Any) -> Any:
            name = tracer.add_helper_module(ForwardOnly(function.__name__))
            return tracer.create_proxy("call_module", name, (value,), {})

        written = given != [a.node for a in args if isinstance(a, fx.Proxy)]  # it writes to what it is given
        if isinstance(like, fx.Proxy) and not written:
            try:
                tracer.create_arg(args)
            except NotImplementedError:  # it is given what no graph can hold: a function, as checkpoints are
                return forward_only(like)
            name = tracer.add_helper_module(AutogradFunction(function))
            return tracer.create_proxy("call_module", name, args, {"like": like})
        return pytree.tree_map_only(fx.Proxy, forward_only, like)

    return traced


def forward_of(function: Any, *args: Any) -> Any:
    """Return the forward alone, which `apply` would run without gradients."""
    if function.setup_context is not _SingleLevelFunction.setup_context:
        return function.forward(*args)
    ignored = {name: lambda *a, **k: None for name in dir(torch.autograd.function.FunctionCtx)}
    ignored = {name: f for name, f in ignored.items() if not name.startswith("__")}
    return function.forward(types.SimpleNamespace(**ignored, needs_input_grad=(True,) * len(args)), *args)


def keep_derivatives(
    model: nn.Module, module: fx.GraphModule, example: Example, follows_mode: bool
) -> list[str]:
    """Leave the calls of elementwise functions; others become what they compute.  Returns notes on those.

    A slice of an elementwise function's result is its result on the slices, whatever its code looks like.
    The others' results stay `ForwardOnly` where a derivative of the graph is not the model's.
    """
    graph = module.graph
    calls = [n for n in graph.nodes if n.op == "call_module" and "like" in n.kwargs]
    if not calls and not any(n.op == "call_module" and _is_forward_only(module, n) for n in graph.nodes):
        return []
    for node in calls:
        call = module.get_submodule(str(node.target))
        if isinstance(call, AutogradFunction) and not _is_elementwise(node, module):
            _make_forward_only(module, node, call.function.__name__)
    lost = [n for n in graph.nodes if n.op == "call_module" and _is_forward_only(module, n)]
    names = dict.fromkeys(str(module.get_submodule(str(n.target)).function) for n in lost)
    module.recompile()
    if lost and _derivatives_are_alike(model, module, example, follows_mode):
        for node in lost:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        _drop_unused(module)
        return [f"the derivative of {name} is that of its forward" for name in names]
    _drop_unused(module)
    return [
        f"the graph does not hold the derivative of {name}: it can't be trained through" for name in names
    ]


def _make_forward_only(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Replace a call by what it computes, whose derivative is another."""
    path = f"{node.target}_forward"
    module.add_submodule(path, ForwardOnly(name))
    with module.graph.inserting_before(node):
        only = module.graph.call_module(path, (node.kwargs["like"],))
    only.meta = dict(node.meta)
    node.replace_all_uses_with(only)
    module.graph.erase_node(node)


def _drop_unused(module: fx.GraphModule) -> None:
    """Drop our own modules that the graph no longer calls."""
    used = {node.target for node in module.graph.nodes if node.op == "call_module"}
    for path, held in list(module.named_modules()):
        if isinstance(held, (AutogradFunction, ForwardOnly)) and path not in used:
            module.delete_submodule(path)
    module.recompile()


def _is_forward_only(module: nn.Module, node: fx.Node) -> bool:
    return isinstance(module.get_submodule(str(node.target)), ForwardOnly)


def _derivatives_are_alike(model: nn.Module, graph: nn.Module, example: Example, follows_mode: bool) -> bool:
    """Are the derivatives of weights and inputs the model's: with its own weights, with others, in each mode?

    A layer scale of zeros hides what it scales.  In train mode nothing is said of a graph that does not
    follow it.
    """
    noise = seeded_noise(example, model)
    modes = (False, True) if follows_mode else (False,)
    try:
        for training in modes:
            for weights in (own, _Other()):
                a, b = (_derivatives(module, noise, weights, training) for module in (model, graph))
                if not _alike(a, b):
                    return False
    except Exception:  # whatever the model's code raises, or a model without values
        return False
    return True


class _Other:
    """Other weights for a copy, the same ones for the same tensor."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._given: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
            return own(tensor)
        if id(tensor) not in self._given:
            noise = torch.randn(tensor.shape, generator=self._generator).to(tensor)
            scale = 0.5 * max(1, tensor[0].numel() if tensor.ndim > 1 else 1) ** -0.5
            self._given[id(tensor)] = tensor, noise * scale + (tensor.ndim < 2)
        return nn.Parameter(self._given[id(tensor)][1].clone(), requires_grad=tensor.requires_grad)


def _derivatives(
    module: nn.Module, noise: Example, weights: Callable[[Tensor], Tensor], training: bool
) -> dict[str, Tensor | None]:
    called = structural_copy(module, weights)
    called.train(training)
    given = noise.map(lambda t: t.clone().requires_grad_() if is_float(t) else t.clone())
    with torch.enable_grad(), torch.random.fork_rng(devices=cuda_devices_of(module)):
        torch.manual_seed(0)
        outputs = floats_of(called_with(called, given))
        weighed = [
            (out * torch.arange(out.numel()).cos().view(out.shape).to(out)).abs().sum() for out in outputs
        ]
        torch.stack([w for w in weighed if w.requires_grad]).sum().backward()
    of_inputs = {f"input {i}": t.grad for i, t in enumerate(floats_of([given.args, given.kwargs]))}
    return of_inputs | {name: p.grad for name, p in called.named_parameters()}


def _alike(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> bool:
    """Are the derivatives by which both can be trained equal, up to rounding?"""
    for name in a.keys() & b.keys():
        x, y = (torch.zeros(()) if g is None else g.detach().to_dense() for g in (a[name], b[name]))
        x, y = torch.broadcast_tensors(x, y)
        if bool((x.isnan() != y.isnan()).any()):
            return False
        x, y = x.nan_to_num(), y.nan_to_num()
        scale = max(float(x.abs().max()), float(y.abs().max())) if x.numel() else 0.0
        if float((x - y).abs().max() if x.numel() else 0) > 10 * torch.finfo(x.dtype).eps ** 0.5 * scale:
            return False
    return True


def _is_number(node: object, root: nn.Module) -> bool:
    """Is it a number that follows the mode?"""
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return called and isinstance(root.get_submodule(str(node.target)), ModeValue)  # type: ignore[attr-defined]


def _is_elementwise(node: fx.Node, root: nn.Module) -> bool:
    given = {argument for argument in node.args if isinstance(argument, fx.Node)}
    front = [node.kwargs["like"]]
    while front:
        inner = front.pop()
        if inner in given or _is_number(inner, root):
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
