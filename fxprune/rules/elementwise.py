"""Ops that treat every element alike: dimensions broadcast, and what broadcasts together is one axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from fxprune.graph.nests import leaves
from fxprune.rules.axes import ONE, Axis
from fxprune.rules.laws import LAYOUT, dims_named, product_law, sum_law
from fxprune.rules.registry import DEFAULT_RULES, Axes, Flow, Typed, rule


def broadcast(tensors: Iterable[Axes]) -> tuple[Axes, list[tuple[Axis, Axis]]]:
    """... n, ... n -> ... n; dimensions of size 1 stretch and couple nothing."""
    shapes = list(tensors)
    out: list[Axis] = []
    same: list[tuple[Axis, Axis]] = []
    for i in range(1, max(map(len, shapes), default=0) + 1):
        column = [axes[-i] for axes in shapes if len(axes) >= i and axes[-i] != ONE]
        out.append(column[0] if column else ONE)
        same.extend((column[0], other) for other in column[1:])
    return tuple(reversed(out)), same


def lone(*tensors: Axes) -> list[Axis]:
    """Return the axes that another tensor stretches along: what it holds meets removed elements too."""
    n = max(map(len, tensors))
    padded = [(*[ONE] * (n - len(axes)), *axes) for axes in tensors]
    return [axis for column in zip(*padded, strict=True) if ONE in column for axis in column if axis != ONE]


def elementwise_axes(*args: object, **kwargs: object) -> Flow:
    """... n, ... n -> ... n"""
    out, same = broadcast(t.axes for t in leaves([args, kwargs], Typed))
    return Flow(out, same)


def elementwise(*ops: str) -> None:
    for op in ops:
        DEFAULT_RULES.add(op, elementwise_axes)


def alike_axes(*args: object, **kwargs: object) -> Flow:
    """... n, ... n -> ... n, the same numbers, or all of them times one number"""
    return replace(elementwise_axes(*args, **kwargs), linear=LAYOUT)


def alike(*ops: str) -> None:
    for op in ops:
        DEFAULT_RULES.add(op, alike_axes)


@rule("add", "sub", "rsub", "subtract")
def sum_axes(input: object, other: object, alpha: object = 1) -> Flow:
    """... n, ... n -> ... n"""
    flow = elementwise_axes(input, other)
    return replace(flow, linear=sum_law([input, other], flow.axes))


@rule("mul", "multiply")
def product_axes(input: object, other: object) -> Flow:
    """... n, ... n -> ... n"""
    flow = elementwise_axes(input, other)
    return replace(flow, linear=product_law([input, other], flow.axes))


@rule("div", "truediv", "true_divide", "divide")
def quotient_axes(input: object, other: object, rounding_mode: object = None) -> Flow:
    """... n, ... n -> ... n (along what divides: element by element)"""
    flow = elementwise_axes(input, other)
    if rounding_mode is not None or not isinstance(input, Typed):
        return flow
    apart = dims_named(other.axes, max(input.ndim, other.ndim)) if isinstance(other, Typed) else ""
    return replace(flow, linear=product_law([input, other], flow.axes) + f" / {apart}")


@rule("pow")
def power_axes(input: object, exponent: object) -> Flow:
    """... n -> ... n; a square is a product with itself"""
    flow = elementwise_axes(input, exponent)
    if isinstance(input, Typed) and isinstance(exponent, (int, float)) and exponent in (1, 2):
        return replace(flow, linear=product_law([input] * int(exponent), flow.axes))
    return flow


@rule("square")
def square_axes(input: Typed) -> Flow:
    """... n -> ... n"""
    return Flow(input.axes, linear=product_law([input, input], input.axes))


@rule("where")
def where_axes(condition: object, input: object = 0, other: object = 0) -> Flow:
    """... n, ... n, ... n -> ... n"""
    flow = elementwise_axes(condition, input, other)
    if not (isinstance(condition, Typed) and isinstance(input, Typed)):
        return flow
    ndim = len(flow.axes)
    first = f"{dims_named(condition.axes, ndim)}, {dims_named(input.axes, ndim)}"
    rest = dims_named(other.axes, ndim) if isinstance(other, Typed) else "()"
    zero = not isinstance(other, Typed) and other == 0
    return replace(flow, linear=(first if zero else f"{first}; {rest}") + " -> " + dims_named(flow.axes))


@rule("masked_fill")
def masked_fill_axes(input: Typed, mask: Typed, value: object) -> Flow:
    """... n, ... n -> ... n"""
    flow = elementwise_axes(input, mask, value)
    return replace(flow, linear=product_law([input, mask], flow.axes, value))


# Rules of ops that treat every element alike, whatever they say of freedom.
ELEMENTWISE = frozenset({elementwise_axes, alike_axes, sum_axes, product_axes, quotient_axes, power_axes})
ELEMENTWISE |= {square_axes, where_axes, masked_fill_axes}

# arithmetic and comparison
elementwise("floordiv", "floor_divide")
elementwise("remainder", "mod", "fmod", "abs", "sign", "reciprocal", "addcmul")
alike("neg", "pos", "negative", "positive")
elementwise("addcdiv", "lerp", "maximum", "minimum", "fmax", "fmin", "clamp", "clip")
elementwise("clamp_min", "clamp_max", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite")
elementwise("logical_and", "logical_or", "logical_not", "logical_xor", "and_", "or_", "invert")
elementwise("bitwise_and", "bitwise_or", "bitwise_not", "xor")
elementwise("bitwise_xor", "__and__", "__or__", "__xor__", "float_power", "copysign", "hypot", "isclose")
elementwise("greater", "greater_equal", "less", "less_equal", "not_equal", "isreal", "heaviside", "nextafter")
elementwise("gcd", "lcm", "ldexp", "bitwise_left_shift", "bitwise_right_shift", "resolve_neg")
elementwise("absolute", "sgn", "fix", "isposinf", "isneginf", "signbit")
# transcendental
elementwise("exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "sin")
elementwise("cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "erf", "erfc", "floor")
elementwise("asinh", "acosh", "atanh", "arcsin", "arccos", "arctan", "arctan2", "sinc", "erfinv", "logaddexp")
elementwise("ceil", "round", "trunc", "frac", "xlogy", "nan_to_num", "logit")
elementwise("arcsinh", "arccosh", "arctanh", "logaddexp2", "deg2rad", "rad2deg", "digamma", "lgamma", "i0")
elementwise("igamma", "igammac", "polygamma", "mvlgamma", "special_entr", "special_erfcx", "special_i0e")
elementwise("special_i1", "special_i1e", "special_log_ndtr", "special_ndtri", "special_xlog1py")
elementwise("special_zeta", "special_bessel_j0", "special_bessel_j1", "special_bessel_y0", "special_ndtr")
elementwise("special_bessel_y1")
# complex numbers
elementwise("polar", "complex", "conj", "_conj", "conj_physical", "resolve_conj", "real", "imag", "angle")
# activations
elementwise("relu", "relu6", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "sigmoid")
elementwise("tanh", "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid")
elementwise("log_sigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold", "_threshold")
alike("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
elementwise("alpha_dropout", "feature_alpha_dropout", "bernoulli", "rrelu", "poisson", "binomial", "random")
elementwise("normal_", "normal_functional", "uniform", "exponential", "cauchy", "geometric", "log_normal")
elementwise("fake_quantize_per_tensor_affine", "__lshift__", "__rshift__", "lshift", "rshift", "chalf")
# the same numbers, held otherwise
alike("contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy", "identity", "cpu", "cuda")
alike("float", "double", "half", "bfloat16", "requires_grad_", "cfloat", "cdouble")
elementwise("byte", "char", "short", "bool", "int", "long")
elementwise("randn_like", "rand_like", "randint_like")
alike("zeros_like")
elementwise("ones_like", "full_like", "empty_like", "copy", "zero", "fill")


@rule("to", "type", "_to_copy", "type_as")
def to_axes(input: Typed, *args: object, **kwargs: object) -> Flow:
    """... -> ... (another tensor argument lends only its dtype and device)"""
    given = (*args, *kwargs.values())
    rounds = any(isinstance(a, torch.dtype) and not (a.is_floating_point or a.is_complex) for a in given)
    return Flow(input.axes, linear="" if rounds else LAYOUT)


@rule("AutogradFunction")
def autograd_function_axes(*args: object, like: Typed) -> Flow:
    """..., like=... n -> ... n (`like` is the same value)"""
    return Flow(like.axes)


alike("ForwardOnly")


@rule("frexp")
def frexp_axes(input: Typed) -> Flow:
    """... -> ..., ..."""
    return Flow([input.axes, input.axes])


@rule("prelu")
def prelu_axes(input: Typed, weight: Typed) -> Flow:
    """b c ..., c -> b c ..."""
    channel = weight.axes[0]
    return Flow(input.axes, same=[] if channel == ONE else [(input.axes[1], channel)])
