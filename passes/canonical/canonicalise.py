"""The passes that bring every capture to one form, in order."""

from __future__ import annotations

from torch import nn

from fxprune.graph.facts import Captured
from fxprune.graph.values import propagate_values
from fxprune.passes.canonical.explicit_scale import explicit_scale
from fxprune.passes.canonical.explicit_squeeze import explicit_squeeze
from fxprune.passes.canonical.follow_input import follow_input
from fxprune.passes.canonical.lift_modules import lift_modules
from fxprune.passes.canonical.pack_varargs import pack_varargs
from fxprune.passes.canonical.remove_noise import remove_noise
from fxprune.passes.canonical.split_fused import split_fused
from fxprune.passes.canonical.stop_gradients import stop_gradients
from fxprune.passes.canonical.sums_to_means import sums_to_means

__all__ = ["canonicalise"]


def canonicalise(captured: Captured, source: nn.Module) -> Captured:
    """Make explicit what depends on a size without saying so, before anything shrinks.

    `source` is the (copied) model that the graph was captured from.  With `captured.split_qkv`,
    projections that hold queries, keys and values are cut apart, so that each may keep its own width.
    """
    module, example, batch = captured.module, captured.example, captured.stand_in_batch
    remove_noise(module)
    propagate_values(module, example, batch)
    stop_gradients(module)
    pack_varargs(module)
    if captured.split_qkv and split_fused(module):
        propagate_values(module, example, batch)
    follow_input(module)
    explicit_scale(module)
    explicit_squeeze(module, example.batch)
    sums_to_means(module)
    lift_modules(module, source)
    module.graph.lint()
    module.recompile()
    return captured
