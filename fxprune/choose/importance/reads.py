"""Run the captured model; keep what every reader of a group reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.along import vectors_of
from fxprune.choose.importance.soft_masks import SoftMasked

__all__ = ["Key", "Reads"]

Key = tuple[fx.Node, Group]  # a reader: a node and the group that it reads


class Reads(SoftMasked):
    """`read` holds what every reader read of the last batch, as vectors along its group."""

    def __init__(self, analysis: Analysis, groups: Sequence[Group]) -> None:
        super().__init__(analysis, groups)
        self.masks = {}
        self.read: dict[Key, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        for use in self.uses.get(n, ()):
            self.read[n, use.group] = vectors_of(use, self.env[use.operand], self.size)
        return super().run_node(n)
