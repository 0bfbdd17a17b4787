"""Find the tables that a model's code may compute anew: what modules without weights hold of a width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis
from fxprune.graph.code_names import assigned_in, names_of, plain_functions
from fxprune.graph.tensors import is_inside
from fxprune.result.own_code import Keys, OwnCode, Table
from fxprune.result.own_tables import TABLES, tables_kept
from fxprune.result.selection import Selection

__all__ = ["holders_of_tables", "with_numbers", "with_tables"]


def holders_of_tables(model: nn.Module, pruned: nn.Module) -> Iterator[str]:
    """List the modules that hold no weights, but buffers that are smaller in a pruned model.

    Their numbers say how such a table is computed: as long as `forward` asks for none, they stay as they are.
    """
    return (p for p, m, _ in _with_tables(model, pruned) if not any(True for _ in m.parameters()))


def _tables(model: nn.Module, pruned: nn.Module) -> Iterator[tuple[str, str]]:
    """List the tables, as (path, name): what such modules hold, and what others hold and assign anew."""
    for path, module, smaller in _with_tables(model, pruned):
        every = not any(True for _ in module.parameters())
        assigned = frozenset[str]() if every else _assigned(type(module))
        for name, t in module._buffers.items():
            if isinstance(t, Tensor) and (every or (name in smaller and name in assigned)):
                yield path, name


def _with_tables(model: nn.Module, pruned: nn.Module) -> Iterator[tuple[str, nn.Module, set[str]]]:
    """List the modules that have buffers which are smaller in a pruned model, and the names of those."""
    new = {name: t.shape for name, t in pruned.named_buffers()}
    for path, module in model.named_modules():
        own = {name: t.shape for name, t in module._buffers.items() if t is not None}
        names = {n for n, shape in own.items() if new.get(f"{path}.{n}".lstrip("."), shape) != shape}
        if names:
            yield path, module, names


def _assigned(cls: type[nn.Module]) -> frozenset[str]:
    """Return the attributes that the methods of a user's class assign, those that build it aside."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            members = [member for name, member in vars(base).items() if name != "__init__"]
            for function in (function for member in members for function in plain_functions(member)):
                found |= assigned_in(function)
                if "register_buffer" in names_of(function.__code__):
                    found |= {word for word in function.__code__.co_consts if isinstance(word, str)}
    return frozenset(found)


def with_tables(
    model: nn.Module, made: nn.Module, analysis: Analysis, selection: Selection, own: OwnCode
) -> OwnCode:
    """Let modules whose code computes tables anew keep the plan's channels of them; record which."""
    opened = own.forward.opened if own.forward else ()
    tables = tuple(
        Table(path, name, dim, axis.size, tuple(map(int, kept)), _numbers(path, own))
        for path, name in _tables(model, made)
        if not is_inside(path, [part.path for part in own.parts]) and path not in opened
        for dim, axis in enumerate(analysis.weights.get(_in_graph(analysis, f"{path}.{name}"), ()))
        if (kept := selection.positions(axis)) is not None
    )
    tables_kept(made, tables)
    return replace(own, tables=tables)


def with_numbers(made: nn.Module, own: OwnCode) -> OwnCode:
    """Let tables know the numbers of their modules that were edited after `with_tables`."""
    now = {table: replace(table, numbers=_numbers(table.path, own)) for table in own.tables}
    for table in now:
        held = vars(made.get_submodule(table.path))
        held[TABLES] = tuple(now.get(t, t) for t in held[TABLES])
    return replace(own, tables=tuple(now.values()))


def _in_graph(analysis: Analysis, name: str) -> str:
    name = name.lstrip(".")
    return analysis.names.get(name, name)


def _numbers(path: str, own: OwnCode) -> tuple[tuple[Keys, int], ...]:
    own_sizes = [edit for edit in own.edits if edit.slot.path == path]
    return tuple((edit.slot.keys, edit.old) for edit in own_sizes if isinstance(edit.old, int))
