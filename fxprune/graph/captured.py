"""What the stages hand to one another about a graph, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import fx

from fxprune.graph.example import PRIME_BATCH, Example

__all__ = ["Captured", "Way"]

Way = Literal["symbolic", "export"]


@dataclass(frozen=True)
class Captured:
    """A captured graph and how it was captured: what `capture_model` returns and `Analysis` is built on.

    module: the graph on the model's own tensors; once canonical, each node has its `meta["val"]`.
    example: the arguments that it was captured with.
    way: "symbolic" or "export".
    fixed_batch: the graph runs for the example's batch size only.
    split_qkv: projections that hold queries, keys and values are cut apart.
    notes: what the capture could not keep, in words for people.
    follows_mode: in train mode the graph computes what the model does there, what it writes aside.
    untrained: those of the notes that say what the graph lacks in train mode, which it refuses then.
    """

    module: fx.GraphModule
    example: Example
    way: Way
    fixed_batch: bool = False
    split_qkv: bool = False
    notes: tuple[str, ...] = ()
    follows_mode: bool = True
    untrained: tuple[str, ...] = ()

    @property
    def stand_in_batch(self) -> int | None:
        """The batch size that values and axes are computed for; None: the example's own."""
        return None if self.fixed_batch else PRIME_BATCH

    @property
    def samples(self) -> int | None:
        """How many samples the graph's values are of; None for inputs without a batch."""
        batch = self.example.batch
        return batch if batch is None or self.fixed_batch else PRIME_BATCH

    def on(self, module: fx.GraphModule) -> Captured:
        """Return the same facts of a graph that a pass made of this one."""
        return replace(self, module=module)
