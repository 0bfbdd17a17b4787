"""The layers that are solved again, each laid out as a regression.

They read a shrunk axis, or write to a narrowed stream, or give the last that is made of it all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.infer import Step
from fxprune.choose.importance.answers import SOLVED
from fxprune.compiler.refit.additions import Addition, addition_of
from fxprune.graph.tensors import named_tensors
from fxprune.result.selection import Selection
from fxprune.rules.axes import Atom, atoms_of
from fxprune.rules.calls import weight_name
from fxprune.rules.contractions import linear_axes
from fxprune.rules.registry import Axes

__all__ = ["Consumer", "Consumers", "consumers_of"]

WIDEST = 16384  # inputs per output beyond which the square of them is too much to hold


@dataclass(frozen=True)
class Consumer:
    """A linear layer or a convolution that is solved again.

    node: its name in the analysed graph, and in the result's.
    weight, bias: the names of its tensors in the graph.
    kernel: dimensions that a kernel moves over; 0 for a linear layer.
    given: the axes of what it gives.
    options: `stride`, `padding`, `dilation` of a convolution.
    addition: what its answer is added to, if anything.
    shrunk: it reads a shrunk axis.
    """

    node: str
    weight: str
    bias: str | None
    kernel: int
    given: Axes
    options: dict[str, Any] = field(default_factory=dict)
    addition: Addition | None = None
    shrunk: bool = True

    def vectors(self, x: Tensor, weight: Tensor) -> Tensor:
        """Lay what it reads out as [groups, places, inputs], inputs in the order of the weight's."""
        if not self.kernel:
            return x.reshape(1, -1, x.shape[-1])
        size, steps = weight.shape[2:], self._per_dim("stride")
        spread, pad = self._per_dim("dilation"), self._padding(weight)
        x = torch.nn.functional.pad(x, [p for pair in reversed(pad) for p in pair])
        first = x.ndim - self.kernel
        for d in range(self.kernel):
            x = x.unfold(first + d, (size[d] - 1) * spread[d] + 1, steps[d])[..., :: spread[d]]
        if first == 1:  # one sample without its dimension
            x = x.unsqueeze(0)
        groups = x.shape[1] // weight.shape[1]
        x = torch.unflatten(x, 1, (groups, weight.shape[1])).movedim(1, 0)  # [g, b, i, *out, *kernel]
        places = [1, *range(3, 3 + self.kernel)]
        x = x.permute(0, *places, 2, *range(3 + self.kernel, x.ndim))
        return x.reshape(groups, math.prod(x.shape[1 : 2 + self.kernel]), -1)

    def answers(self, y: Tensor, groups: int) -> Tensor:
        """Lay what it gives out as [groups, places, outputs]."""
        if not self.kernel:
            return y.reshape(1, -1, y.shape[-1])
        y = y if y.ndim == self.kernel + 2 else y.unsqueeze(0)
        return torch.unflatten(y, 1, (groups, -1)).movedim(1, 0).movedim(2, -1).flatten(1, -2)

    def channel(self, t: Tensor) -> int:
        """Return the dimension of its channels in what it reads or gives."""
        return t.ndim - 1 if not self.kernel else t.ndim - self.kernel - 1

    def _per_dim(self, name: str) -> tuple[int, ...]:
        value = self.options.get(name, 1)
        value = [value] if isinstance(value, int) else list(value or [1])
        return tuple(value * self.kernel if len(value) == 1 else value)

    def _padding(self, weight: Tensor) -> list[tuple[int, int]]:
        given, spread = self.options.get("padding", 0), self._per_dim("dilation")
        if given == "same":
            total = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
            return [(t // 2, t - t // 2) for t in total]
        if isinstance(given, str):
            return [(0, 0)] * self.kernel
        values = [given] if isinstance(given, int) else list(given or [0])
        return [(p, p) for p in (values * self.kernel if len(values) == 1 else values)]


@dataclass(frozen=True)
class Consumers:
    """Those that can be solved, in the order in which they run; of other readers, why not, by node."""

    solved: tuple[Consumer, ...]
    left: dict[str, str]


def consumers_of(analysis: Analysis, selection: Selection) -> Consumers:
    """Find every call with a weight that misses channels, or that can make up for them.

    That is where a stream goes on, and where what comes of it all is given: by the last layers.
    """
    tensor = dict(named_tensors(analysis.module))
    users = Counter(
        t for sites in analysis.graph.operands.values() for t in {id(tensor[site.name]) for site in sites}
    )
    places = {name: users[id(t)] for name, t in tensor.items()}
    solved: list[Consumer] = []
    left: dict[str, str] = {}
    for node, step in analysis.steps.items():
        summed = {a for axis in step.flow.reduced for a in atoms_of(axis)} & selection.masks.keys()
        reads = any(summed & {*atoms_of(analysis.axis(s))} for s in analysis.graph.operands.get(node, ()))
        writes = _gives_solved(step) and bool(_given(analysis, node) & selection.masks.keys())
        ends = bool(solved) and _gives_solved(step) and not writes
        if step.is_statistic or not (reads or writes or ends):
            continue
        found = _consumer(analysis, node, step, places)
        if isinstance(found, str):
            left |= {node.name: found} if reads else {}
        # What writes to a stream has to be added to it, the last ones to nothing.
        elif reads or (found.addition is not None) == writes:
            solved.append(replace(found, shrunk=reads))
    return Consumers(tuple(solved), left)


def _gives_solved(step: Step) -> bool:
    """Is a call of a kind that is solved?"""
    return step.rule is not None and step.rule.function in SOLVED


def _given(analysis: Analysis, node: fx.Node) -> set[Atom]:
    """Return the atoms of what a call gives."""
    known = analysis.axes.get(node)
    return {atom for axis in known[0] for atom in atoms_of(axis)} if known else set()


def _consumer(analysis: Analysis, node: fx.Node, step: Step, places: Mapping[str, int]) -> Consumer | str:
    """Return a call as a regression, or say why it is none."""
    assert step.rule is not None
    if step.rule.function not in SOLVED:
        return f"{step.rule.op} has no closed form here"
    bound = step.bound
    names = {name: weight_name(bound.get(name)) for name in ("weight", "bias")}
    weight, bias = names["weight"], names["bias"]
    if weight is None or (bias is None and bound.get("bias") is not None):
        return "its weight is computed"
    if places[weight] > 1 or (bias is not None and places[bias] > 1):
        return "its weight is used in several places"
    axes = analysis.weights[weight]
    if math.prod(axis.size for axis in axes[1:]) > WIDEST:
        return f"it reads more than {WIDEST} numbers at a place"
    operand = bound["input"]
    if not isinstance(operand, fx.Node) or not analysis.axes.get(operand):
        return "what it reads is no value of the graph"
    options: dict[str, Any] = {
        name: bound[name] for name in ("stride", "padding", "dilation") if name in bound
    }
    if any(isinstance(value, fx.Node) for value in options.values()):
        return "its stride or padding is computed"
    kernel = 0 if step.rule.function is linear_axes else len(axes) - 2
    given = analysis.axes[node][0]
    return Consumer(node.name, weight, bias, kernel, given, options, addition_of(analysis, node))
