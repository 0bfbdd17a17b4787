"""Flag what follows the batch where no rule passed the batch's own axis on: `zeros(b * n)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, fx

from fxprune.graph.captured import Captured
from fxprune.graph.example import PRIME_BATCH
from fxprune.graph.nests import leaves
from fxprune.graph.values import FakeRun, NodeError
from fxprune.rules.axes import Axis, Reason, atoms_of, batch

if TYPE_CHECKING:
    from fxprune.analysis.infer import Inference

__all__ = ["flag_batch"]

ANOTHER_BATCH = PRIME_BATCH + 2  # a prime as well


def flag_batch(captured: Captured, found: Inference) -> None:
    """Bind to the batch the atoms whose size is a multiple of the stand-in's, and differs in another batch.

    A vocabulary of 10007 words has the stand-in's size, and is no batch: only a second run tells.  It is
    made where some size leaves it open.
    """
    samples = captured.stand_in_batch
    if samples is None or captured.example.batch is None:
        return
    module, other = captured.module, None
    for node in module.graph.nodes:
        for i, axes in enumerate(found.axes_of(node)):
            for dim, axis in enumerate(axes):
                if not _is_open(axis, samples):
                    continue
                other = other or FakeRun(
                    captured.module, captured.module.graph, captured.example, ANOTHER_BATCH
                )
                if _size(other, node, i, dim) != axis.size:
                    _flag(found.solver.resolve(axis), samples, found)


def _is_open(axis: Axis, samples: int) -> bool:
    if axis.size == 0 or axis.size % samples:
        return False
    return not any(a.per_sample for a in atoms_of(axis))


def _size(run: FakeRun, node: fx.Node, i: int, dim: int) -> int | None:
    """Return the size of a dimension of the i-th tensor that a node gives; None, no size, if it fails."""
    try:
        value = run.value(node)
    except NodeError:
        return None
    return list(leaves(value, Tensor))[i].shape[dim]


def _flag(axis: Axis, samples: int, found: Inference) -> None:
    """Mark the first atom of the axis whose size is a multiple of the batch's as the batch."""
    first = next((a for a in atoms_of(axis) if a.size % samples == 0), None)
    if first is not None and not any(a.per_sample for a in atoms_of(axis)):
        found.solver.unify(first, batch(first.size, first.size // samples), Reason("the batch", kind="batch"))
