"""Index the results of calls that make something as long as the original's axis: `arange(n)[kept]`."""

from __future__ import annotations

import itertools
import operator
from functools import partial

import torch
from torch import fx

from fxprune.passes.shrinking.steps.draft import Draft
from fxprune.rules.axes import Axis

__all__ = ["select_results"]


def select_results(draft: Draft) -> None:
    """Take the kept elements of what a call returns, where its rule says `select_result`.

    Needs: a root whose tensors are sliced.  Guarantees: the results that such calls hand on have the sizes of
    the selection; the indices are buffers of the root that are not saved.
    """
    tensors = itertools.chain(draft.root.parameters(), draft.root.buffers())
    device = next((tensor.device for tensor in tensors), None)
    for node, step in draft.analysis.steps.items():
        if step.flow.select_result:
            _select(draft, draft.new_of[node], draft.analysis.axes[node][0], device)


def _select(draft: Draft, node: fx.Node, axes: tuple[Axis, ...], device: torch.device | None) -> None:
    for dim, axis in enumerate(axes):
        positions = draft.selection.positions(axis)
        if positions is None:
            continue
        name = f"_kept_{node.name}_{dim}"
        draft.root.register_buffer(name, torch.from_numpy(positions).to(device), persistent=False)
        with node.graph.inserting_after(node):
            index = node.graph.get_attr(name)
        with node.graph.inserting_after(index):
            kept = node.graph.call_function(torch.index_select, (node, dim, index))
        node.replace_all_uses_with(kept, delete_user_cb=partial(operator.is_not, kept))
