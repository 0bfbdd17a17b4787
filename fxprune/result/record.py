"""What a pruned model knows of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from fxprune.analysis.typed_graph import Site
from fxprune.graph.example import Example
from fxprune.graph.nests import Value
from fxprune.result.json_types import Options, Origin
from fxprune.result.own_code import OwnCode
from fxprune.result.plan import Plan

__all__ = ["Record"]

OPTIONS = ("outputs", "split_qkv", "capture")


@dataclass(frozen=True)
class Record:
    """The record of a rewritten model: plain data, enough to make it again from its original.

    plan: what was kept.
    example: the call that it was captured with, shapes (on the meta device), and the values of
        whole numbers where they are few.
    options: how the original was analysed: `outputs`, `split_qkv`, `capture`, as of `analyze`.
    origin: what its library records of the original, see `origin_of`.
    folded: weight -> its rows that a factor was folded into, and the factor (`like=`).
    sites: group -> the dimensions of the result's weights that carry it.
    dynamic: it takes batches of any size.
    ties: second names of shared tensors -> the name that the graph uses.
    layers: a digest of each layer as the plan made it, by which `replaced_layers` sees `pruned.head = ..`.
    undecayed: parameters that the original tells optimisers to leave without weight decay.
    untrained: what the original does in train mode, and its graph does not, in words for people: it is
        refused there.
    before: the record of the model that was pruned, where that was a result itself.
    remade: what the original held then under names that its own code assigns, see `fxprune.result.remade`.
    constants: names of tensors that the original's code makes, or has as plain attributes: no cast of a
        module reaches them.
    own: how the instance of the original's class came about, where the result is one (form="module").
    """

    plan: Plan
    example: Example
    options: Options
    origin: Origin
    folded: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)
    sites: Mapping[str, list[Site]] = field(default_factory=dict)
    dynamic: bool = True
    ties: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    undecayed: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    before: Record | None = None
    own: OwnCode | None = None
    constants: tuple[str, ...] = ()
    remade: Mapping[str, Value] = field(default_factory=dict)

    @staticmethod
    def of_format_1(facts: Mapping[str, Value]) -> Record:
        """Read the dictionary that pickles of format 1 hold."""
        options = cast(Options, {name: facts[name] for name in OPTIONS})
        kept = {k: v for k, v in facts.items() if k not in OPTIONS}
        return Record(**{"folded": {}, "sites": {}, **kept}, options=options)
