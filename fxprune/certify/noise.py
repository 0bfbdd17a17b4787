"""Give both sides of a comparison the same noise, element by element, and the same choice among equals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.certify.choices import agreed, chooses
from fxprune.certify.float64 import Float64Interpreter
from fxprune.certify.relative_error import compare
from fxprune.graph.op_names import op_name
from fxprune.graph.tensors import seed_anew

__all__ = [
    *("Drawn", "Replaying", "drawn_alike", "drawn_in_order", "draws_noise", "given_to"),
    "tensors_in",
]

SAME = 1e-9  # relative to the largest element

# What these draw depends on the shape of the first tensor alone.
_FILLS = {
    *("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "new_rand"),
    *("normal_", "normal_functional", "bernoulli_", "uniform_", "uniform", "exponential_", "exponential"),
    *("log_normal_", "log_normal", "cauchy_", "cauchy", "geometric_", "geometric", "random_", "random"),
}
# What these draw depends on values.
_SAMPLES = {
    *("normal", "bernoulli", "multinomial", "poisson", "binomial", "rrelu", "rrelu_with_noise"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "native_dropout", "alpha_dropout"),
    *("feature_dropout", "feature_alpha_dropout", "gumbel_softmax"),
}
_DRAWS = _FILLS | _SAMPLES


def draws_noise(node: fx.Node) -> bool:
    """Return whether a node's value is drawn, rather than computed."""
    return node.op in ("call_function", "call_method") and op_name(node.target) in _DRAWS


@dataclass(frozen=True)
class Drawn:
    """What a node of the original drew, or chose (`topk`): the kept elements.

    given: those of the tensors whose values the draw depends on; of a choice, nothing.
    """

    values: list[Tensor]
    given: list[Tensor]

    def is_given(self, tensors: list[Tensor]) -> bool:
        """Return whether another draw is made from the same values."""
        shapes = [t.shape for t in tensors]
        return shapes == [t.shape for t in self.given] and compare(self.given, tensors).error <= SAME


def given_to(node: fx.Node) -> list[fx.Node]:
    """Return the operands by whose values a draw is made."""
    name = op_name(node.target)
    fills = name in _FILLS or (name == "bernoulli" and (len(node.args) > 1 or "p" in node.kwargs))
    return node.all_input_nodes[1:] if fills else node.all_input_nodes


class drawn_in_order(TorchDispatchMode):
    """Draw noise element after element, whatever the memory layout of what it fills."""

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


class drawn_alike(drawn_in_order):
    """Draw at each op what another run draws there for the same shape, whatever either drew before it.

    Inside `same_draws`, which gives the generators back.  devices: the CUDA devices that it is for.
    """

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        super().__init__()
        self.devices = tuple(devices)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            seed_anew(self.devices)
        return super().__torch_dispatch__(func, types, args, kwargs)


class Replaying(Float64Interpreter):
    """Runs a graph in which nodes that draw noise get what the original's nodes of that name drew.

    Where a draw depends on values, only if they are the original's: noise hides no fault before it.  Of
    equal elements the original's choice is taken.

    ties: the nodes that had such a choice, and made another one.
    """

    def __init__(self, module: fx.GraphModule, noise: dict[str, Drawn]) -> None:
        super().__init__(module)
        self.noise = noise
        self.ties: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        known = self.noise.get(n.name)
        if known is None:
            return super().run_node(n)
        if chooses(n):
            value, other = agreed(n, self.env[n.all_input_nodes[0]], super().run_node(n), known.values)
            if other:
                self.ties.add(n.name)
            return value
        return self._replayed(n, known)

    def _replayed(self, n: fx.Node, known: Drawn) -> Any:
        same = known.is_given(tensors_in([self.env[i] for i in given_to(n)]))
        first = next(iter(tensors_in([self.env[i] for i in n.all_input_nodes])), None)
        value = super().run_node(n)
        drawn = tensors_in(value)
        if not same or [t.shape for t in drawn] != [t.shape for t in known.values]:
            return value  # that is what a wrong size, or a wrong value before it, looks like
        each = iter(known.values)

        def replayed(t: Tensor) -> Tensor:
            in_place = first is not None and t.data_ptr() == first.data_ptr()
            return t.copy_(next(each)) if in_place else next(each).to(t)

        return pytree.tree_map_only(Tensor, replayed, value)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of a nest."""
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
