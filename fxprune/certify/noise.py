"""Give both sides of a comparison the same noise, element by element, whatever layout it is drawn in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.certify.float64 import Float64Interpreter
from fxprune.graph.op_names import op_name

__all__ = ["Replaying", "drawn_in_order", "draws_noise"]

_DRAWS = {
    *("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal", "normal_"),
    *("bernoulli", "bernoulli_", "multinomial", "poisson", "uniform_", "exponential_", "log_normal_"),
    *("cauchy_", "geometric_", "random_", "uniform", "exponential", "new_rand", "rrelu"),
}


def draws_noise(node: fx.Node) -> bool:
    """Whether a node's value is drawn, rather than computed."""
    return node.op in ("call_function", "call_method") and op_name(node.target) in _DRAWS


class drawn_in_order(TorchDispatchMode):
    """Noise is drawn element after element, whatever the memory layout of what it fills."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = op_name(func)
        if name not in _DRAWS or not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        if name.endswith("_"):
            plain = torch.empty_like(args[0], memory_format=torch.contiguous_format)
            return args[0].copy_(func(plain, *args[1:], **kwargs))
        if name.endswith("_like"):
            kwargs["memory_format"] = torch.contiguous_format
        return func(args[0].contiguous(), *args[1:], **kwargs)


class Replaying(Float64Interpreter):
    """Runs a graph in which nodes that draw noise get what the original's nodes of that name drew.

    noise: node -> the kept elements of what was drawn.
    """

    def __init__(self, module: fx.GraphModule, noise: dict[str, Tensor]) -> None:
        super().__init__(module)
        self.noise = noise

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if not draws_noise(n):
            return value
        known = self.noise.get(n.name)
        if known is None or not isinstance(value, Tensor) or known.shape != value.shape:
            return value  # of another shape: that is what a wrong size looks like
        return value.copy_(known) if op_name(n.target).endswith("_") else known.to(value)
