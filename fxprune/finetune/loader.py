"""Training data as Accelerate's loader: on the device, shared among processes, in an order that repeats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fxprune.errors import DataError, shown
from fxprune.result.fingerprint import json_digest, weights_digest

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["data_digest", "length_of", "loader_of"]

TRANSFORMS = ("transform", "target_transform", "transforms")  # what torchvision and timm call them
ENDS = 64  # tensors, and rows of each
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def length_of(batches: Iterable[Any]) -> int:
    """Return how many batches there are.

    Raises:
        DataError: they are no batches, none at all, or a generator, which can be read once only.
    """
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches are read once an epoch and are given as a {type(batches).__name__}: give a DataLoader, "
            f"a list, or a class with __iter__ and __len__"
        )
    if isinstance(batches, Tensor) or not isinstance(batches, Sized):
        raise DataError(
            f"batches are given as {shown(batches)}: a schedule needs to know how many there are; give a "
            f"DataLoader, a list, or a class with __iter__ and __len__"
        )
    try:
        length = len(batches)
    except TypeError as error:  # a DataLoader of data that has no length
        raise DataError(
            f"batches can't be counted ({error}), and a schedule needs to know how many there are: give the "
            f"data a __len__"
        ) from error
    if not length:
        raise DataError("there is no batch to train on")
    return length


def loader_of(batches: Iterable[Any], accelerator: Accelerator) -> Any:
    """Return Accelerate's loader of batches.

    Of a `DataLoader`, each process gets other batches; of any other iterable, its own part of each batch.
    """
    length_of(batches)
    if isinstance(batches, DataLoader):
        return accelerator.prepare_data_loader(batches)
    from accelerate.data_loader import DataLoaderShard

    parts = _Parts(batches, accelerator.process_index, accelerator.num_processes)
    return DataLoaderShard(parts, accelerator.device, batch_size=None, collate_fn=_as_it_is)


def data_digest(batches: Iterable[Any]) -> str:
    """Digest what training data say of themselves, without reading them: what is in memory, and in words.

    Of a list, its first and its last batch; of a `DataLoader`, how it makes batches, and of its data set the
    class, the length, tensors that it holds, its transforms in words, what it calls its `identity`, and the
    same of data sets that it holds.
    """
    if not isinstance(batches, DataLoader):
        ends = [batches[0], batches[-1]] if isinstance(batches, (list, tuple)) else []
        return json_digest([type(batches).__qualname__, [_digest_of(end) for end in ends]])
    samplers = type(batches.sampler).__qualname__, type(batches.batch_sampler).__qualname__
    how = [batches.batch_size, batches.drop_last, *samplers]
    return json_digest([how, _described(batches.dataset)])


def _described(data: Any) -> list[Any]:
    """Describe a data set, and those that it is made of."""
    held = getattr(data, "__dict__", {})
    inner = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in held.items()}
    taken = held.get("indices")  # of a part of another data set
    return [
        [type(data).__qualname__, _length(data), str(held.get("identity", ""))],
        {name: _digest_of(value) for name, value in held.items() if _is_tensors(value)},
        {name: _words(held[name]) for name in TRANSFORMS if held.get(name) is not None},
        {name: [*map(_described, some)] for name, some in inner.items() if some and _are_data(some)},
        json_digest([*map(str, taken)]) if isinstance(taken, (list, tuple, range)) else "",
    ]


def _are_data(some: Sequence[Any]) -> bool:
    return all(isinstance(one, Dataset) for one in some)


def _is_tensors(value: Any) -> bool:
    some = value if isinstance(value, (list, tuple)) else [value]
    return bool(some) and all(isinstance(one, Tensor) for one in some)


def _digest_of(value: Any) -> str:
    """Digest the first and the last tensors in a value, and of long ones the first and the last rows."""
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    some = leaves if len(leaves) <= 2 * ENDS else leaves[:ENDS] + leaves[-ENDS:]
    ends: dict[str, Tensor] = {}
    for i, leaf in enumerate(some):
        long = leaf.ndim > 0 and len(leaf) > 2 * ENDS
        ends |= {f"{i} first": leaf[:ENDS], f"{i} last": leaf[-ENDS:]} if long else {str(i): leaf}
    return json_digest([len(leaves), [list(leaf.shape) for leaf in some], weights_digest(ends)])


def _length(data: Any) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _words(transform: Any) -> str:
    """Return how a transform describes itself; its class, where it doesn't."""
    own = type(transform).__repr__ is not object.__repr__
    return ADDRESS.sub("", repr(transform)) if own else type(transform).__qualname__


def _as_it_is(batch: Any) -> Any:
    return batch


class _Parts(IterableDataset[Any]):
    """One process's part of every batch."""

    def __init__(self, batches: Iterable[Any], process: int, processes: int) -> None:
        self.batches, self.process, self.processes = batches, process, processes

    def __len__(self) -> int:
        return length_of(self.batches)

    def __iter__(self) -> Iterator[Any]:
        part: Callable[[Any], Any] = self._part
        return (pytree.tree_map(part, batch) if self.processes > 1 else batch for batch in self.batches)

    def _part(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if value.shape[0] % self.processes:
            raise DataError(
                f"a batch of {value.shape[0]} can't be shared equally among {self.processes} processes"
            )
        return value.chunk(self.processes)[self.process]
