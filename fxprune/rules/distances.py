"""Products, distances and similarities of vectors: sums over an axis that both have."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.graph.nests import leaves
from fxprune.rules import masked
from fxprune.rules.axes import ONE, Axis, Product
from fxprune.rules.contractions import conv_axes, conv_transpose_axes, matmul_axes
from fxprune.rules.elementwise import broadcast, lone
from fxprune.rules.registry import Flow, NotCovered, PerDim, Typed, at, rule

_COUNTS = "a removed element would count"


@rule("cosine_similarity")
def cosine_similarity_axes(x1: Typed, x2: Typed, dim: int = 1, eps: float = 1e-8) -> Flow:
    """... n, ... n -> ... (zeros add nothing to a product or a norm)"""
    both, same = broadcast([x1.axes, x2.axes])
    d = at(dim, len(both))
    columns = [t.axes[d - len(both) :][:1] if t.ndim >= len(both) - d else () for t in (x1, x2)]
    reasons = [(axis, _COUNTS) for axis in lone(*columns)]
    return Flow((*both[:d], *both[d + 1 :]), same, reasons, reduced=[both[d]])


@rule("linalg_vecdot")
def vecdot_axes(x: Typed, y: Typed, *, dim: int = -1) -> Flow:
    """... n, ... n -> ..."""
    return cosine_similarity_axes(x, y, dim)


@rule("pairwise_distance", masked=masked.pairwise_distance)
def pairwise_distance_axes(
    x1: Typed, x2: Typed, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Flow:
    """... n, ... n -> ... (eps is added to each difference: of kept elements)"""
    if p <= 0:
        raise NotCovered(_COUNTS)
    both, same = broadcast([x1.axes, x2.axes])
    reasons = [(axis, _COUNTS) for axis in lone(x1.axes[-1:], x2.axes[-1:])]
    return Flow((*both[:-1], ONE) if keepdim else both[:-1], same, reasons, reduced=[both[-1]])


@rule("cdist")
def cdist_axes(x1: Typed, x2: Typed, p: float = 2.0, compute_mode: object = None) -> Flow:
    """... n c, ... m c -> ... n m (removed elements are zero in both)"""
    batch, same = broadcast([x1.axes[:-2], x2.axes[:-2]])
    out = (*batch, x1.axes[-2], x2.axes[-2])
    same.append((x1.axes[-1], x2.axes[-1]))
    return Flow(out, same, reduced=[x1.axes[-1]], macs=[(*out, x1.axes[-1])])


@rule("dist")
def dist_axes(input: Typed, other: Typed, p: float = 2) -> Flow:
    """... n, ... n ->"""
    if p <= 0:
        raise NotCovered(_COUNTS)
    both, same = broadcast([input.axes, other.axes])
    return Flow((), same, [(axis, _COUNTS) for axis in lone(input.axes, other.axes)], reduced=list(both))


@rule("inner")
def inner_axes(input: Typed, other: Typed) -> Flow:
    """... n, ... n -> ... ..."""
    if 0 in (input.ndim, other.ndim):
        return Flow((*input.axes, *other.axes))
    i = input.axes[-1]
    out = (*input.axes[:-1], *other.axes[:-1])
    return Flow(out, same=[(i, other.axes[-1])], reduced=[i], macs=[(*out, i)])


@rule("kron")
def kron_axes(input: Typed, other: Typed) -> Flow:
    """a b, c d -> (a c) (b d)"""
    n = max(input.ndim, other.ndim)
    left, right = ((*[ONE] * (n - t.ndim), *t.axes) for t in (input, other))
    return Flow(tuple(Product.of(pair) for pair in zip(left, right, strict=True)))


@rule("bilinear")
def bilinear_axes(input1: Typed, input2: Typed, weight: Typed, bias: Typed | None = None) -> Flow:
    """... i, ... j, o i j, o -> ... o"""
    o, i, j = weight.axes
    same = [(input1.axes[-1], i), (input2.axes[-1], j)]
    same += zip(input1.axes[:-1], input2.axes[:-1], strict=True)
    if bias is not None:
        same.append((o, bias.axes[0]))
    out = (*input1.axes[:-1], o)
    return Flow(out, same, reduced=[i, j], macs=[(*out, i, j)])


@rule("addmv")
def addmv_axes(input: Typed, mat: Typed, vec: Typed, **scalars: object) -> Flow:
    """n, n i, i -> n"""
    return _added(input, matmul_axes(mat, vec))


@rule("addbmm")
def addbmm_axes(input: Typed, batch1: Typed, batch2: Typed, **scalars: object) -> Flow:
    """n m, b n i, b i m -> n m"""
    product = matmul_axes(batch1, batch2)
    batch, *out = product.axes
    return _added(input, Flow(tuple(out), product.same, reduced=[batch, *product.reduced], macs=product.macs))


@rule("addr")
def addr_axes(input: Typed, vec1: Typed, vec2: Typed, **scalars: object) -> Flow:
    """n m, n, m -> n m"""
    return _added(input, Flow((*vec1.axes, *vec2.axes)))


def _added(input: Typed, product: Flow) -> Flow:
    out, same = broadcast([product.axes, input.axes])
    return Flow(out, [*product.same, *same], reduced=product.reduced, macs=product.macs)


@rule("vdot", "linalg_matmul")
def product_axes(input: Typed, other: Typed) -> Flow:
    """... n i, ... i m -> ... n m"""
    return matmul_axes(input, other)


@rule("linalg_multi_dot")
def multi_dot_axes(tensors: Sequence[Typed]) -> Flow:
    """n i, i j, j m -> n m"""
    flow, *rest = Flow(tensors[0].axes), *tensors[1:]
    for tensor in rest:
        step = matmul_axes(Typed(flow.axes), tensor)
        flow = Flow(
            step.out,
            [*flow.same, *step.same],
            reduced=[*flow.reduced, *step.reduced],
            macs=[*flow.macs, *step.macs],
        )
    return flow


@rule("chain_matmul")
def chain_matmul_axes(*matrices: Typed) -> Flow:
    """n i, i j, j m -> n m"""
    return multi_dot_axes(matrices)


@rule("convolution")
def convolution_axes(
    input: Typed,
    weight: Typed,
    bias: Typed | None,
    stride: PerDim,
    padding: PerDim,
    dilation: PerDim,
    transposed: bool,
    output_padding: PerDim,
    groups: int,
    *,
    result: Typed,
) -> Flow:
    """b (g i) h w, (g o) i kh kw, (g o) -> b (g o) h' w'; or its transpose"""
    if transposed:
        return conv_transpose_axes(
            input, weight, bias, stride, padding, output_padding, groups, dilation, result=result
        )
    return conv_axes(input, weight, bias, stride, padding, dilation, groups, result=result)


@rule("embedding_bag")
def embedding_bag_axes(
    input: Typed,
    weight: Typed,
    offsets: object = None,
    max_norm: float | None = None,
    *options: object,
    result: Typed,
    **more: object,
) -> Flow:
    """b n, v c -> b c, v and n frozen"""
    if max_norm not in (None, False):  # False: by ATen's order of arguments
        raise NotCovered("it writes rows of a norm of all channels into its weight")
    vocabulary, c = weight.axes
    bags: Axis = input.axes[0] if input.ndim == 2 else result.axes[0]
    reasons = [(vocabulary, "looked up by index"), (input.axes[-1], "its places are added up")]
    others = leaves([offsets, options, more], Typed)
    reasons += [(axis, "its places are added up") for t in others for axis in t.axes]
    return Flow((bags, c), frozen=reasons)
