"""Find calls in modules' code that come to something else on pruned sizes, and how else they can be made.

Where the result follows from a width alone, not from weights (positions that code computes): at the width of
the original, taking what is kept.  Where it is a tensor's parts of one size: in parts of the sizes they have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.compiler.native.fingerprint import Fingerprint
from fxprune.compiler.native.graph_values import GraphValues
from fxprune.compiler.native.noting import Calls
from fxprune.graph.example import Example
from fxprune.graph.tensors import tensor_at
from fxprune.result.own_calls import WORDS, FullWidth, Made, UnevenParts
from fxprune.result.own_spelling import Place
from fxprune.result.selection import Selection
from fxprune.rules.registry import Axes

__all__ = ["CallOptions"]

CHOICES = 4  # of what is kept of one call's result, where several tensors of the graph are equal to it
_Way = TypeVar("_Way")
_Kept = tuple[tuple[int, tuple[int, ...]], ...]  # ((dimension, kept positions), ...) of one tensor


class CallOptions:
    """What the calls in a model's code are given and return, in terms of a plan."""

    def __init__(self, model: nn.Module, analysis: Analysis, selection: Selection, example: Example) -> None:
        self.selection = selection
        self.captured = analysis.original.module
        self.axes = {node.name: own[0] for node, own in analysis.axes.items() if len(own) == 1}
        self.weights = {analysis.names.get(name, name) for name, _ in model.named_parameters()}
        self.values = GraphValues(self.captured, example)
        self.learned: dict[fx.Node, bool] = {}

    def options(
        self, calls: Calls, others: Sequence[Calls], may_be: Callable[[str, int], bool]
    ) -> Mapping[str, dict[Place, list[Made]]]:
        """List, for each module and place in its code, the ways in which a call there can be made.

        others: of the same code on other examples.
        may_be: may a number of a module have become another one?
        """
        found: dict[str, dict[Place, list[Made]]] = defaultdict(dict)
        for (path, place), all_of in calls.items():
            given = [leaves for run in (calls, *others) for leaves, _ in run.get((path, place), ())]
            numbers = _constant(path, given, may_be)
            wide = _shared([self._ways(given, result) for given, result in all_of])
            uneven = _shared([self._uneven(result) for _, result in all_of])
            for ways in ([FullWidth(w, numbers, kept) for w, kept in wide], uneven):
                if ways:
                    word = WORDS[type(ways[0])]
                    found[path][replace(place, call=word)] = [*ways[:CHOICES]]
        return found

    def _uneven(self, result: Sequence[Any]) -> list[UnevenParts]:
        """List the sizes that parts of one size have become, where those are several."""
        parts = [leaf for leaf in result if isinstance(leaf, Fingerprint)]
        if len(parts) < 2 or len(parts) < len(result) or len({leaf.shape for leaf in parts}) > 1:
            return []
        known = [
            next((self.axes[n.name] for n in self.values.alike(p) if n.name in self.axes), ()) for p in parts
        ]
        sizes = [tuple(map(self.selection.size, axes)) for axes in known]
        if len({*map(len, sizes)}) != 1:
            return []
        return [
            UnevenParts(dim, column)
            for dim, column in enumerate(zip(*sizes, strict=True))
            if len({*column}) > 1
        ]

    def _ways(self, given: Sequence[Any], result: Sequence[Any]) -> list[tuple[Any, Any]]:
        # Each is (`widths`, `kept`) of a `FullWidth`.
        kept: dict[int, list[_Kept]] = {}
        for place, leaf in enumerate(result):
            if isinstance(leaf, Fingerprint) and leaf.shape:
                ways = self._kept(leaf)
                if ways is None:
                    return []
                kept[place] = ways
        if not any(way for ways in kept.values() for way in ways):
            return []
        widths = tuple(
            (place, len(leaf.shape), sizes)
            for place, leaf in enumerate(given)
            if isinstance(leaf, Fingerprint) and (sizes := self._widths(leaf))
        )
        most = max(map(len, kept.values()))
        chosen = [{p: ways[min(i, len(ways) - 1)] for p, ways in kept.items()} for i in range(most)]
        return [
            (widths, tuple((p, way) for p, way in one.items() if way)) for one in chosen if any(one.values())
        ]

    def _kept(self, leaf: Fingerprint) -> list[_Kept] | None:
        """List what may be kept of a tensor; None if it depends on weights, or the graph does not have it."""
        # One of several that are equal is enough: a cast to the type of another tensor reads that one too.
        nodes = [n for n in self.values.alike(leaf) if n.name in self.axes and not self._is_learned(n)]
        return [*dict.fromkeys(self._positions(self.axes[n.name]) for n in nodes)] or None

    def _positions(self, axes: Axes) -> _Kept:
        found = [(d, self.selection.positions(axis)) for d, axis in enumerate(axes)]
        return tuple((d, tuple(map(int, kept))) for d, kept in found if kept is not None)

    def _widths(self, leaf: Fingerprint) -> tuple[tuple[int, int], ...]:
        for node in self.values.alike(leaf):
            axes = self.axes.get(node.name, ())
            sizes = tuple((d, axis.size) for d, axis in enumerate(axes) if self.selection.shrinks(axis))
            if sizes:
                return sizes
        return ()

    def _is_learned(self, node: fx.Node) -> bool:
        """Does a tensor depend on weights, other than by their sizes?"""
        if node not in self.learned:
            self.learned[node] = False
            front = [node]
            seen = {node}
            while front:
                at = front.pop()
                if self._holds_weights(at):
                    self.learned[node] = True
                    break
                more = {n for n in at.all_input_nodes if n in self.values.tensors} - seen
                front += more
                seen |= more
        return self.learned[node]

    def _holds_weights(self, node: fx.Node) -> bool:
        target = str(node.target)
        if node.op == "call_module":
            return any(True for _ in self.captured.get_submodule(target).parameters())
        return node.op == "get_attr" and (
            target in self.weights or isinstance(tensor_at(self.captured, target), nn.Parameter)
        )


def _shared(ways: Sequence[list[_Way]]) -> list[_Way]:
    """List what all calls have in common."""
    return [way for way in ways[0] if all(way in known for known in ways)]


def _constant(
    path: str, given: Sequence[Sequence[Any]], may_be: Callable[[str, int], bool]
) -> tuple[tuple[int, int], ...]:
    """List the whole numbers among arguments that are the same in all calls and may be widths."""
    if len({len(leaves) for leaves in given}) != 1:
        return ()
    columns = [
        {*column} if all(type(v) is int for v in column) else set() for column in zip(*given, strict=True)
    ]
    return tuple(
        (place, value)
        for place, values in enumerate(columns)
        for value in values
        if len(values) == 1 and may_be(path, value)
    )
