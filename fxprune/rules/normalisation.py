"""Normalisation layers: over a shrinking axis, the statistics are taken over what is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fxprune.rules import masked
from fxprune.rules.axes import ONE, PIXELS, Product, atom
from fxprune.rules.laws import dims_named, product_law
from fxprune.rules.reductions import norm_axes, summed
from fxprune.rules.registry import Dims, Flow, Typed, at, dims_of, rule


def _apart(input: Typed, dims: Iterable[int]) -> str:
    """Write the end of a law: not linear along other dimensions than these."""
    these = {at(d, input.ndim) for d in dims}
    others = (n for i, n in enumerate(dims_named(input.axes).split()) if i not in these and n != "1")
    return " / " + " ".join(others)


@rule("rms_norm", masked=masked.rms_norm)
def rms_norm_axes(
    input: Typed, normalized_shape: list[int], weight: Typed | None = None, eps: float | None = None
) -> Flow:
    """... c, c -> ... c"""
    flow = layer_norm_axes(input, normalized_shape, weight)
    return replace(flow, rotates=flow.centred, centred=())


@rule("layer_norm", masked=masked.layer_norm)
def layer_norm_axes(
    input: Typed,
    normalized_shape: list[int],
    weight: Typed | None = None,
    bias: Typed | None = None,
    eps: float | None = 1e-5,
    cudnn_enable: bool = True,
) -> Flow:
    """... c, c, c -> ... c"""
    normed = input.axes[-len(normalized_shape) :]
    same = [pair for t in (weight, bias) if t is not None for pair in zip(normed, t.axes, strict=True)]
    law = product_law([input, weight], input.axes, bias) + _apart(input, range(-len(normed), 0))
    return Flow(
        input.axes,
        same,
        sizes={"normalized_shape": normed},
        reduced=list(normed),
        linear=law,
        centred=normed,
    )


@rule("group_norm", masked=masked.group_norm)
def group_norm_axes(
    input: Typed,
    num_groups: int,
    weight: Typed | None = None,
    bias: Typed | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Flow:
    """b (g c) ..., (g c), (g c) -> b (g c) ..."""
    channels = input.axes[1]
    g, c = atom(num_groups), atom(channels.size // num_groups)
    same = [(channels, Product.of((g, c)))]
    same += [(channels, t.axes[0]) for t in (weight, bias) if t is not None]
    law, vector = dims_named(input.axes), "1" if channels == ONE else "d1"
    law += (f", {vector}" if weight is not None else "") + (f"; {vector}" if bias is not None else "")
    law += f" -> {dims_named(input.axes)}" + _apart(input, [1] if num_groups == 1 else [])
    return Flow(input.axes, same, sizes={"num_groups": g}, reduced=[c], linear=law, centred=[c])


@rule("batch_norm", masked=masked.batch_norm)
def batch_norm_axes(
    input: Typed,
    running_mean: Typed | None = None,
    running_var: Typed | None = None,
    weight: Typed | None = None,
    bias: Typed | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **more: object,
) -> Flow:
    """b c ..., c, c, c, c -> b c ..."""
    vectors = [t for t in (running_mean, running_var, weight, bias) if t is not None]
    # In eval mode it takes no statistics; in training over all but the channels (standardised weights).
    sums = [axis for d, axis in enumerate(input.axes) if training and d != 1]
    return Flow(input.axes, same=[(input.axes[1], t.axes[0]) for t in vectors], reduced=sums)


@rule("instance_norm")
def instance_norm_axes(
    input: Typed,
    running_mean: Typed | None = None,
    running_var: Typed | None = None,
    weight: Typed | None = None,
    bias: Typed | None = None,
    num_features: object = None,
    *options: object,
    **more: object,
) -> Flow:
    """b c ..., c, c, c, c -> b c ..., positions frozen; of a module also c ... -> c ..."""
    alone = isinstance(num_features, int) and not isinstance(num_features, bool)
    if alone and input.axes[1].size != num_features:  # one sample without its dimension
        vectors = [t for t in (running_mean, running_var, weight, bias) if t is not None]
        same = [(input.axes[0], t.axes[0]) for t in vectors]
        return Flow(input.axes, same=same, frozen=[(axis, PIXELS) for axis in input.axes[1:]])
    unsure = alone and input.axes[0].size == num_features  # one sample, or as many as there are channels
    flow = batch_norm_axes(input, running_mean, running_var, weight, bias)
    return replace(flow, frozen=[(axis, PIXELS) for axis in input.axes[1 if unsure else 2 :]])


@rule("aten.instance_norm")
def aten_instance_norm_axes(
    input: Typed,
    weight: Typed | None,
    bias: Typed | None,
    running_mean: Typed | None,
    running_var: Typed | None,
    *options: object,
    **more: object,
) -> Flow:
    """Bind ATen's order of arguments."""
    return instance_norm_axes(input, running_mean, running_var, weight, bias)


@rule("aten.batch_norm", masked=masked.batch_norm)
def aten_batch_norm_axes(
    input: Typed,
    weight: Typed | None,
    bias: Typed | None,
    running_mean: Typed | None,
    running_var: Typed | None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Flow:
    """Bind ATen's order of arguments."""
    return batch_norm_axes(input, running_mean, running_var, weight, bias, training)


@rule("normalize", masked=masked.normalize)
def normalize_axes(
    input: Typed, p: float = 2.0, dim: Dims = 1, eps: float = 1e-12, out: object = None
) -> Flow:
    """... -> ..., each vector along `dim` divided by its norm (zeros add nothing to it)"""
    flow = norm_axes(input, p, dim)
    dims = dims_of(dim, input.ndim)
    law = f"{dims_named(input.axes)} -> {dims_named(input.axes)}{_apart(input, dims)}" if p == 2 else ""
    grows = None if flow.grows is None else -flow.grows
    gone = summed(input, dim)
    return Flow(input.axes, frozen=flow.frozen, reduced=flow.reduced, linear=law, rotates=gone, grows=grows)
