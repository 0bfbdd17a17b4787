"""Prove that a program which was exported for some batch sizes computes the same for others.

Code that asks `if x.shape[0] != y.shape[0]: y = y.expand(..)` takes another branch for one sample, and yet
computes nothing else: its graph for one sample is that for several, but for operations that leave their
input as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from fxprune.capture.exported.sizes import input_values

__all__ = ["same_otherwise"]

aten = torch.ops.aten
# What leaves its input as it is where the shape stays: the first as views, the others as copies.
_VIEWS = frozenset({aten.expand, aten.view, aten.slice, aten.alias, aten.squeeze})
_COPIES = frozenset({aten.clone, aten.contiguous, aten.reshape, aten.repeat, aten._unsafe_view})
_CHECKS = frozenset({aten._assert_scalar, aten.sym_constrain_range, aten.sym_constrain_range_for_size})

Symbols = dict[sympy.Symbol, sympy.Expr]
Step = tuple[Any, ...]


def same_otherwise(several: torch.export.ExportedProgram, other: torch.export.ExportedProgram) -> bool:
    """Return whether the first program runs the operations of the second where it is given what that was.

    Needs the same arguments but for their batch size, which `other` may have as a number.
    """
    if several.call_spec.out_spec != other.call_spec.out_spec:
        return False
    sizes = _shared_sizes(several, other)
    if sizes is None:
        return False
    a, b = (_Reading(p, s) for p, s in zip((several, other), sizes, strict=True))
    return a.steps(several.graph_module) == b.steps(other.graph_module) and _all_equal(
        a.constants, b.constants
    )


def _all_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    if len(some) != len(others):
        return False
    return all(
        a is b or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
        for a, b in zip(some, others, strict=True)
    )


def _shared_sizes(
    several: torch.export.ExportedProgram, other: torch.export.ExportedProgram
) -> tuple[Symbols, Symbols] | None:
    """Return what the symbols of both programs stand for: a number that `other` has, or a name they share."""
    of_several: Symbols = {}
    of_other: Symbols = {}
    for place, (a, b) in enumerate(zip(input_values(several), input_values(other), strict=True)):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        for dim, (size, here) in enumerate(zip(a.shape, b.shape, strict=True)):
            own, meant = (sympy.Integer(s) if isinstance(s, int) else s.node.expr for s in (size, here))
            if not meant.is_number:
                name = sympy.Symbol(f"size_{place}_{dim}", integer=True, positive=True)
                meant = of_other.setdefault(meant, name)
            if (own if own.is_number else of_several.setdefault(own, meant)) != meant:
                return None
    return of_several, of_other


@dataclass(frozen=True)
class _Reading:
    """The operations of a program, read with the sizes that its symbols stand for."""

    program: torch.export.ExportedProgram
    symbols: Symbols
    constants: list[Tensor] = field(default_factory=list)  # as they come

    def steps(self, module: fx.GraphModule) -> list[Step]:
        """Return the operations in their order; what leaves its input as it is, is that input."""
        found: list[Step] = []
        said: dict[fx.Node, Step] = {}
        identities = _VIEWS if _writes(self.program.graph_module) else _VIEWS | _COPIES
        inputs = 0
        for node in _needed(module.graph):
            number = self._number(node.meta.get("val"))
            arguments = self._plain((node.args, node.kwargs), said)
            if number is not None:
                said[node] = number
                continue
            if _packet(node) in _CHECKS and arguments[1][1] == ("bool", True):
                continue
            if _packet(node) in identities and self._stays(node):
                said[node] = said[node.args[0]]  # type: ignore[index]
                continue
            target: Any = node.target
            if node.op == "placeholder":
                target, inputs = self._input(node, module, inputs), inputs + 1
            elif node.op == "get_attr":
                held = getattr(module, str(node.target))
                target = tuple(self.steps(held)) if isinstance(held, fx.GraphModule) else self._constant(held)
            said[node] = ("step", len(found))
            found.append((node.op, target, arguments))
        return found

    def _input(self, node: fx.Node, module: fx.GraphModule, place: int) -> Any:
        """Return what tells one placeholder from another: a name of the weights, else its place."""
        if module is not self.program.graph_module:
            return place
        spec = next(s for s in self.program.graph_signature.input_specs if s.arg.name == node.name)
        if spec.kind.name == "CONSTANT_TENSOR":
            return self._constant(self.program.constants[str(spec.target)])
        return spec.target or place

    def _constant(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        self.constants.append(value)
        return "constant", len(self.constants)

    def _number(self, value: Any) -> Step | None:
        """Return the kind and the value of a number, where it is made of sizes of inputs."""
        if isinstance(value, (int, float)):
            return type(value).__name__, value
        if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return None
        expression = value.node.expr
        if not expression.free_symbols <= self.symbols.keys():
            return None
        kind = value.node.pytype
        meant = expression.xreplace(self.symbols)
        return kind.__name__, meant if meant.free_symbols else kind(meant)

    def _stays(self, node: fx.Node) -> bool:
        """Return whether a result has the shape and the type of the first argument."""
        source = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not isinstance(source, Tensor) or source.dtype != value.dtype:
            return False
        before, after = ([self._number(n) for n in t.shape] for t in (source, value))
        return before == after and None not in before

    def _plain(self, value: Any, said: dict[fx.Node, Step]) -> Step:
        if isinstance(value, fx.Node):
            return said[value]
        if isinstance(value, (list, tuple)):
            return ("list", *(self._plain(v, said) for v in value))
        if isinstance(value, dict):
            return ("dict", *((key, self._plain(v, said)) for key, v in sorted(value.items())))
        if isinstance(value, slice):
            return ("slice", *(self._plain(v, said) for v in (value.start, value.stop, value.step)))
        return type(value).__name__, value


def _needed(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that an output needs, or that do something themselves."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "output") or node.is_impure() or needed & set(node.users):
            needed.add(node)
    return [n for n in graph.nodes if n in needed]


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _writes(module: fx.GraphModule) -> bool:
    """Return whether an operation writes to a tensor: then a copy of it is another tensor."""
    graphs = [m.graph for m in module.modules() if isinstance(m, fx.GraphModule)]
    schemas: Collection[Any] = [getattr(n.target, "_schema", None) for g in graphs for n in g.nodes]
    return any(schema is not None and schema.is_mutable for schema in schemas)
