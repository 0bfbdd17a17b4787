"""Name a model's outputs, and say which of them stay whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, fx

from fxprune.errors import OptionError, shown
from fxprune.graph.own_nodes import makes_output, object_of, output_in_order

__all__ = ["Outputs", "frozen_outputs", "named_outputs", "outputs_option"]

# "keep", "prune", or patterns of the names of those that stay whole.
Outputs = str | tuple[str, ...]


def outputs_option(outputs: str | Sequence[str]) -> Outputs:
    """Bring the option `outputs` to one form: "keep", "prune", or a tuple of patterns.

    Raises:
        OptionError: it is neither a word nor a list of words.

    Example:
        >>> outputs_option(["logits"]), outputs_option("logits"), outputs_option("keep")
        (('logits',), ('logits',), 'keep')
    """
    if outputs in ("keep", "prune"):
        return str(outputs)
    patterns = (outputs,) if isinstance(outputs, str) else outputs
    words = isinstance(patterns, (list, tuple)) and all(isinstance(p, str) and p for p in patterns)
    if not words or not patterns:
        raise OptionError(
            f"outputs={shown(outputs)}: 'keep', 'prune', or the names (or patterns) of the outputs that "
            f"stay whole, such as ['logits']"
        )
    return tuple(patterns)


def named_outputs(output: fx.Node) -> list[tuple[fx.Node, list[str]]]:
    """Name each tensor that a graph returns: for each node of the output, the names of its tensors.

    A key, a field or a place, joined by dots where outputs are nested: "logits", "features.0", "1".  A
    model that returns one tensor has one output, without a name.
    """
    return list(_nodes(output.args[0], ()))


def frozen_outputs(output: fx.Node, outputs: Outputs) -> list[tuple[fx.Node, list[bool]]]:
    """Decide for each tensor that a graph returns whether it keeps its shape, by the option `outputs`.

    Raises:
        OptionError: a pattern fits none; lists the outputs.
    """
    named = named_outputs(output)
    if isinstance(outputs, str):
        return [(node, [outputs == "keep"] * len(names)) for node, names in named]
    known = [name for _, names in named for name in names]
    unknown = [p for p in outputs if not any(_fits(name, p) for name in known)]
    if unknown:
        returned = "one tensor, which has no name" if known == [""] else ", ".join(map(repr, known))
        raise OptionError(
            f"outputs={shown(unknown[0])}: 'keep', 'prune', or names (or patterns) of outputs that stay "
            f"whole; this model returns {returned}"
        )
    return [(node, [any(_fits(name, p) for p in outputs) for name in names]) for node, names in named]


def _fits(name: str, pattern: str) -> bool:
    """Return whether a pattern names an output, or what it is a part of."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _nodes(value: object, path: tuple[str, ...]) -> Iterator[tuple[fx.Node, list[str]]]:
    if isinstance(value, fx.Node):
        if makes_output(value):
            for name, part in _made_of(value).items():
                yield from _nodes(part, (*path, name))
        else:
            yield value, [".".join((*path, *rest)) for rest in _tensors(value.meta.get("val"))]
        return
    for name, part in _parts(value).items():
        yield from _nodes(part, (*path, name))


def _made_of(node: fx.Node) -> dict[str, object]:
    """Return the arguments that an output's class is called with, by the names of its fields."""
    if node.target in (object_of, output_in_order):
        return _parts(node.args[1])
    names = getattr(node.target, "_fields", None) or [f.name for f in _fields(node.target)]
    given = node.args
    if not names and len(given) == 1 and not isinstance(given[0], fx.Node):
        return _parts(given[0])  # a dict or a list of the model's own class
    placed = {names[i] if i < len(names) else str(i): part for i, part in enumerate(given)}
    return {**placed, **node.kwargs}


def _fields(target: object) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()


def _parts(value: object) -> dict[str, object]:
    """Return what a nest holds, by key, field or place; nothing of anything else."""
    if isinstance(value, dict):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        return dict(zip(names, value, strict=True))
    return {}


def _tensors(value: object) -> Iterator[tuple[str, ...]]:
    """Yield the path of each tensor in the value of one node."""
    if isinstance(value, Tensor):
        yield ()
    for name, part in _parts(value).items():
        for rest in _tensors(part):
            yield (name, *rest)
