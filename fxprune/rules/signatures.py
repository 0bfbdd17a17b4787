"""PyTorch's own names for the arguments of its functions and methods, by position.

`tensor_split(x, indices=..)`, `x.swapaxes(axis0=..)`, `torch.mm(x, mat2=..)`: a rule has one name for each
argument, PyTorch several.  The place in the signature says which is meant.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection

import torch
from torch import fx

from fxprune.graph.op_names import op_name

__all__ = ["place_of"]


def place_of(node: fx.Node, keyword: str, given: Collection[str]) -> int | None:
    """Return the position of an argument that a call gives by keyword; None where it has none, or is unknown.

    `given`: all keywords of the call, which say which of an op's overloads it is.
    """
    signatures = _signatures(node.target)
    fitting = [names for names in signatures if set(given) <= names.keys()] or signatures
    return next((names[keyword] for names in fitting if names.get(keyword) is not None), None)


@functools.cache
def _signatures(target: Callable[..., object] | str) -> list[dict[str, int | None]]:
    """Return the argument names of each overload with their positions (None: by keyword only)."""
    if isinstance(target, torch._ops.OpOverload):
        return [_of_schema(target)]
    if isinstance(target, torch._ops.OpOverloadPacket):
        return [_of_schema(getattr(target, name)) for name in target.overloads()]  # type: ignore[no-untyped-call]
    function = getattr(torch.Tensor, target, None) if isinstance(target, str) else target
    try:
        signature = inspect.signature(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # written in C: its schemas say
        name = op_name(target)
        packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, name.rstrip("_"), None)
        return [] if packet is None else [_of_schema(getattr(packet, o)) for o in packet.overloads()]
    return [_of_python(signature)]


def _of_schema(overload: torch._ops.OpOverload) -> dict[str, int | None]:
    arguments = overload._schema.arguments
    names: dict[str, int | None] = {a.name: None if a.kwarg_only else i for i, a in enumerate(arguments)}
    if "self" in names:
        names["input"] = names["self"]
    return names


def _of_python(signature: inspect.Signature) -> dict[str, int | None]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: i if parameter.kind in kinds else None
        for i, (name, parameter) in enumerate(signature.parameters.items())
    }
