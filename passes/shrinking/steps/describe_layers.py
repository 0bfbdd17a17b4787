"""Keep `in_features`, `num_features` and their like in step with the weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.result.selection import Selection
from fxprune.rules.axes import Axis
from fxprune.rules.modules import native

__all__ = ["describe_layers"]


def describe_layers(draft: Draft) -> None:
    """Write into each layer's attributes the widths that its weights have now.

    Needs: weights and `groups` are what they will be.  Guarantees: a layer's attributes are those of a layer
    built at its size.
    """
    for node, new in draft.new_of.items():
        if node.op == "call_module" and node in draft.analysis.steps:
            layer = draft.root.get_submodule(str(new.target))
            _count_channels(layer, draft.analysis.axes[node], draft.selection)
    for layer in draft.root.modules():
        entry = native(layer)
        for attribute, width in (entry.widths if entry else {}).items():
            if (size := width.read(layer)) is not None:
                setattr(layer, attribute, size)


def _count_channels(layer: nn.Module, axes: Sequence[tuple[Axis, ...]], selection: Selection) -> None:
    """Tell a norm without weights how wide it is: torch warns where `num_features` is not what comes in."""
    entry = native(layer)
    names = [name for name in (entry.widths if entry else ()) if name in ("num_features", "num_channels")]
    positions = selection.positions(axes[0][1]) if names and axes and len(axes[0]) > 1 else None
    if positions is not None:
        setattr(layer, names[0], len(positions))
