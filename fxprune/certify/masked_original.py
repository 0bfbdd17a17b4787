"""The masked original: the captured graph at full size and depth, with what was removed set to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.infer import Step
from fxprune.certify.choices import chooses
from fxprune.certify.float64 import Float64Interpreter, doubled
from fxprune.certify.kept_elements import alike, compacted, flipped, respelled, scattered, sliced_module
from fxprune.certify.kept_numbers import kept_number
from fxprune.certify.noise import Drawn, draws_noise, given_to, tensors_in
from fxprune.certify.relative_error import compact
from fxprune.errors import CertificateError, RuleError
from fxprune.graph.guards import guard_values
from fxprune.graph.nests import map_leaves
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis, atoms_of, with_batch
from fxprune.rules.calls import filled
from fxprune.rules.registry import Axes, Rule, map_axes

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
        analysed = {n: n for n in whole.graph.nodes} if removal is None else removal.counterparts
        # A node of a removed branch has no counterpart that was analysed.
        self.mirror = {n: analysed.get(w) for n, w in zip(self.graph.nodes, whole.graph.nodes, strict=True)}
        own = dict(zip(whole.graph.nodes, self.graph.nodes, strict=True))
        self.removed = {own[b.add]: own[b.result] for b in removal.branches} if removal else {}
        self.masks: dict[Any, Tensor | None] = {}
        self.noise: dict[str, Drawn] = {}  # by the nodes that drew or chose it

    def run_node(self, n: fx.Node) -> Any:
        node = self.mirror[n]
        if n.target is guard_values:  # of removed channels it would see zeros; the result checks its own
            return None
        if n in self.removed:
            self.env[self.removed[n]] = torch.zeros_like(self.env[self.removed[n]])
        if n in self.removed or node is None:
            return super().run_node(n)
        step = self.analysis.steps.get(node)
        statistic = self._statistic(step) if step else None
        draws = draws_noise(n)
        given = [t for i in given_to(n) for t in self._kept(self.env[i], self.mirror[i])] if draws else []
        value = statistic() if statistic else self._counted(n, node)
        if draws or chooses(n):
            self.noise[node.name] = Drawn(self._kept(value, node), given)
        if node.op in ("output", "placeholder") or node not in self.analysis.axes:
            return value
        value = _map_with(value, self.analysis.axes[node], self._apply)
        if step and step.rule and step.rule.taught and step.rule.masked is None:
            return self._as_taught(n, node, step, value)
        return value

    def _counted(self, n: fx.Node, node: fx.Node) -> Any:
        """Run a node; numbers in it that count what a statistic runs over are those of what is kept."""
        counts = self.analysis.graph.counts.get(node, ())
        live = [count for count in counts if not count.atoms.isdisjoint(self.selection.masks)]
        if not live:
            return super().run_node(n)
        given, kwargs = self.fetch_args_kwargs_from_env(n)
        args: list[Any] = [*given]
        for count in live:
            number = kept_number(count, node, self.analysis, self.selection, self._true)
            if isinstance(count.place, int):
                args[count.place] = number
            else:
                kwargs = {**kwargs, count.place: number}
        return getattr(self, n.op)(n.target, tuple(args), kwargs)

    def _kept(self, value: Any, node: fx.Node | None) -> list[Tensor]:
        """Return the kept elements of a node's tensors, copied."""
        axes = self._axes(node) if node is not None else ()
        found = list[Tensor]()
        for t, of in zip(tensors_in(value), axes, strict=False):
            true = tuple(self._true(axis) for axis in of)
            if any(map(self._chooses_by_heads_beside, true)):  # each head keeps elements of its own
                found.append(compacted(t, true, self.selection).clone())
            else:
                found.append(compact(t, [self.selection.positions(axis) for axis in true]).clone())
        return found

    def _chooses_by_heads_beside(self, axis: Axis) -> bool:
        """Do heads choose in an axis that does not hold them, but stands beside them?"""
        own = atoms_of(axis)
        return any(a in self.selection.heads and self.selection.heads[a] not in own for a in own)

    def _statistic(self, step: Step) -> Callable[[], Any] | None:
        """Return the masked form of a mean or norm, where the tensor that it is taken of shrinks."""
        source = step.source
        if step.rule is None or step.rule.masked is None or source is None:
            return None
        function, rule = step.rule.masked, step.rule
        mask = self._mask(self.analysis.axes[source][0])
        if mask is None:
            return None
        bound = {k: self._value(v) for k, v in step.bound.items()}
        like = self._value(source)
        return lambda: taken_by_user(rule, step, lambda: function(mask=mask.to(like), **bound))

    def _as_taught(self, n: fx.Node, node: fx.Node, step: Step, zeroed: Any) -> Any:
        """Return an op without a masked form on its kept elements alone, if zeros are not the same to it.

        Raises:
            CertificateError: they are not, and its rule names nothing that it reduces; or the order of the
                elements that it reduces matters.
        """
        if not any(self._mask(axes) is not None for i in node.all_input_nodes for axes in self._axes(i)):
            return zeroed
        reduced = list(map(self._true, step.flow.reduced))
        alone = self._on_kept(n, node, step, [])
        if alike(zeroed, alone):
            return zeroed
        assert step.rule is not None
        where = f"{step.rule.op} at {node.name}" + (
            f" ({node.meta['where']})" if node.meta.get("where") else ""
        )
        if not any(map(self.selection.shrinks, reduced)):
            raise CertificateError(
                f"{where}: on the kept elements the op gives something else than on all with zeros for the "
                f"removed ones.  If it takes a statistic over an axis, say so in its rule, "
                f"Flow(.., reduced=[axis]), or better give its masked form, Op(rule, masked=..)"
            )
        if not alike(alone, self._on_kept(n, node, step, reduced)):
            raise CertificateError(
                f"{where}: its rule says that it reduces an axis, and the order of the elements along that "
                f"axis matters to it: it can't shrink (Flow(.., frozen=[(axis, why)]))"
            )
        return alone

    def _on_kept(self, n: fx.Node, node: fx.Node, step: Step, reverse: list[Axis]) -> Any:
        """Return the op on the kept elements, scattered back; in reverse order along some axes."""

        def cut(t: Tensor, axes: Any) -> Tensor:
            true = tuple(map(self._true, axes))
            return flipped(compacted(t, true, self.selection), true, reverse)

        def operand(own: fx.Node) -> Any:
            mirror = self.mirror[own]
            return _map_with(self.env[own], self._axes(mirror) if mirror is not None else (), cut)

        rule = step.rule
        assert rule is not None
        args, kwargs = fx.map_arg((n.args, n.kwargs), operand)
        positional: list[Any] = list(args)
        sizes: dict[str, Any] = {}
        keywords: dict[str, Any] = dict(kwargs)
        for name, spelled in step.flow.sizes.items():
            spelled = map_axes(spelled, self._true)
            place, keyword = rule.positions[name], step.call.keyword(rule, name)
            if place < len(positional):
                positional[place] = respelled(positional[place], spelled, self.selection)
            elif keyword in keywords:
                keywords[keyword] = respelled(keywords[keyword], spelled, self.selection)
            elif keyword is not None:  # an attribute of the module
                value = getattr(self.submodules[str(n.target)], keyword)
                sizes[keyword] = respelled(value, spelled, self.selection)
        if n.op == "call_module":
            path = str(n.target)
            weights = self.analysis.weights
            module = sliced_module(
                self.submodules[path],
                lambda t, name: cut(t, weights.get(f"{path}.{name}", ())) if t.ndim else t,
                sizes,
            )
            value = module(*positional, **keywords)
        else:
            value = getattr(self, n.op)(n.target, tuple(positional), keywords)

        def back(t: Tensor, axes: Any) -> Tensor:
            true = tuple(map(self._true, axes))
            return scattered(flipped(t, true, reverse), true, self.selection)

        return _map_with(value, self._axes(node), back)

    def _axes(self, node: fx.Node) -> tuple[Axes, ...]:
        return self.analysis.axes.get(node, ())

    def _true(self, axis: Axis) -> Axis:
        """Return an axis at the true batch size."""
        return with_batch(axis, self.batch) if self.batch else axis

    def _value(self, value: Any) -> Any:
        return filled(value, lambda node: self.env[self._counterpart(node)], self.fetch_attr)

    def _counterpart(self, node: fx.Node) -> fx.Node:
        """Return a node of this graph that holds an analysed node's value.

        There may be several: a stream is the same before and after a branch that adds zero.
        """
        if not hasattr(self, "_counterparts"):
            self._counterparts: dict[Any, list[fx.Node]] = {}
            for new, old in self.mirror.items():
                self._counterparts.setdefault(old, []).append(new)
        return next(own for own in self._counterparts[node] if own in self.env)

    def _apply(self, t: Tensor, axes: Any) -> Tensor:
        mask = self._mask(axes)
        return t if mask is None else t.masked_fill(~mask.to(t.device), 0)

    def _mask(self, axes: Any) -> Tensor | None:
        if axes not in self.masks:
            self.masks[axes] = self.selection.mask([*map(self._true, axes)])
        return self.masks[axes]


def taken_by_user(rule: Rule, step: Step, run: Callable[[], Any]) -> Any:
    """Return what a masked form gives.  Raises RuleError, naming op and node, where a user's own fails."""
    try:
        return run()
    except Exception as error:
        if not rule.taught:
            raise
        raise RuleError(
            f"the masked form that you taught for {rule.op!r} fails at {step.call.node.name}: "
            f"{type(error).__name__}: {error}.  It is called with the op's arguments by the names of the "
            f"rule's signature, {', '.join(rule.positions)}, and with mask="
        ) from error


def _map_with(value: Any, axes: Iterable[Axes], function: Callable[[Tensor, Axes], Tensor]) -> Any:
    """Return a function of each tensor in a nest, with the axes of each in order."""
    each = iter(axes)
    return map_leaves(value, Tensor, lambda t: function(t, next(each)))
