"""The passes that bring every capture to one form, in order."""

from __future__ import annotations

from functools import partial

from torch import fx, nn

from fxprune.graph.captured import Captured
from fxprune.graph.uncompiled import outdate
from fxprune.graph.values import propagate_values
from fxprune.passes.canonical.counts_of_sums import counts_of_sums
from fxprune.passes.canonical.divide_sums_first import divide_sums_first
from fxprune.passes.canonical.explicit_scale import explicit_scale
from fxprune.passes.canonical.explicit_squeeze import explicit_squeeze
from fxprune.passes.canonical.follow_input import follow_input
from fxprune.passes.canonical.lift_modules import lift_modules
from fxprune.passes.canonical.pack_varargs import pack_varargs
from fxprune.passes.canonical.remove_noise import remove_noise
from fxprune.passes.canonical.sizes_of_whole import sizes_of_whole
from fxprune.passes.canonical.split_fused import split_fused
from fxprune.passes.canonical.stop_gradients import stop_gradients
from fxprune.passes.canonical.sums_to_means import sums_to_means
from fxprune.passes.check import Check, Pass, run_passes

__all__ = ["canonicalise"]


def canonicalise(captured: Captured, source: nn.Module, *, check: Check = False) -> Captured:
    """Make explicit what depends on a size without saying so, before anything shrinks.

    `source` is the (copied) model that the graph was captured from.  With `captured.split_qkv`,
    projections that hold queries, keys and values are cut apart, so that each may keep its own width.
    `check` verifies the graph after every pass, as of `run_passes`.

    Needs: a captured graph.  Guarantees: one that computes the same, with `meta["val"]` on each node.
    """
    module = run_passes(captured.module, _passes(captured, source), captured.example, check=check)
    module.graph.lint()
    outdate(module)
    return captured.on(module)


def _passes(captured: Captured, source: nn.Module) -> list[Pass]:
    """Return all passes in order; each takes a graph module, changes it and hands it on."""
    example, batch = captured.example, captured.stand_in_batch

    def values(module: fx.GraphModule) -> fx.GraphModule:
        propagate_values(module, example, batch)
        return module

    split = [Pass("split_fused", split_fused, has_values=False), Pass("propagate_values", values)]
    return [
        Pass("remove_noise", remove_noise, has_values=False),
        Pass("propagate_values", values),
        Pass("stop_gradients", stop_gradients),
        Pass("pack_varargs", pack_varargs),
        Pass("sizes_of_whole", sizes_of_whole),
        *(split if captured.split_qkv else ()),
        Pass("follow_input", follow_input),
        Pass("explicit_scale", explicit_scale),
        Pass("explicit_squeeze", partial(explicit_squeeze, batch=example.batch)),
        Pass("divide_sums_first", divide_sums_first),
        Pass("sums_to_means", sums_to_means),
        Pass("counts_of_sums", counts_of_sums),
        Pass("lift_modules", partial(lift_modules, source=source)),
    ]
