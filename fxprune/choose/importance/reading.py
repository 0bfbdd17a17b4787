"""Read a captured model's outputs as predictions, sample by sample, wherever they count samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.analysis import Analysis
from fxprune.choose.importance.predictions import (
    LogProbabilities,
    Prediction,
    floats_read,
    prediction_of,
    predictions_of,
)
from fxprune.errors import DataError
from fxprune.graph.nests import leaves
from fxprune.rules.axes import Axis, atoms_of, coordinates, with_batch
from fxprune.rules.registry import Axes

__all__ = ["Reading", "reading_of"]

Select = Callable[[Tensor, Axes], Tensor]


@dataclass(frozen=True)
class Reading:
    """How the outputs of a captured model, and of what was made of it, are read as predictions.

    By `log_probabilities`, where it is given.  Else outputs that count samples along one dimension are read
    along that; those that don't (anchors, a mean over the batch, a matrix of all samples by all) say nothing
    of any one sample, and are left out.

    axes: of each output that is read; None where samples come first, as far as can be known.
    """

    log_probabilities: LogProbabilities | None = None
    axes: Sequence[Axes] | None = None

    def __call__(self, output: Any, size: int, select: Select | None = None) -> Prediction:
        """Return the predictions for `size` samples.

        select: takes of an output, by its axes, what another model's outputs have.
        """
        if self.log_probabilities is not None or self.axes is None:
            return predictions_of(output, size, self.log_probabilities)
        found = []
        for t, axes in zip(floats_read(output), self.axes, strict=True):
            if (dim := _samples_in(axes)) is not None:
                t = t if select is None else select(t, axes)
                found.append(_samples_first(t, dim, axes[dim], size))
        return prediction_of(found, size)


def reading_of(analysis: Analysis, log_probabilities: LogProbabilities | None = None) -> Reading:
    """Find out where a model's outputs count samples.

    Raises:
        DataError: none does.
    """
    if log_probabilities is not None:
        return Reading(log_probabilities)
    outputs = next(n for n in analysis.module.graph.nodes if n.op == "output")
    known: dict[int, Axes] = {}
    for node, axes in analysis.axes.items():
        known.update(zip(map(id, leaves(node.meta.get("val"), Tensor)), axes, strict=False))
    read = floats_read(outputs.meta["val"])
    axes_read = [known.get(id(t), ()) for t in read]
    if any(_samples_in(axes) is not None for axes in axes_read):
        return Reading(axes=axes_read)
    if analysis.captured.fixed_batch and read:
        return Reading()
    shapes = ", ".join(str([a if isinstance(a, str) else a.size for a in _named(x)]) for x in axes_read)
    raise DataError(
        f"the model's outputs tell no sample of a batch from another ({shapes or 'no real numbers'}), and "
        f"what goes is judged by what becomes of each: give log_probabilities= in importance_options, a "
        f"function from the output to log-probabilities [batch, ..., classes], or choose "
        f"importance='magnitude' with refit=False"
    )


def _named(axes: Axes) -> list[str | Axis]:
    return ["batch" if any(a.per_sample for a in atoms_of(axis)) else axis for axis in axes]


def _samples_in(axes: Axes) -> int | None:
    """Return the dimension along which samples are counted; None if there is none, or more than one."""
    dims = [d for d, axis in enumerate(axes) if any(a.per_sample for a in atoms_of(axis))]
    return dims[0] if len(dims) == 1 and _samples_along(axes[dims[0]], 2) is not None else None


def _samples_along(axis: Axis, size: int) -> np.ndarray | None:
    """Return the sample of each position along an axis; None where it is not one, or not known."""
    along = [at for a, at in coordinates(with_batch(axis, size)).items() if a.is_batch]
    if not along or not np.all(sum((at >= 0).astype(int) for at in along) == 1):
        return None
    found: np.ndarray = np.max(along, axis=0)
    return found


def _samples_first(t: Tensor, dim: int, axis: Axis, size: int) -> Tensor:
    """Lay an output out with its samples first, [size, ...], what each has in order."""
    t = t.movedim(dim, 0)
    samples = np.zeros(len(t), dtype=int) if size == 1 else _samples_along(axis, size)
    if samples is None or len(samples) != len(t):
        raise DataError(f"an output has {len(t)} places along its samples, of which there are {size}")
    if np.any(np.diff(samples) < 0):
        t = t[torch.from_numpy(np.argsort(samples, kind="stable")).to(t.device)]
    several = (-1, 1) if t.ndim == 1 else (-1, *t.shape[1:])  # (of a vector for all samples: no class scores)
    return t if len(t) == size else t.reshape(size, *several)
