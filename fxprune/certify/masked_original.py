"""The masked original: the captured graph at full size and depth, with what was removed set to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.infer import Step
from fxprune.axes import with_sizes
from fxprune.certify.float64 import Float64Interpreter, doubled
from fxprune.graph.example import PRIME_BATCH
from fxprune.plan.selection import Selection
from fxprune.rules.calls import Weight
from fxprune.rules.masked import MASKED

__all__ = ["MaskedOriginal"]


class MaskedOriginal(Float64Interpreter):
    """Runs the captured original under masks.

    Every removed branch adds zero, removed channels are zero after every node, and a statistic over a
    shrinking axis counts kept channels only.
    """

    def __init__(self, analysis: Analysis, selection: Selection, batch: int | None) -> None:
        removal = analysis.removal
        whole = analysis.module if removal is None else removal.whole
        super().__init__(doubled(whole))
        self.analysis, self.selection, self.batch = analysis, selection, batch
        analysed = {n: n for n in whole.graph.nodes} if removal is None else removal.twins
        # A node of a removed branch has no counterpart that was analysed.
        self.mirror = {n: analysed.get(w) for n, w in zip(self.graph.nodes, whole.graph.nodes, strict=True)}
        own = dict(zip(whole.graph.nodes, self.graph.nodes, strict=True))
        self.removed = {own[b.add]: own[b.result] for b in removal.branches} if removal else {}
        self.masks: dict[Any, Tensor | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        node = self.mirror[n]
        if n in self.removed:
            self.env[self.removed[n]] = torch.zeros_like(self.env[self.removed[n]])
        if n in self.removed or node is None:
            return super().run_node(n)
        step = self.analysis.inference.steps.get(node)
        statistic = self._statistic(node, step) if step else None
        value = statistic() if statistic else super().run_node(n)
        if node.op in ("output", "placeholder") or node not in self.analysis.axes:
            return value
        return _map_tensors(value, iter(self.analysis.axes[node]), self._apply)

    def _statistic(self, node: fx.Node, step: Step) -> Callable[[], Any] | None:
        """The masked form of a mean or norm, where the tensor that it is taken of shrinks."""
        function = MASKED.get(step.call.op.removeprefix("aten."))
        source = step.call.args[0] if step.call.args else None
        if function is None or step.rule is None or not isinstance(source, fx.Node):
            return None
        mask = self._mask(self.analysis.axes[source][0])
        if mask is None:
            return None
        bound = {k: self._value(v) for k, v in step.call.bind(step.rule).items()}
        return lambda: function(mask=mask.to(bound["input"]), **bound)

    def _value(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.env[self._twin(value)]
        if isinstance(value, Weight):
            return self.fetch_attr(value.name)
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._value, value))
        return value

    def _twin(self, node: fx.Node) -> fx.Node:
        """One that holds its value: a stream is the same before and after a branch that adds zero."""
        if not hasattr(self, "_twins"):
            self._twins: dict[Any, list[fx.Node]] = {}
            for new, old in self.mirror.items():
                self._twins.setdefault(old, []).append(new)
        return next(twin for twin in self._twins[node] if twin in self.env)

    def _apply(self, t: Tensor, axes: Any) -> Tensor:
        mask = self._mask(axes)
        return t if mask is None else t.masked_fill(~mask.to(t.device), 0)

    def _mask(self, axes: Any) -> Tensor | None:
        if axes not in self.masks:
            true = [with_sizes(axis, {PRIME_BATCH: self.batch}) for axis in axes] if self.batch else axes
            self.masks[axes] = self.selection.mask(true)
        return self.masks[axes]


def _map_tensors(value: Any, axes: Any, function: Callable[[Tensor, Any], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value, next(axes))
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [_map_tensors(v, axes, function) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        return {k: _map_tensors(v, axes, function) for k, v in value.items()}
    return value
