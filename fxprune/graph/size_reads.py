"""What size a node reads off a tensor: `x.shape`, `x.size(1)`, `len(x)`, `x.shape[1]`, `x.numel()`."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from fxprune.graph.op_names import op_name

__all__ = ["ALL", "dim_read", "size_read"]

ALL = 1 << 20  # stands for "all dimensions" where a dimension is read


def size_read(node: fx.Node) -> tuple[fx.Node, int | None] | None:
    """Return the tensor whose size this node reads, and the dimension (None: the whole shape)."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = op_name(node.target)
    tensor = node.args[0] if node.args else None
    if not isinstance(tensor, fx.Node) or not isinstance(tensor.meta.get("val"), Tensor):
        return None
    if name == "getattr" and node.args[1] == "shape":
        return tensor, None
    if name == "len":
        return tensor, 0
    if name in ("numel", "nelement", "sym_numel"):
        return tensor, ALL
    if name in ("size", "sym_size"):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return tensor, None if dim is None else int(dim)  # type: ignore[arg-type]
    return None


def dim_read(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Return the tensor and its one dimension (from 0) whose size this node is: `x.shape[1]`."""
    read, place = size_read(node), None
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        read, place = size_read(node.args[0]), node.args[1]
        if read is not None and read[1] is not None:
            return None
    if read is None:
        return None
    dim, ndim = read[1] if place is None else place, read[0].meta["val"].ndim
    return (read[0], dim % ndim) if isinstance(dim, int) and -ndim <= dim < ndim else None
