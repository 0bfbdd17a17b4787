"""A proxy set: whatever the user iterates over, as calls of the captured model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis.analysis import Analysis
from fxprune.errors import DataError, ExampleInputError, shown
from fxprune.graph.example import Example
from fxprune.graph.tensors import device_of
from fxprune.graph.values import bound_arguments

__all__ = ["Batch", "batches_of", "few_at_once", "items_of", "parts_of"]

AT_ONCE = 32  # samples of which derivatives are taken together: all that layers give is held for them

LABELS = ("labels", "label", "targets", "target")


@dataclass(frozen=True)
class Batch:
    """One batch: the captured model's arguments in order, how many samples, and labels if there are any.

    numbers: of its samples among all of the data, from 0.
    device: where the model is; arguments stay where they were given until they are asked for.
    """

    args: list[Any]
    size: int
    labels: Any = None
    numbers: tuple[int, ...] = ()
    device: torch.device | None = None

    def arguments(self) -> list[Any]:
        """Return the arguments on the model's device."""
        return [pytree.tree_map_only(Tensor, lambda t: t.to(self.device), v) for v in self.args]

    def samples(self) -> Iterator[Batch]:
        """Yield the same samples one by one."""
        for i in range(self.size):
            args = [_part(v, self.size, slice(i, i + 1)) for v in self.args]
            labels = _labels_of(self.labels, self.size, [i])
            yield replace(self, args=args, size=1, labels=labels, numbers=self.numbers[i : i + 1])

    def taken(self, rows: Sequence[int]) -> Batch:
        """Return some of the samples as a batch."""
        at = torch.tensor(rows)
        args = [_part(v, self.size, at) for v in self.args]
        labels = _labels_of(self.labels, self.size, rows)
        numbers = tuple(self.numbers[i] for i in rows)
        return replace(self, args=args, size=len(rows), labels=labels, numbers=numbers)

    def repeated(self, times: int) -> list[Any]:
        """Return the arguments with all samples `times` over: [times * size, ...]."""
        return [_repeated(v, self.size, times) for v in self.args]


def batches_of(data: Iterable[Any] | None, analysis: Analysis, criterion: str) -> list[Batch]:
    """Read every batch of `data`: inputs, `(inputs, labels)`, or a mapping of keyword arguments.

    Raises:
        DataError: there is no data, or a batch is nothing that the model takes.
    """
    if data is None:
        raise DataError(f"importance={criterion!r} needs data=, an iterable of batches of model inputs")
    found: list[Batch] = []
    samples = 0
    for i, item in enumerate(items_of(data)):
        batch = _batch(item, i, analysis)
        found.append(replace(batch, numbers=tuple(range(samples, samples + batch.size))))
        samples += batch.size
    if not samples:
        raise DataError("data= holds no batch of samples: is it a generator that was used up before?")
    return found


def few_at_once(batches: Iterable[Batch], analysis: Analysis) -> list[Batch]:
    """Cut batches of more than `AT_ONCE` samples, where the model takes any number."""
    if analysis.captured.fixed_batch:
        return [*batches]
    return [
        batch.taken(range(first, min(first + AT_ONCE, batch.size))) if batch.size > AT_ONCE else batch
        for batch in batches
        for first in range(0, batch.size, AT_ONCE)
    ]


def items_of(data: Iterable[Any]) -> Iterable[Any]:
    """Return what to iterate over for batches: a tensor is one batch.

    Raises:
        DataError: it is nothing to iterate over.
    """
    if isinstance(data, Tensor):
        return [data]
    if not isinstance(data, Iterable):
        raise DataError(
            f"data= is an iterable of batches of inputs (a DataLoader, a list of tensors), not a "
            f"{type(data).__name__}; a data set of single samples: wrap it in a DataLoader"
        )
    return data


def parts_of(item: Any, takes: Collection[str] = ()) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Take a batch apart: positional arguments of the model, keyword arguments, and labels, if it has any.

    It is inputs, `(inputs, labels)`, or a mapping of keyword arguments that may hold labels.

    Args:
        takes: names that the model has to be given: an argument even where it is called as labels are.

    Raises:
        DataError: it is a tuple of more than two.
    """
    if isinstance(item, Mapping):
        labels = next((item[k] for k in LABELS if k in item), None)
        return (), {str(k): v for k, v in item.items() if k not in LABELS or k in takes}, labels
    if isinstance(item, (tuple, list)) and len(item) > 2:
        raise DataError(
            f"a batch is a tuple of {len(item)}, {shown(item)}, where (inputs, labels) are read: give those "
            f"two, or a mapping of forward's arguments with 'labels' among its keys"
        )
    if isinstance(item, (tuple, list)) and item:
        return (item[0],), {}, item[1] if len(item) > 1 else None
    return (item,), {}, None


def _batch(item: Any, i: int, analysis: Analysis) -> Batch:
    inputs = [n for n in analysis.module.graph.nodes if n.op == "placeholder"]
    takes = {str(n.target) for n in inputs if isinstance(n.meta.get("val"), Tensor)}
    given, named, labels = parts_of(item, takes)
    example = _by_name(named, item, i, analysis) if isinstance(item, Mapping) else Example(given)
    try:
        args = bound_arguments(analysis.module, example)
    except ExampleInputError as error:
        raise DataError(
            f"batch {i} of data=: {error}; a batch is a tensor of inputs, (inputs, labels), or a mapping of "
            f"forward's arguments"
        ) from error
    tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor) and t.ndim]
    if not tensors:
        raise DataError(
            f"batch {i} of data= holds no tensor but {shown(item)}: a batch is a tensor of inputs, "
            f"(inputs, labels), or a mapping of forward's arguments (a data set of single samples: wrap it "
            f"in a DataLoader)"
        )
    _check_against_capture(tensors[0], i, analysis)
    args = [_numbers(v, n.meta.get("val"), i, str(n.target)) for v, n in zip(args, inputs, strict=True)]
    return Batch(args, tensors[0].shape[0], labels, device=device_of(analysis.module))


def _numbers(given: Any, wanted: Any, i: int, name: str) -> Any:
    """Return an argument in the precision that was captured; refuse what no calibration is right for.

    -inf is let through: masks hold it.
    """
    if isinstance(given, Tensor) and given.is_floating_point():
        odd = int((given.isnan() | (given == torch.inf)).sum())
        if odd:
            raise DataError(
                f"batch {i} of data= holds NaN or infinite values: {odd} of {given.numel()} in {name!r}; "
                f"leave out such samples"
            )
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            return given.to(wanted.dtype)
    return given


def _by_name(given: dict[str, Any], item: Mapping[Any, Any], i: int, analysis: Analysis) -> Example:
    """Read a mapping of the model's arguments; or of one tensor beside its labels, for one input.

    given: what the mapping `item` holds beside labels.
    """
    wanted = [str(n.target) for n in analysis.module.graph.nodes if n.op == "placeholder" and not n.args]
    if set(wanted) <= given.keys():
        return Example((), given)
    tensors = [v for v in given.values() if isinstance(v, Tensor)]
    if len(wanted) == 1 == len(tensors):
        return Example((tensors[0],))
    raise DataError(
        f"batch {i} of data= is a mapping with {_some(map(str, item))}; the model takes {_some(wanted)}: "
        f"give mappings with these names, or tuples such as "
        f"((batch[{_first(given)!r}], batch['label']) for batch in loader)"
    )


def _some(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no key"


def _first(given: Mapping[str, Any]) -> str:
    """Return the key that holds the inputs, as likely as not: the first tensor's."""
    return next((k for k, v in given.items() if isinstance(v, Tensor)), "image")


def _check_against_capture(given: Tensor, i: int, analysis: Analysis) -> None:
    """Refuse images of another size or kind of number than the capture takes, before an op does."""
    first = next(n for n in analysis.module.graph.nodes if n.op == "placeholder")
    wanted = first.meta.get("val")
    if not isinstance(wanted, Tensor):
        return
    fits = given.ndim == wanted.ndim
    if analysis.capture == "export":
        fits = fits and given.shape[1:] == wanted.shape[1:]
    if not fits:
        raise DataError(
            f"batch {i} of data= has inputs of shape {tuple(given.shape)}; the captured model takes "
            f"(batch, {', '.join(map(str, wanted.shape[1:]))})"
        )
    if analysis.captured.fixed_batch and given.shape[0] != wanted.shape[0]:
        raise DataError(
            f"batch {i} of data= has {given.shape[0]} samples, and the model's code fixes the batch at the "
            f"example's {wanted.shape[0]}: give batches of that size, or another example_inputs="
        )
    if given.is_floating_point() != wanted.is_floating_point():
        pixels = ": scale and normalise as for inference" if wanted.is_floating_point() else ""
        raise DataError(
            f"batch {i} of data= has inputs of {given.dtype}; the captured model takes {wanted.dtype}{pixels}"
        )


def _part(value: Any, size: int, at: slice | Tensor) -> Any:
    """Take rows of each tensor in a value: one with as many as there are samples has one for each."""

    def part(t: Tensor) -> Tensor:
        return t[at] if t.ndim and t.shape[0] == size else t

    return pytree.tree_map_only(Tensor, part, value)


def _labels_of(labels: Any, size: int, rows: Sequence[int]) -> Any:
    """Take the labels of some samples: rows of tensors or an array, entries of a list."""
    if isinstance(labels, np.ndarray) and labels.ndim and len(labels) == size:
        return labels[list(rows)]
    of_each = isinstance(labels, (list, tuple)) and len(labels) == size
    if of_each and not all(isinstance(v, Tensor) and v.ndim and v.shape[0] == size for v in labels):
        return [labels[i] for i in rows]
    return _part(labels, size, torch.tensor(rows))


def _repeated(value: Any, size: int, times: int) -> Any:
    def repeated(t: Tensor) -> Tensor:
        return t.repeat(times, *[1] * (t.ndim - 1)) if t.ndim and t.shape[0] == size else t

    return pytree.tree_map_only(Tensor, repeated, value)
