"""Find the tables that a model's code may compute anew: what modules without weights hold of a width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis
from fxprune.graph.tensors import is_inside
from fxprune.result.own_code import Keys, OwnCode, Table
from fxprune.result.own_tables import tables_kept
from fxprune.result.selection import Selection

__all__ = ["holders_of_tables", "with_tables"]


def holders_of_tables(model: nn.Module, pruned: nn.Module) -> Iterator[str]:
    """List the modules that hold no weights, but buffers that are smaller in a pruned model.

    Their numbers say how such a table is computed: as long as `forward` asks for none, they stay as they are.
    """
    new = {name: t.shape for name, t in pruned.named_buffers()}
    for path, module in model.named_modules():
        own = {f"{path}.{name}".lstrip("."): t.shape for name, t in module._buffers.items() if t is not None}
        smaller = any(new.get(name, shape) != shape for name, shape in own.items())
        if smaller and not any(True for _ in module.parameters()):
            yield path


def with_tables(
    model: nn.Module, made: nn.Module, analysis: Analysis, selection: Selection, own: OwnCode
) -> OwnCode:
    """Let modules whose code computes tables anew keep the plan's channels of them; record which."""
    opened = own.forward.opened if own.forward else ()
    tables = tuple(
        Table(path, name, dim, axis.size, tuple(map(int, kept)), _numbers(path, own))
        for path in holders_of_tables(model, made)
        if not is_inside(path, [part.path for part in own.parts]) and path not in opened
        for name, t in model.get_submodule(path)._buffers.items()
        if isinstance(t, Tensor)
        for dim, axis in enumerate(analysis.weights.get(_in_graph(analysis, f"{path}.{name}"), ()))
        if (kept := selection.positions(axis)) is not None
    )
    tables_kept(made, tables)
    return replace(own, tables=tables)


def _in_graph(analysis: Analysis, name: str) -> str:
    name = name.lstrip(".")
    return analysis.names.get(name, name)


def _numbers(path: str, own: OwnCode) -> tuple[tuple[Keys, int], ...]:
    own_sizes = [edit for edit in own.edits if edit.slot.path == path]
    return tuple((edit.slot.keys, edit.old) for edit in own_sizes if isinstance(edit.old, int))
