"""Training data as Accelerate's loader: on the device, shared among processes, in an order that repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from fxprune.errors import DataError, shown

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["length_of", "loader_of"]


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
