"""Rules are validated by execution: slicing the operands of an op must be slicing its result.

Each case is a tiny model whose operands are parameters, so that every axis may shrink.  Whatever axes
the rule says are free get random kept elements; then the sliced model must return what the full-size op
returns for zero-masked operands, at the positions that are kept.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from helpers import tensors_of
from torch import Tensor, fx, nn

import fxprune
from fxprune import DEFAULT_RULES, Flow, RuleSet
from fxprune.certify.certificate import Certificate
from fxprune.certify.comparison import Comparison
from fxprune.graph.example import Example
from fxprune.graph.tensors import in_float64
from fxprune.passes.shrinking.shrink import shrink
from fxprune.result.selection import Selection
from fxprune.rules import Typed
from fxprune.rules.axes import Atom, atoms_of
from fxprune.rules.contractions import linear_axes

aten = torch.ops.aten

Operand = Any  # a shape, or a tensor: whole numbers and truth values become buffers


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One call of one op.

    statistic: a mean or norm over a shrinking axis; the reference is the certificate's masked form.
    whole: nothing is left to shrink.
    values: False where the op returns random or uninitialised numbers: only shapes are compared.
    """

    op: str
    run: Callable[..., Any]
    operands: tuple[Operand, ...]
    statistic: bool = False
    whole: bool = False
    values: bool = True
    captures: tuple[str, ...] = ("symbolic",)
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op


@dataclass
class Cases:
    """A list that numbers the cases of one op."""

    all: list[Case] = field(default_factory=list)

    def __call__(self, op: str, run: Callable[..., Any], *operands: Operand, **flags: Any) -> None:
        count = sum(case.op == op for case in self.all)
        self.all.append(Case(op, run, operands, label=str(count) if count else "", **flags))


BOTH = ("symbolic", "export")
EXPORT = ("export",)


def signed(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int) -> Tensor:
    """Numbers within 0.1 .. 0.9: for logarithms, roots and inverse functions."""
    return 0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def indices(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(6))


def flags(*shape: int, seed: int = 7) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5


def elementwise_cases(case: Cases) -> None:
    """Every element alike: broadcasting, and every spelling of it."""
    two = ((4, 6), (4, 6))
    for name in [
        "add",
        "sub",
        "mul",
        "div",
        "true_divide",
        "floor_divide",
        "subtract",
        "multiply",
        "divide",
        "maximum",
        "minimum",
    ]:
        case(name, getattr(torch, name), *two)
    for name in ["fmax", "fmin", "remainder", "fmod", "atan2", "eq", "ne", "lt", "le", "gt", "ge", "rsub"]:
        case(name, getattr(torch, name), *two)
    for name in ["truediv", "floordiv", "mod"]:
        case(name, getattr(operator, name), *two)
    for name in ["add", "mul", "truediv", "pow"]:
        case(name, lambda a, b, name=name: getattr(operator, f"i{name}")(a * 1, b), unit(4, 6), unit(6))
    case("add", operator.add, (2, 4, 6), (6,))
    case("add", operator.add, (2, 4, 6, 5), (6, 5))
    case("truediv", operator.truediv, (2, 4, 6), (4, 1))
    case("add", operator.add, (2, 1, 6), (4, 1))
    case("add", lambda a, b: a.add(b, alpha=2), (4, 6), (1, 6), captures=BOTH)
    case("add", lambda a, b: a.clone().add_(b), (4, 6), (6,))
    case("mul", lambda a: a * 2, (4, 6))
    case("sub", lambda a: 1 - a, (4, 6), captures=BOTH)
    case("pow", torch.pow, unit(4, 6), (4, 6))
    case("pow", lambda a: 2.0**a, (4, 6))
    case("xlogy", torch.xlogy, (4, 6), unit(4, 6))
    for name in ["and_", "or_", "xor"]:
        case(name, getattr(operator, name), flags(4, 6), flags(6, seed=8))
    for name in ["bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor"]:
        case(name, getattr(torch, name), flags(4, 6), flags(4, 6, seed=8))
    for name in ["__and__", "__or__", "__xor__"]:
        case(name, getattr(aten, name).Tensor, flags(4, 6), flags(4, 6, seed=8))
    for name in ["copysign", "hypot", "isclose", "arctan2", "logaddexp", "float_power"]:
        case(name, getattr(torch, name), unit(4, 6), unit(6))
    for name in ["negative", "absolute", "sgn", "fix", "isposinf", "isneginf", "signbit", "sinc"]:
        case(name, getattr(torch, name), (4, 6))
    for name in ["greater", "greater_equal", "less", "less_equal", "not_equal", "heaviside", "nextafter"]:
        case(name, getattr(torch, name), (4, 6), (6,))
    for name in ["logaddexp2", "igamma", "igammac", "ldexp"]:
        case(name, getattr(torch, name), unit(4, 6), unit(6))
    for name in ["gcd", "lcm", "bitwise_left_shift", "bitwise_right_shift"]:
        case(
            name,
            lambda a, b, name=name: getattr(torch, name)((a * 5).int(), (b * 3).int()),
            unit(4, 6),
            unit(6),
        )
    for name in ["isreal", "deg2rad", "rad2deg", "arcsinh", "resolve_neg", "i0"]:
        case(name, getattr(torch, name), (4, 6))
    for name in ["digamma", "lgamma", "arctanh"]:
        case(name, getattr(torch, name), unit(4, 6))
    case("arccosh", torch.arccosh, unit(4, 6) + 1)
    case("polygamma", lambda a: torch.polygamma(1, a), unit(4, 6))
    for name in ["byte", "char", "short", "cfloat", "cdouble"]:
        case(name, lambda a, name=name: getattr(a * 9, name)(), unit(4, 6))
    for name in ["asinh", "atanh", "arcsin", "arccos", "arctan", "erfinv"]:
        case(name, getattr(torch, name), unit(4, 6))
    case("acosh", torch.acosh, unit(4, 6) + 1)
    for name in ["polar", "complex"]:
        case(name, getattr(torch, name), unit(4, 6), (6,))
    for name in ["conj", "conj_physical", "resolve_conj", "real", "imag", "angle"]:
        case(name, lambda a, b, name=name: getattr(torch, name)(torch.complex(a, b)), (4, 6), (4, 6))
    case("_conj", lambda a, b: aten._conj.default(torch.complex(a, b)), (4, 6), (4, 6))
    for name in ["logical_not", "bitwise_not"]:
        case(name, getattr(torch, name), flags(4, 6))
    case("invert", operator.invert, flags(4, 6))
    case("pos", operator.pos, (4, 6))
    for name in [
        "neg",
        "abs",
        "sign",
        "reciprocal",
        "isnan",
        "isinf",
        "isfinite",
        "exp",
        "expm1",
        "exp2",
        "square",
        "sin",
        "cos",
        "tan",
    ]:
        case(name, getattr(torch, name), (4, 6))
    for name in [
        "sinh",
        "cosh",
        "erf",
        "erfc",
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
        "nan_to_num",
        "positive",
    ]:
        case(name, getattr(torch, name), (4, 6))
    for name in ["log", "log1p", "log2", "log10", "sqrt", "rsqrt", "asin", "acos", "atan", "logit"]:
        case(name, getattr(torch, name), unit(4, 6))
    for name in [
        "relu",
        "relu6",
        "gelu",
        "silu",
        "mish",
        "elu",
        "celu",
        "selu",
        "leaky_relu",
        "sigmoid",
        "tanh",
        "hardtanh",
    ]:
        case(name, getattr(F, name), (4, 6))
    for name in [
        "rrelu",
        "hardswish",
        "hardsigmoid",
        "softplus",
        "softsign",
        "hardshrink",
        "softshrink",
        "tanhshrink",
    ]:
        case(name, getattr(F, name), (4, 6))
    case("gelu", lambda a: F.gelu(a, approximate="tanh"), (4, 6), captures=BOTH)
    case("relu", lambda a: a.clone().relu_(), (4, 6))
    case("log_sigmoid", F.logsigmoid, (4, 6))
    case("logsigmoid", nn.LogSigmoid(), (4, 6))
    case("threshold", lambda a: torch.threshold(a, 0.1, 2.0), (4, 6))
    case("addcmul", lambda a, b, c: torch.addcmul(a, b, c, value=2), (4, 6), (6,), (4, 1))
    case("addcdiv", torch.addcdiv, (4, 6), (6,), unit(4, 6))
    case("lerp", lambda a, b: torch.lerp(a, b, 0.3), *two)
    case("lerp", torch.lerp, (4, 6), (4, 6), (4, 6))
    case("where", torch.where, flags(4, 6), (4, 6), (6,), captures=BOTH)
    case("where", lambda a: torch.where(a > 0, a, -1.0), (4, 6))
    for name in ("clamp", "clip"):
        case(name, lambda a, name=name: getattr(torch, name)(a, -0.5, 0.5), (4, 6))
    case("clamp", lambda a: a.clamp(min=0.1), (4, 6))
    case("clamp", lambda a, b: a.clamp(max=b), (4, 6), (6,))
    case("clamp_min", lambda a: a.clamp_min(0.1), (4, 6))
    case("clamp_max", lambda a: a.clamp_max(0.1), (4, 6))
    case("clamp_min", lambda a: a.clamp_min(0.1), (2, 4, 6))
    case("masked_fill", lambda a, m: a.masked_fill(m, -3.0), (2, 4, 6), flags(4, 6), captures=BOTH)
    case("dropout", lambda a: F.dropout(a, 0.5, False), (4, 6), captures=BOTH)
    for name in ("alpha_dropout", "feature_alpha_dropout"):
        case(name, lambda a, name=name: getattr(F, name)(a, 0.5, False), (4, 6))
    for n in (1, 2, 3):
        shape = (2, 6, *[3] * n)
        case(f"dropout{n}d", lambda a, n=n: getattr(F, f"dropout{n}d")(a, 0.5, False), shape)
    case("feature_dropout", lambda a: torch.feature_dropout(a, 0.5, False), (2, 6, 3))
    case("bernoulli", torch.bernoulli, flags(4, 6).double())  # of 0 and 1: nothing is left to chance
    for name in ["contiguous", "clone", "detach_", "cpu", "requires_grad_"]:
        case(name, lambda a, name=name: getattr(a * 1, name)(), (4, 6))
    case("detach", lambda a: a.detach(), (4, 6))
    for name in ["float", "double", "half", "bfloat16", "bool", "int", "long"]:
        case(name, lambda a, name=name: getattr(a, name)(), (4, 6))
    for name in ["alias", "lift_fresh_copy"]:
        case(name, lambda a, name=name: getattr(aten, name).default(a), (4, 6))
    case("identity", StillIdentity(), (4, 6))
    case("AutogradFunction", lambda a, b: Scaled.apply(a, b), (4, 6), (6,))
    case("zeros_like", torch.zeros_like, (4, 6))
    case("ones_like", torch.ones_like, (4, 6), captures=BOTH)
    case("full_like", lambda a: torch.full_like(a, 2.0), (4, 6))
    case("empty_like", torch.empty_like, (4, 6), values=False)
    for name in ("randn_like", "rand_like"):
        case(name, getattr(torch, name), (4, 6), values=False)
    case("copy", lambda a, b: aten.copy.default(a, b), (4, 6), (6,))
    case("copy", lambda a, b: aten.copy.default(a, b), (4, 6), (4, 6))
    case("zero", lambda a: aten.zero.default(a), (4, 6))
    case("fill", lambda a: aten.fill.Scalar(a, 2.0), (4, 6))
    case("to", lambda a: a.to(torch.float32), (4, 6), captures=BOTH)
    case("to", lambda a: a.to(torch.float32), (2, 4, 6))
    case("to", lambda a, b: a.to(b), (4, 6), (3,))
    case("type", lambda a: a.type(torch.float32), (4, 6))
    case("type_as", lambda a, b: a.type_as(b), (4, 6), (3, 2))
    case("_to_copy", lambda a: aten._to_copy.default(a, dtype=torch.float32), (4, 6))
    case("prelu", F.prelu, (2, 6, 3), (6,), captures=BOTH)
    case("prelu", F.prelu, (2, 6, 3), (1,))


def deep_elementwise_cases(case: Cases) -> None:
    """Every elementwise call once more, in as many dimensions as windows of images have."""
    flat = Cases()
    elementwise_cases(flat)
    for known in flat.all:
        if all(len(shape_of(operand)) <= 2 for operand in known.operands):
            deep = [deepened(o) if shape_of(o) == (4, 6) else o for o in known.operands]
            case(known.op, known.run, *deep, values=known.values)


def shape_of(operand: Operand) -> tuple[int, ...]:
    return tuple(operand.shape) if isinstance(operand, Tensor) else operand


def deepened(operand: Operand) -> Operand:
    prefix = (5, 7, 8, 9)  # all different: two masks of one size then keep different numbers of elements
    if isinstance(operand, Tensor):
        return operand.expand(*prefix, *operand.shape).clone()
    return (*prefix, *operand)


class Scaled(torch.autograd.Function):
    """Elementwise, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a * b.sigmoid()


class StillIdentity(nn.Identity):
    """An identity by another name, which stays a module."""


def contraction_cases(case: Cases) -> None:
    """Sums over an axis that two operands share."""
    case("linear", F.linear, (3, 6), (8, 6), (8,), captures=BOTH)
    case("linear", F.linear, (2, 3, 6), (8, 6))
    case("linear", lambda x, w, b: F.linear(x, weight=w, bias=b), (6,), (8, 6), (8,))
    case("matmul", operator.matmul, (3, 6), (6, 8), captures=BOTH)
    case("matmul", torch.matmul, (2, 4, 3, 6), (2, 4, 6, 8))
    case("matmul", torch.matmul, (2, 4, 3, 6), (6, 8))
    case("matmul", torch.matmul, (4, 3, 6), (2, 1, 6, 8))
    case("matmul", torch.matmul, (2, 3, 6), (6,))
    case("matmul", torch.matmul, (6,), (2, 6, 8))
    case("matmul", lambda a, b: a @ b.transpose(-2, -1), (2, 3, 6), (2, 8, 6))
    case("bmm", torch.bmm, (4, 3, 6), (4, 6, 8), captures=BOTH)
    case("mm", torch.mm, (3, 6), (6, 8))
    case("mv", torch.mv, (3, 6), (6,))
    case("dot", torch.dot, (6,), (6,))
    case("addmm", torch.addmm, (8,), (3, 6), (6, 8), captures=BOTH)
    case("addmm", lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), (3, 8), (3, 6), (6, 8))
    case("baddbmm", torch.baddbmm, (4, 1, 8), (4, 3, 6), (4, 6, 8))
    case("tensordot", torch.tensordot, (4, 6, 5), (6, 5, 7), captures=BOTH)
    case("tensordot", lambda a, b: torch.tensordot(a, b, 1), (4, 7, 6), (6, 5, 8))
    case("tensordot", lambda a, b: torch.tensordot(a, b, dims=([1, -1], [2, 0])), (4, 6, 5), (5, 7, 6))
    case("tensordot", lambda a, b: torch.tensordot(a, b, dims=((0,), (1,))), (4, 6), (5, 4))
    case("aten.tensordot", lambda a, b: aten.tensordot.default(a, b, [1, 2], [0, 1]), (4, 6, 5), (6, 5, 7))
    for equation, *shapes in (
        ("ij,jk->ik", (3, 6), (6, 8)),
        ("ij,jk", (3, 6), (6, 8)),
        ("bhqd, bhkd -> bhqk", (2, 4, 3, 6), (2, 4, 5, 6)),
        ("...ij,...jk->...ik", (2, 4, 3, 6), (4, 6, 8)),
        ("b...c,co->b...o", (2, 3, 5, 6), (6, 8)),
        ("i,j->ij", (6,), (8,)),
        ("ii->i", (6, 6)),
        ("ii", (6, 6)),
        ("ijk->", (3, 4, 6)),
        ("ijk->kij", (3, 4, 6)),
        ("bi,oij,bj->bo", (3, 4), (8, 4, 6), (3, 6)),
        ("bi,ij->bj", (3, 1), (6, 8)),
    ):
        case("einsum", lambda *t, e=equation: torch.einsum(e, *t), *shapes)
    case("einsum", lambda a, b: torch.einsum("ij,jk->ik", [a, b]), (3, 6), (6, 8), captures=BOTH)
    case("conv1d", lambda x, w, b: F.conv1d(x, w, b, stride=2), (2, 6, 9), (8, 6, 3), (8,))
    case(
        "conv2d",
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        (2, 6, 5, 5),
        (8, 6, 3, 3),
        (8,),
        captures=BOTH,
    )
    case("conv2d", lambda x, w: F.conv2d(x, w, None, 1, "same"), (2, 6, 5, 5), (8, 6, 3, 3), captures=BOTH)
    case("conv2d", F.conv2d, (2, 6, 5, 4), (8, 6, 1, 1))
    case("conv2d", lambda x, w: F.conv2d(x, w, padding=1), (2, 6, 5, 4), (8, 6, 1, 1))
    case("conv2d", lambda x, w: F.conv2d(x, w, stride=2), (2, 6, 5, 4), (8, 6, 1, 1))
    case(
        "conv2d", lambda x, w, b: F.conv2d(x, w, b, groups=6), (2, 6, 5, 5), (6, 1, 3, 3), (6,), captures=BOTH
    )
    case("conv2d", lambda x, w, b: F.conv2d(x, w, b, groups=6), (2, 6, 5, 5), (12, 1, 3, 3), (12,))
    case(
        "conv2d",
        lambda x, w, b: F.conv2d(x, w, b, groups=3),
        (2, 12, 5, 5),
        (6, 4, 3, 3),
        (6,),
        captures=BOTH,
    )
    case("conv2d", lambda x, w: F.conv2d(x, w, None, 1, 0, 2, 2), (6, 5, 5), (8, 3, 2, 2))
    case("conv1d", lambda x, w, b: F.conv1d(x, w, b, groups=3), (2, 12, 5), (6, 4, 3), (6,))
    case("conv3d", lambda x, w, b: F.conv3d(x, w, b, groups=3), (1, 12, 3, 4, 3), (6, 4, 2, 2, 2), (6,))
    case("conv3d", lambda x, w: F.conv3d(x, w, padding=(1, 0, 1)), (5, 4, 3, 4, 3), (6, 4, 2, 2, 2))
    deform = torchvision.ops.deform_conv2d
    for groups, places in [(1, 1), (3, 1), (1, 3), (2, 4)]:
        shifts, shares = (2, 8 * places, 4, 4), (2, 4 * places, 4, 4)
        kernel = (6, 12 // groups, 2, 2)
        case(
            "torchvision.deform_conv2d",
            lambda x, o, w: deform(x, o, w),
            (2, 12, 5, 5),
            shifts,
            kernel,
            captures=BOTH,
        )
        case(
            "torchvision.deform_conv2d",
            lambda x, o, w, b, m: deform(x, o, w, b, mask=m),
            (2, 12, 5, 5),
            shifts,
            kernel,
            (6,),
            shares,
        )
    case(
        "torchvision.deform_conv2d",
        lambda x, w, o, m, b: torch.ops.torchvision.deform_conv2d.default(
            x, w, o, m, b, 1, 1, 0, 0, 1, 1, 3, 1, True
        ),
        (2, 12, 5, 5),
        (6, 4, 2, 2),
        (2, 8, 4, 4),
        (2, 4, 4, 4),
        (6,),
    )
    case("conv_transpose1d", F.conv_transpose1d, (2, 6, 5), (6, 8, 3), (8,))
    case(
        "conv_transpose2d",
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1),
        (2, 6, 4, 4),
        (6, 8, 2, 2),
        (8,),
    )
    case(
        "conv_transpose2d",
        lambda x, w, b: F.conv_transpose2d(x, w, b, groups=3),
        (2, 12, 4, 4),
        (12, 2, 2, 2),
        (6,),
    )
    case("conv_transpose3d", F.conv_transpose3d, (1, 4, 2, 3, 3), (4, 6, 2, 2, 2))
    for n in (1, 3):
        run = getattr(F, f"conv_transpose{n}d")
        kernel = (12, 2, *[2] * n)
        case(
            f"conv_transpose{n}d",
            lambda x, w, b, run=run: run(x, w, b, groups=3),
            (2, 12, *[3] * n),
            kernel,
            (6,),
        )
    case("embedding", lambda i, w: F.embedding(i, w), indices(2, 5, below=7), (7, 6))
    case("aten.embedding", lambda i, w: aten.embedding.default(w, i), indices(2, 5, below=7), (7, 6))
    case("outer", torch.outer, (4,), (6,))
    case("ger", torch.ger, (4,), (6,))
    attend = F.scaled_dot_product_attention
    heads = ((2, 4, 3, 6), (2, 4, 5, 6), (2, 4, 5, 8))
    case("scaled_dot_product_attention", attend, *heads, captures=BOTH)
    case("scaled_dot_product_attention", lambda q, k, v: attend(q, k, v, scale=0.3), *heads)
    case("scaled_dot_product_attention", lambda q, k, v: attend(q, k, v, is_causal=True), *heads)
    case(
        "scaled_dot_product_attention",
        lambda q, k, v, m: attend(q, k, v, m),
        *heads,
        (4, 3, 5),
        captures=BOTH,
    )
    case(
        "scaled_dot_product_attention", lambda q, k, v, m: attend(q, k, v, attn_mask=m), *heads, (2, 1, 1, 5)
    )
    case("scaled_dot_product_attention", attend, (3, 6), (5, 6), (5, 8))
    case(
        "scaled_dot_product_attention",
        lambda q, k, v: attend(q, k, v, enable_gqa=True),
        (2, 8, 3, 6),
        (2, 4, 5, 6),
        (2, 4, 5, 6),
    )


def assigned(index: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def run(a: Tensor, b: Tensor) -> Tensor:
        a = a.clone()
        a[index] = b
        return a

    return run


def joining_cases(case: Cases) -> None:
    """Concatenations and pieces."""
    for name in ("cat", "concat", "concatenate"):
        case(name, lambda a, b, name=name: getattr(torch, name)([a, b], 1), (4, 6), (4, 5))
    case("cat", lambda a, b: torch.cat((a, b), dim=-1), (2, 4, 6), (2, 4, 6), captures=BOTH)
    case("cat", lambda a, b: torch.cat([a, b]), (4, 6), (2, 6))
    case("cat", lambda a: torch.cat([a, a], 1), (4, 6))
    case("cat", lambda a, b, c: torch.cat([a, b, c], axis=1), (2, 1, 6), (2, 4, 6), (2, 2, 6))
    case("stack", lambda a, b: torch.stack([a, b]), (4, 6), (4, 6), captures=BOTH)
    case("stack", lambda a, b: torch.stack((a, b), dim=-1), (4, 6), (4, 6))
    case("split", lambda a: torch.split(a, 4, 1), (4, 12), captures=BOTH)
    case("split", lambda a: a.split(5, dim=-1), (4, 12))
    case("split", lambda a: a.split([3, 4, 5], 1), (4, 12), captures=BOTH)
    case("split_with_sizes", lambda a: torch.split_with_sizes(a, [3, 9], 1), (4, 12))
    case("unsafe_split", lambda a: torch.unsafe_split(a, 6, 1), (4, 12))
    case("chunk", lambda a: a.chunk(3, -1), (4, 12), captures=BOTH)
    case("chunk", lambda a: torch.chunk(a, chunks=5, dim=1), (4, 12))
    case("chunk", lambda a, b: (torch.cat([a, b], 1).chunk(2, 1), a * 2), (4, 6), (4, 6))
    case("unsafe_chunk", lambda a: torch.unsafe_chunk(a, 2, 1), (4, 12))
    case("tensor_split", lambda a: torch.tensor_split(a, 5, 1), (4, 12))
    case("tensor_split", lambda a: a.tensor_split((3, 7), dim=1), (4, 12))
    case("unbind", lambda a: a.unbind(0), (3, 4, 6), captures=BOTH)
    case("unbind", lambda a: torch.unbind(a, dim=-1), (4, 6, 2))
    case("unbind", lambda a: a.unbind(2), (2, 4, 3, 6, 5))
    case("select", lambda a: torch.select(a, 1, 2), (4, 6, 5))
    case("select", lambda a: a.select(-1, -1), (4, 6))
    case("select", lambda a, b: torch.cat([a, b], 1).select(1, 0), (2, 1, 6), (2, 4, 6), captures=BOTH)
    case("slice", lambda a: aten.slice.Tensor(a, 1, 2, 5), (4, 6))
    case("slice", lambda a: aten.slice.Tensor(a, 1, -4, 9223372036854775807), (4, 6))
    case("slice_scatter", lambda a, b: torch.slice_scatter(a, b, 1, 2, 5), (4, 6), (4, 3))
    case("slice_scatter", lambda a, b: torch.slice_scatter(a, b, 1, 0, 6, 2), (4, 6), (4, 3))
    case("select_scatter", lambda a, b: torch.select_scatter(a, b, 1, 2), (4, 6), (4,))
    case("written", assigned((slice(None), slice(2, 5))), (4, 6), (4, 3))
    case("written", assigned((Ellipsis, slice(None, 2))), (2, 4, 6), (4, 2))
    case("written", assigned((slice(None), 0)), (4, 6), (4,))
    case("written", assigned((slice(None), torch.tensor([4, 0, 1]))), (4, 6), (4, 3))
    case("written", assigned((slice(None), [4, 0, 1])), (4, 6), (4, 3))
    case("written", lambda a, i, b: assigned((slice(None), i))(a, b), (4, 6), torch.arange(3), (4, 3))
    case("written", assigned((Ellipsis, slice(2, 5))), (4, 5, 3, 4, 6), (4, 5, 3, 4, 3))
    case("narrow", lambda a: a.narrow(1, 2, 3), (4, 6), captures=BOTH)
    case("narrow", lambda a: torch.narrow(a, -1, 0, 4), (4, 6))
    for index in (
        slice(2, 4),
        (slice(None), slice(1, 4)),
        (slice(None), slice(2, None)),
        (slice(None), slice(None, -2)),
        (slice(None), slice(-2, None)),
        (Ellipsis, slice(1, 3)),
        (slice(None), slice(None, None, 2)),
        (slice(None), slice(1, None, 3)),
        (slice(None), slice(0, 5, 2)),
        (slice(None), 0),
        (slice(None), -1),
        (Ellipsis, 2),
        (None, slice(None), None),
        (slice(1, 3), Ellipsis, slice(2, 6)),
        (slice(None), [0, 2, 2]),
        2,
        Ellipsis,
        None,
    ):
        case("getitem", lambda a, i=index: a[i], (4, 6, 8))
    case("getitem", lambda a: a[:, 1:4, None, 2], (4, 6, 8), captures=BOTH)
    case("getitem", lambda a, b: torch.cat([a, b], 1)[:, 1:], (2, 1, 6), (2, 4, 6))
    case("getitem", lambda a, b: torch.cat([a, b], 1)[:, 0], (2, 1, 6), (2, 4, 6))
    case("getitem", lambda a, i: a[i], (7, 6), indices(2, 5, below=7))
    case("getitem", lambda a, i: a[:, i], (4, 7, 6), indices(5, below=7))
    case("getitem", lambda a, i, j: a[i, :, j], (4, 6, 5), indices(3, below=4), indices(3, below=5))
    case("getitem", lambda a, i, j: a[:, i, j], (4, 6, 5), indices(3, below=6), indices(2, 1, below=5))
    case("aten.index", lambda a, i: aten.index.Tensor(a, [None, i]), (4, 7, 6), indices(5, below=7))
    case("aten.index", lambda a, i: aten.index.Tensor(a, [None, i]), (4, 7, 6, 2, 3), indices(5, below=7))
    case("_unsafe_index", lambda a, i: aten._unsafe_index.Tensor(a, [i]), (7, 6), indices(5, below=7))
    case("index_select", lambda a, i: a.index_select(1, i), (4, 7), indices(5, below=7), captures=BOTH)
    case("gather", lambda a, i: a.gather(1, i), (4, 7, 6), indices(4, 7, 6, below=7), captures=BOTH)
    case("gather", lambda a, i: torch.gather(a, dim=1, index=i), (4, 7, 6), indices(4, 3, 6, below=7))
    case("gather", lambda a, i: a.gather(1, i), (4, 7, 6), indices(2, 3, 6, below=7))
    some, more = indices(4, 3, 6, below=7), (4, 3, 6)
    case("scatter", lambda a, i: a.scatter(1, i, 2.0), (4, 7, 6), some, captures=BOTH)
    case("scatter", lambda a, i: torch.scatter(a, 1, i, value=2.0), (4, 7, 6), some)
    for short in (some, indices(2, 3, 6, below=7), indices(4, 2, 5, below=7)):
        case("scatter_add", lambda a, i, b: a.scatter_add(1, i, b), (4, 7, 6), short, more, captures=BOTH)
    case("scatter_add", lambda a, i, b: torch.scatter_add(a, 2, i, b), (4, 3, 8), some, more)
    case("scatter", lambda a, i, b: a.clone().scatter_(1, i[:, :1], b), (4, 7, 6), some, more)
    case("scatter_reduce", lambda a, i, b: a.scatter_reduce(1, i, b, "amax"), (4, 7, 6), some, more)
    case(
        "scatter_reduce",
        lambda a, i, b: torch.scatter_reduce(a, 1, i, b, reduce="mean"),
        (4, 7, 6),
        some,
        more,
    )
    rows = indices(3, below=7)
    case("index_add", lambda a, i, b: a.index_add(1, i, b), (4, 7, 6), rows, more, captures=BOTH)
    case("index_add", lambda a, i, b: torch.index_add(a, -2, i, b, alpha=2), (4, 7, 6), rows, more)
    case("index_copy", lambda a, i, b: a.index_copy(1, i, b), (4, 7, 6), torch.arange(3), more)
    case("index_fill", lambda a, i: a.index_fill(1, i, 2.0), (4, 7, 6), rows, captures=BOTH)
    case(
        "index_put", lambda a, i, b: aten.index_put.default(a, [None, i], b), (4, 7, 6), torch.arange(3), more
    )
    case("index_put", lambda a, i, b: aten.index_put.default(a, [i], b, True), (7, 6), rows, (6,))
    case("roll", lambda a: torch.roll(a, (1, 2), (1, 2)), (4, 5, 6, 3), captures=BOTH)
    case("roll", lambda a: a.roll(1, dims=-1), (4, 6))
    case("roll", lambda a: a.roll(1), (4, 6), whole=True)
    case("flip", lambda a: a.flip(1), (4, 6))
    case("flip", lambda a: torch.flip(a, [0, -1]), (4, 5, 6), captures=BOTH)
    for name in ("triu", "tril"):
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 5, 5))


def reduction_cases(case: Cases) -> None:
    """Sums, statistics, extrema, and what couples the elements of an axis."""
    for name in ("sum", "nansum"):
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 6, 5))
    case("sum", lambda a: a.sum((-1, -2)), (4, 6, 5), captures=BOTH)
    case("sum", lambda a: a.sum(), (4, 6))
    case("sum", lambda a: a.sum(axis=1, keepdims=True), (4, 6))
    case("mean", lambda a: a.mean(1), (4, 6, 5), statistic=True, captures=BOTH)
    case("mean", lambda a: torch.mean(a, dim=(0, -1), keepdim=True), (4, 6, 5), statistic=True)
    case("mean", lambda a: a.mean(), (4, 6), statistic=True)
    case("nanmean", lambda a: torch.nanmean(a, 1), (4, 6, 5), statistic=True)
    for name in ("var", "std", "var_mean", "std_mean"):
        run = getattr(torch, name)
        case(name, lambda a, run=run: run(a, 1), (4, 12, 5), statistic=True, captures=BOTH)
        case(name, lambda a, run=run: run(a, -1, False, True), (4, 12), statistic=True)
        case(name, lambda a, run=run: run(a, dim=(1, 2), correction=0), (4, 6, 5), statistic=True)
    case("var", lambda a: a.var(dim=-1, unbiased=False, keepdim=True), (4, 12), statistic=True)
    case("norm", lambda a: a.norm(dim=-1, keepdim=True), (4, 6), captures=BOTH)
    case("norm", lambda a: torch.norm(a, 1, 1), (4, 6, 5))
    case("norm", lambda a: torch.norm(a, float("-inf"), 1), (4, 6, 5))
    case("norm", lambda a: a.norm(), (4, 6))
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, 3, dim=1), (4, 6, 5), captures=BOTH)
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, math.inf, (0, 1)), (4, 6, 5))
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, -math.inf, 1), (4, 6, 5))
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, dim=1, keepdim=True), (4, 6, 5))
    case("linalg_norm", lambda a: torch.linalg.norm(a, dim=-1), (4, 6))
    case("linalg_norm", lambda a: torch.linalg.norm(a, 2, dim=(0, 1)), (4, 6))
    case("linalg_norm", lambda a: torch.linalg.norm(a, -1, dim=(0, 1)), (4, 6), whole=True)
    for name in ["amax", "amin", "argmax", "argmin", "prod", "logsumexp"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 6, 5))
    for name in ["all", "any"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, 1, keepdim=True), flags(4, 3, 5))
    case("amax", lambda a: a.amax((-1, -2)), -unit(4, 6, 5))
    case("amax", lambda a: a.amax((-1, -2), keepdim=True), (4, 6, 5))
    for name in ["max", "min"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 6, 5), captures=BOTH)
        case(name, getattr(torch, name), (4, 6), (6,))
        case(name, lambda a, name=name: getattr(torch, name)(a), (4, 6), whole=True)
    case("topk", lambda a: a.topk(3), (4, 6), captures=BOTH)
    case("topk", lambda a: torch.topk(a, 2, dim=1, largest=False), (4, 6, 5))
    for name in ["softmax", "log_softmax"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, -1), (4, 6, 5), captures=BOTH)
        case(name, lambda a, name=name: getattr(F, name)(a, dim=1), (4, 6, 5))
    case("softmax", lambda a: a.softmax(-1), (2, 4, 5, 6))
    case("softmin", lambda a: F.softmin(a, 1), (4, 6, 5))
    case("_softmax", lambda a: aten._softmax.default(a, 1, False), (4, 6, 5))
    for name in ["cumsum", "cumprod", "logcumsumexp"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 6, 5))
    case("sort", lambda a: a.sort(), (4, 6), captures=BOTH)
    case("sort", lambda a: torch.sort(a, dim=1, descending=True), (4, 6, 5))
    case("argsort", lambda a: torch.argsort(a, 1), (4, 6, 5))
    case("glu", F.glu, (4, 12), captures=BOTH)
    case("glu", lambda a: F.glu(a, dim=1), (4, 12, 5))


def normalisation_cases(case: Cases) -> None:
    """Statistics over what is kept, then weights per channel."""
    case(
        "layer_norm",
        lambda a, w, b: F.layer_norm(a, (6,), w, b),
        (4, 6),
        (6,),
        (6,),
        statistic=True,
        captures=BOTH,
    )
    case("layer_norm", lambda a: F.layer_norm(a, [5, 6], eps=0.1), (4, 5, 6), statistic=True)
    case("layer_norm", lambda a, w: F.layer_norm(a, a.shape[-1:], w), (4, 6), (6,), statistic=True)
    case("rms_norm", lambda a, w: F.rms_norm(a, (6,), w), (4, 6), (6,), statistic=True)
    case("rms_norm", lambda a: F.rms_norm(a, (6,), eps=0.1), (4, 6), statistic=True)
    groups = ((2, 12, 5), (12,), (12,))
    case("group_norm", lambda a, w, b: F.group_norm(a, 3, w, b), *groups, statistic=True, captures=BOTH)
    case("group_norm", lambda a, w, b: F.group_norm(a, 1, w, b), *groups, statistic=True)
    case("group_norm", lambda a: F.group_norm(a, 4, eps=0.1), (2, 12), statistic=True)
    stats = ((2, 6, 5), (6,), unit(6), (6,), (6,))
    case("batch_norm", lambda a, m, v, w, b: F.batch_norm(a, m, v, w, b), *stats)
    case(
        "batch_norm",
        lambda a, w, b: F.batch_norm(a, None, None, w, b, True),
        (4, 6, 5),
        (6,),
        (6,),
        statistic=True,
    )
    case("batch_norm", lambda a: F.batch_norm(a, None, None, training=True), (4, 6), statistic=True)
    for shape in (stats[0], (2, 6, 5, 3)):
        case(
            "aten.batch_norm",
            lambda a, m, v, w, b: aten.batch_norm.default(a, w, b, m, v, False, 0.1, 1e-5, False),
            shape,
            *stats[1:],
        )
    case(
        "instance_norm",
        lambda a, w, b: F.instance_norm(a, weight=w, bias=b),
        (2, 6, 5),
        (6,),
        (6,),
        statistic=True,
    )
    case(
        "instance_norm",
        lambda a, m, v: F.instance_norm(a, m, v, use_input_stats=False),
        (2, 6, 5),
        (6,),
        unit(6),
    )
    case(
        "aten.instance_norm",
        lambda a, w, b: aten.instance_norm.default(a, w, b, None, None, True, 0.1, 1e-5, False),
        (2, 6, 5),
        (6,),
        (6,),
        statistic=True,
    )
    case("normalize", F.normalize, (4, 6, 5), captures=BOTH)
    case("normalize", lambda a: F.normalize(a, p=-1, dim=1), (4, 6, 5))
    case("normalize", lambda a: F.normalize(a, p=1, dim=-1), (4, 6))


def reshaping_cases(case: Cases) -> None:
    """Dimensions regrouped, elements untouched."""
    for sizes in (
        (24, 5),
        (2, 2, 6, 5),
        (4, 30),
        (4, 3, 2, 5),
        (-1,),
        (4, -1, 1),
        (2, 12, 5),
        (3, 8, 5),
        (4, 3, 2, 5, 1),
    ):
        case("reshape", lambda a, sizes=sizes: a.reshape(sizes), (4, 6, 5))
    case("reshape", lambda a: a.reshape(5, 24), (4, 6, 5), whole=True)
    case("reshape", lambda a: a.reshape(4, 2, 3, 2, 5), (4, 12, 5))
    case("reshape", lambda a: a.reshape(4, 3, -1), (4, 12), captures=BOTH)
    case("reshape", lambda a: a.reshape(a.shape[0], 3, a.shape[1] // 3), (4, 12))
    case("reshape", lambda a, b: torch.cat([a, b], 1).reshape(4, 24), (4, 2, 6), (4, 2, 6))
    case("view", lambda a: a.view(4, 3, 4), (4, 12), captures=BOTH)
    case("view", lambda a: a.view(torch.int64), (4, 6), whole=True)
    case("_unsafe_view", lambda a: aten._unsafe_view.default(a, [4, 3, 4]), (4, 12))
    case("reshape_as", lambda a, b: a.reshape_as(b), (4, 12), (4, 3, 4))
    case("reshape_as", lambda a, b: a.reshape_as(b), (5, 24), (5, 4, 6))
    case("reshape_as", lambda a, b: a.reshape_as(b), (5, 7, 24), (5, 7, 4, 6))
    case("view_as", lambda a, b: a.view_as(b), (24,), (4, 6))
    case("flatten", lambda a: a.flatten(1), (4, 6, 5), captures=BOTH)
    case("flatten", lambda a: torch.flatten(a, start_dim=-3, end_dim=-2), (2, 4, 6, 5))
    case("flatten", lambda a: a.flatten(), (4, 6))
    case("ravel", torch.ravel, (4, 6))
    case("unflatten", lambda a: torch.unflatten(a, dim=1, sizes=(-1, 4)), (3, 8))
    case("unflatten", lambda a: a.unflatten(1, (3, 4)), (4, 12), captures=BOTH)
    case("unflatten", lambda a: a.unflatten(-1, (3, -1)), (4, 12))
    case("permute", lambda a: a.permute(2, 0, 1), (4, 6, 5), captures=BOTH)
    case("permute", lambda a: a.permute(3, 0, 2, 1), (2, 4, 6, 5))
    case("permute", lambda a: torch.permute(a, (0, -1, 1)), (4, 6, 5))
    case("transpose", lambda a: a.transpose(-2, -1), (4, 6, 5), captures=BOTH)
    case("transpose", lambda a: torch.transpose(a, dim0=0, dim1=2), (4, 6, 5))
    case("transpose", lambda a: a.transpose(1, 2), (2, 4, 6, 5))
    case("swapaxes", lambda a: a.swapaxes(0, 1), (4, 6))
    case("swapdims", lambda a: a.swapdims(0, 1), (4, 6))
    case("t", torch.t, (4, 6))
    case("t", torch.t, (6,))
    case("numpy_T", lambda a: aten.numpy_T.default(a), (4, 6))
    case("adjoint", torch.adjoint, (2, 4, 6))
    case("mT", lambda a: aten.mT.default(a), (2, 4, 6))
    case("mH", lambda a: aten.mH.default(a), (2, 4, 6))
    case("getattr", lambda a: a.T, (4, 6))
    case("getattr", lambda a: a.mT + a.data.mT, (2, 4, 6))
    case("movedim", lambda a: a.movedim(1, -1), (4, 6, 5, 3), captures=BOTH)
    case("movedim", lambda a: torch.movedim(a, (0, 1), (2, 0)), (4, 6, 5, 3))
    case("moveaxis", lambda a: a.moveaxis(-1, 0), (4, 6, 5))
    case("getattr", lambda a, b: torch.complex(a, b).imag, (4, 6), (4, 6))
    case("view_as_complex", torch.view_as_complex, (4, 6, 2))
    case("view_as_complex", torch.view_as_complex, (4, 5, 7, 6, 2))
    case("view_as_real", lambda a, b: torch.view_as_real(torch.complex(a, b)), (4, 6), (6,))
    case("view_as_real", lambda a, b: torch.view_as_real(torch.complex(a, b)), (4, 5, 7, 6), (7, 6))
    case("unsqueeze", lambda a: a.unsqueeze(1), (4, 6), captures=BOTH)
    case("unsqueeze", lambda a: a.unsqueeze(-1), (4, 6))
    case("squeeze", lambda a: a.squeeze(1), (4, 1, 6), captures=BOTH)
    case("squeeze", lambda a: a.squeeze(), (4, 1, 6, 1))
    case("squeeze", lambda a: a.squeeze((-1, 0)), (4, 6, 1))
    case("expand", lambda a: a.expand(3, -1, -1), (1, 4, 6), captures=BOTH)
    case("expand", lambda a: a.expand(3, 4, 6), (4, 6))
    case("expand", lambda a: a.expand((3, 4, 6)), (4, 1))
    case("broadcast_to", lambda a: torch.broadcast_to(a, (4, 6)), (6,))
    case("expand_as", lambda a, b: a.expand_as(b), (1, 6), (4, 6), captures=BOTH)
    case("expand_as", lambda a, b: a.expand_as(b), (5, 1, 6), (5, 4, 6))
    case("repeat", lambda a: a.repeat(2, 1, 3), (4, 6), captures=BOTH)
    case("repeat", lambda a: a.repeat(2, 1, 6), (4, 1), captures=BOTH)
    case("tile", lambda a: a.tile(6), (4, 1), captures=BOTH)
    case("tile", lambda a: a.tile((2, 3)), (4, 6))
    case("tile", lambda a: a.tile((3,)), (4, 6))
    case("repeat_interleave", lambda a: a.repeat_interleave(3, dim=1), (4, 6), captures=BOTH)
    case(
        "repeat_interleave",
        lambda a: a.repeat_interleave(3, dim=1, output_size=a.shape[1] * 3),
        (4, 6),
        captures=BOTH,
    )
    case("broadcast_tensors", lambda a, b: torch.broadcast_tensors(a, b), (1, 6), (4, 6), captures=BOTH)
    case("meshgrid", lambda a, b: torch.meshgrid(a, b, indexing="ij"), (4,), (6,), captures=BOTH)
    case("meshgrid", lambda a, b: torch.meshgrid([a, b], indexing="xy"), (4,), (6,))


def deep_cases(case: Cases) -> None:
    """Tensors of five dimensions: what passes through passes through in each of them."""
    deep = (2, 4, 5, 6, 8)
    for name in ["clone", "neg", "relu", "sigmoid", "logical_not"]:
        case(name, getattr(torch, name), deep)
    for name in ["gelu", "silu", "hardswish", "mish", "elu", "softplus", "leaky_relu", "tanh"]:
        case(name, getattr(F, name), deep)
    for name in ["sqrt", "rsqrt", "log", "logit"]:
        case(name, getattr(torch, name), unit(*deep))
    for name in ["sub", "mul", "div", "maximum", "pow"]:
        case(name, getattr(torch, name), unit(*deep), deep)
    case("clamp", lambda a: a.clamp(-1, 1), deep)
    case("clamp_min", lambda a: a.clamp_min(0.1), deep)
    case("dropout", lambda a: F.dropout(a, 0.5, False), deep)
    case("prelu", F.prelu, deep, (4,))
    for name in ["mean", "nanmean", "std", "var", "std_mean", "var_mean"]:
        run = getattr(torch, name)
        case(name, lambda a, run=run: run(a, -1, keepdim=True), deep, statistic=True)
    for name in ["sum", "logsumexp", "amax", "prod"]:
        run = getattr(torch, name)
        case(name, lambda a, run=run: run(a, -1, keepdim=True), deep)
    case("norm", lambda a: a.norm(dim=-1, keepdim=True), deep)
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, dim=1, keepdim=True), deep)
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, dim=-1, keepdim=True), deep)
    case("normalize", lambda a: F.normalize(a, dim=-1), deep)
    case("softmax", lambda a: a.softmax(-1), deep)
    case("layer_norm", lambda a: F.layer_norm(a, (8,)), deep, statistic=True)
    case("rms_norm", lambda a: F.rms_norm(a, (8,)), deep, statistic=True)
    case("group_norm", lambda a: F.group_norm(a, 2), deep, statistic=True)
    case("batch_norm", lambda a, m, v: F.batch_norm(a, m, v), deep, (4,), unit(4))
    case("instance_norm", lambda a: F.instance_norm(a), deep, statistic=True)
    case("cat", lambda a, b: torch.cat((a, b), 1), deep, deep)
    case("stack", lambda a, b: torch.stack((a, b), 2), deep, deep)
    case("split", lambda a: a.split(4, -1), deep)
    case("split_with_sizes", lambda a: torch.split_with_sizes(a, [2, 6], -1), deep)
    case("chunk", lambda a: a.chunk(2, -1), deep)
    case("unbind", lambda a: a.unbind(1), deep)
    case("select", lambda a: a.select(1, 2), deep)
    case("select_scatter", lambda a, b: torch.select_scatter(a, b, 1, 2), deep, (2, 5, 6, 8))
    case("slice", lambda a: aten.slice.Tensor(a, 1, 1, 3), deep)
    case("slice", lambda a: aten.slice.Tensor(a, 4, 1, 8, 2), deep)
    case("slice_scatter", lambda a, b: torch.slice_scatter(a, b, 4, 2, 6), deep, (2, 4, 5, 6, 4))
    case("narrow", lambda a: a.narrow(4, 2, 4), deep)
    case("tensor_split", lambda a: a.tensor_split((3,), dim=-1), deep)
    case("unflatten", lambda a: a.unflatten(-1, (2, 4)), (2, 4, 5, 8))
    case("unflatten", lambda a: a.unflatten(-1, (2, 4)), deep)
    case("getitem", lambda a: a[:, 1:3], deep)
    case("getitem", lambda a: a[:, 0::2, :, 1::2, None], deep)
    case("getattr", lambda a: a.mT, deep)
    case("mT", lambda a: aten.mT.default(a), deep)
    case("squeeze", lambda a: a.squeeze(1), (2, 1, 4, 5, 6))
    case("expand", lambda a: a.expand(-1, 3, -1, -1, -1), (2, 1, 4, 5, 6))
    case("expand_as", lambda a, b: a.expand_as(b), (2, 4, 1, 6, 8), deep)
    case("flatten", lambda a: a.flatten(3), deep)
    case("reshape", lambda a: a.reshape(2, 4, 5, 6, 2, 4), deep)
    case("view", lambda a: a.view(2, 4, 5, 6, 2, 4), deep)
    case("view", lambda a: a.view(5, 2, 3, 2, 4), (5, 6, 8))
    case("unsqueeze", lambda a: a.unsqueeze(2), deep)
    case("permute", lambda a: a.permute(0, 2, 1, 4, 3), deep)
    case("permute", lambda a: a.permute(0, 3, 5, 1, 4, 2), (2, 4, 3, 6, 2, 5))
    case("contiguous", lambda a: (a * 1).contiguous(), deep)
    case("detach", lambda a: a.detach(), deep)
    case("linear", F.linear, deep, (3, 8))
    case("max", lambda a: a.max(1), deep)
    case("tile", lambda a: a.tile(3), (2, 4, 6))
    case("transpose", lambda a: a.transpose(1, 2), deep)
    case("transpose", lambda a: a.transpose(2, 4), (2, 4, 3, 6, 2, 5))
    case("repeat_interleave", lambda a: a.repeat_interleave(2, dim=-1), deep)


def source_cases(case: Cases) -> None:
    """Tensors made from sizes alone."""
    for name in ("zeros", "ones"):
        case(name, lambda a, name=name: a + getattr(torch, name)(4, 6), (4, 6), captures=EXPORT)
    case("zeros", lambda a: a + torch.zeros(2, 4, 5, 6, 8), (2, 4, 5, 6, 8), captures=EXPORT)
    for name in ("empty", "rand", "randn"):
        case(name, lambda a, name=name: a + getattr(torch, name)(4, 6), (4, 6), values=False, captures=EXPORT)
    case("full", lambda a: a + torch.full((a.size(0), a.size(1)), 2.0), (4, 6))
    case("new_zeros", lambda a: a + a.new_zeros(4, 6), (4, 6), captures=BOTH)
    case("new_ones", lambda a: a + a.new_ones((4, 6)), (4, 6))
    case("new_empty", lambda a: a + a.new_empty(4, 6), (4, 6), values=False)
    case("new_full", lambda a: a + a.new_full((4, 6), 2.0), (4, 6))
    case("zeros", lambda a: a + torch.zeros(a.shape[0], a.shape[1]), (4, 6))
    case("arange", lambda a: a + torch.arange(a.shape[1]), (4, 6))
    case("arange", lambda a: a + torch.arange(6.0), (4, 6), captures=EXPORT)
    case("linspace", lambda a: a + torch.linspace(0, 1, a.shape[1]), (4, 6))
    case("logspace", lambda a: a + torch.logspace(0, 1, a.shape[1]), (4, 6))
    case("range", lambda a: a + aten.range.default(1, a.shape[1]), (4, 6))
    case("eye", lambda a: a + torch.eye(a.shape[1]), (4, 6, 6))
    case("scalar_tensor", lambda a: a + torch.scalar_tensor(a.shape[1]), (4, 6))
    case("one_hot", lambda i: F.one_hot(i, 7), indices(4, 5, below=7), captures=BOTH)


def fourier_cases(case: Cases) -> None:
    """What is transformed stays whole; what lies beside it shrinks."""
    fft = torch.fft
    for name in ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6))
        case(f"fft_{name}", partial(function, n=5, dim=1, norm="ortho"), (4, 6, 5), captures=BOTH)
    for name in ["fft2", "ifft2", "rfft2", "irfft2"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6, 5))
        case(f"fft_{name}", partial(function, dim=(1, 2)), (4, 6, 5, 7), captures=BOTH)
        case(f"fft_{name}", partial(function, s=(4, 8), dim=(1, 3)), (4, 6, 5, 7))
    for name in ["fftn", "ifftn", "rfftn", "irfftn"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6), whole=True)
        case(f"fft_{name}", partial(function, s=(4, 4, 4)), (4, 6, 5, 7))
        case(f"fft_{name}", partial(function, dim=(0, 2)), (4, 6, 5, 7), captures=BOTH)
    for name in ["fftshift", "ifftshift"]:
        function = getattr(fft, name)
        case(f"fft_{name}", function, (4, 6), whole=True)
        case(f"fft_{name}", partial(function, dim=1), (4, 6, 5), captures=BOTH)
        case(f"fft_{name}", partial(function, dim=(0, -1)), (4, 6, 5))


def spatial_cases(case: Cases) -> None:
    """Channels pass through, pixels stay."""
    for n in (1, 2, 3):
        shape = (2, 6, *[4] * n)
        case(f"max_pool{n}d", lambda a, n=n: getattr(F, f"max_pool{n}d")(a, 2), shape)
        case(f"avg_pool{n}d", lambda a, n=n: getattr(F, f"avg_pool{n}d")(a, 2, stride=1), shape)
        case(f"lp_pool{n}d", lambda a, n=n: getattr(F, f"lp_pool{n}d")(a, 2, 2), shape)
        case(f"adaptive_avg_pool{n}d", lambda a, n=n: getattr(F, f"adaptive_avg_pool{n}d")(a, 2), shape)
        case(f"adaptive_max_pool{n}d", lambda a, n=n: getattr(F, f"adaptive_max_pool{n}d")(a, 2), shape)
    image = (2, 6, 4, 5)
    case("max_pool2d", lambda a: F.max_pool2d(a, 3, 2, padding=1), image, captures=BOTH)
    case("avg_pool2d", lambda a: F.avg_pool2d(a, 2), image, captures=BOTH)
    case("adaptive_avg_pool2d", lambda a: F.adaptive_avg_pool2d(a, 1), image, captures=BOTH)
    case("upsample_nearest2d", lambda a: aten.upsample_nearest2d.default(a, [8, 10]), image)
    case("upsample_bilinear2d", lambda a: aten.upsample_bilinear2d.default(a, [8, 10], False), image)
    case("upsample_bicubic2d", lambda a: aten.upsample_bicubic2d.default(a, [8, 10], False), image)
    for name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
        case(name, lambda a, name=name: getattr(aten, name).default(a, [8, 10], False), image)
    case("_upsample_nearest_exact2d", lambda a: aten._upsample_nearest_exact2d.default(a, [8, 10]), image)
    for dims in (1, 3):
        for name in ("upsample_nearest", "_upsample_nearest_exact"):
            op = getattr(aten, f"{name}{dims}d").default
            case(f"{name}{dims}d", lambda a, op=op, dims=dims: op(a, [7] * dims), (2, 6, *[4] * dims))
    case("upsample_linear1d", lambda a: aten.upsample_linear1d.default(a, [7], False), (2, 6, 4))
    volume = (2, 6, 4, 3, 3)
    case("upsample_trilinear3d", lambda a: aten.upsample_trilinear3d.default(a, [5, 4, 6], False), volume)
    case("interpolate", lambda a: F.interpolate(a, scale_factor=2), image)
    case("interpolate", lambda a: F.interpolate(a, size=(3, 3), mode="bilinear"), image)
    case("interpolate", lambda a: F.interpolate(a, 7, mode="linear"), (2, 6, 4))
    case("interpolate", nn.Upsample(scale_factor=2), image)
    case("grid_sample", lambda a, g: F.grid_sample(a, g, align_corners=False), image, (2, 3, 3, 2))
    case("pad", lambda a: F.pad(a, (1, 2)), (4, 6), captures=BOTH)
    case("pad", lambda a: F.pad(a, (0, 0, 1, 0, 2, 2), value=3.0), (4, 6, 5))
    case("pad", lambda a: F.pad(a, (-1, 0)), (4, 6))
    for mode in ("reflect", "replicate", "circular"):
        case("pad", lambda a, mode=mode: F.pad(a, (2, 1), mode=mode), (4, 6, 5))
    case("reflection_pad", nn.ReflectionPad1d(2), (4, 6, 5))
    for n in (1, 2, 3):
        for kind in ("replication", "reflection"):
            pad = getattr(aten, f"{kind}_pad{n}d").default
            sizes = (4, 6, 5, 3, 4)[: n + 2] if n > 1 else (4, 6, 5)
            case(f"{kind}_pad{n}d", lambda a, pad=pad, n=n: pad(a, [1] * 2 * n), sizes)
    case("_threshold", lambda a: F.threshold(a, 0.1, 0.0), (4, 6))
    case("pad", nn.ZeroPad2d((1, 0, 0, 2)), image)
    case("constant_pad_nd", lambda a: torch.constant_pad_nd(a, (1, 2), 1.0), (4, 6))
    case("pixel_shuffle", lambda a: F.pixel_shuffle(a, 2), (2, 12, 4, 5), captures=BOTH)
    case("pixel_unshuffle", lambda a: F.pixel_unshuffle(a, 2), (2, 3, 4, 6), captures=BOTH)
    case("channel_shuffle", lambda a: F.channel_shuffle(a, 3), (2, 12, 4, 5))
    case("unfold", lambda a: F.unfold(a, 2, stride=2), image)
    case("unfold", lambda a: a.unfold(1, 3, 2), (4, 7, 5), captures=BOTH)
    case("unfold", lambda a: a.unfold(-2, 3, 2), (4, 7, 5))
    case("unfold", lambda a: a.unfold(dimension=-1, size=2, step=2), (4, 6))
    case("im2col", lambda a: aten.im2col.default(a, [2, 2], [1, 1], [0, 0], [2, 2]), image)
    case("fold", lambda a: F.fold(a, (4, 4), 2, stride=2), (2, 24, 4))
    case("col2im", lambda a: aten.col2im.default(a, [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]), (2, 24, 4))


def all_cases() -> list[Case]:
    cases = Cases()
    for family in (
        elementwise_cases,
        deep_elementwise_cases,
        contraction_cases,
        joining_cases,
        reduction_cases,
        normalisation_cases,
        reshaping_cases,
        deep_cases,
        source_cases,
        spatial_cases,
        fourier_cases,
    ):
        family(cases)
    return cases.all


CASES = all_cases()

# Registered, and not run here: why.
NOT_RUN = {
    "cuda": "needs a GPU",
}


# ---------------------------------------------------------------- the check


DUMMY = torch.zeros(2, 1)  # an input, which no case reads


class Probe(nn.Module):
    """Calls one op on tensors of its own."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.names = [f"p{i}" for i in range(len(case.operands))]
        for i, (name, operand) in enumerate(zip(self.names, case.operands, strict=True)):
            tensor = operand.clone() if isinstance(operand, Tensor) else signed(operand, i)
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.run = case.run

    def forward(self, x: Tensor) -> Any:
        return self.run(*(getattr(self, name) for name in self.names))


class Carried(Probe):
    """The same, and each result meets a parameter of its own shape, whose axes may shrink as well."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        with torch.no_grad():
            self.met = self._parameters_for(super().forward(DUMMY))

    def _parameters_for(self, results: Any) -> Any:
        """A nest of names, one for each tensor."""
        if isinstance(results, (list, tuple)):
            return [self._parameters_for(result) for result in results]
        name = f"q{len(self._parameters)}"
        self.register_parameter(name, nn.Parameter(signed(tuple(results.shape), 90 + len(name))))
        return name

    def forward(self, x: Tensor) -> Any:
        return self._meet(super().forward(x), self.met)

    def _meet(self, results: Any, met: Any) -> Any:
        if isinstance(met, list):
            return [self._meet(results[i], name) for i, name in enumerate(met)]
        return results * getattr(self, met)


def check(case: Case, capture: str = "symbolic", rules: RuleSet = DEFAULT_RULES, seeds: int = 1) -> None:
    """Slice what the rule says can be sliced: the op must not see the difference."""
    model, analysis = analysed(case, capture, rules)
    assert not analysis.missing
    used = {step.rule.op for step in analysis.steps.values() if step.rule}
    assert case.op in used or capture != case.captures[0], f"the call was read as {used}"
    for seed in range(seeds):
        selection = random_selection(analysis, seed)
        assert bool(selection.masks) != case.whole, "the rule keeps all of it whole"
        compare(case, model, analysis, selection)


def analysed(
    case: Case, capture: str, rules: RuleSet, probe: type[Probe] = Probe
) -> tuple[nn.Module, fxprune.Analysis]:
    """The case as a model, and what inference says about it."""
    model = probe(case).eval()
    return model, fxprune.analyze(model, example_inputs=DUMMY, outputs="prune", capture=capture, rules=rules)


def compare(case: Case, model: nn.Module, analysis: fxprune.Analysis, selection: Selection) -> None:
    """Sliced, then the op; zero-masked, then the op, then sliced; and the certificate's masked form."""
    pruned = shrink(analysis, selection=selection, original=model)
    with torch.no_grad():
        got = tensors_of(pruned(DUMMY))
        wanted = compacted(tensors_of(masked(model, analysis, selection)(DUMMY)), analysis, selection)
    assert [t.shape for t in got] == [t.shape for t in wanted]
    if not case.values:
        return
    if not case.statistic:
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)
    # (A certificate would say that it saw nothing: no output depends on the dummy.)
    look = Comparison(model, pruned, analysis, selection).look(Example((DUMMY,)).map(in_float64))
    assert look.error <= Certificate.tolerance


def random_selection(analysis: fxprune.Analysis, seed: int) -> Selection:
    """Random kept elements of every atom that the solver leaves free; two of one size keep others."""
    met: Counter[int] = Counter()
    masks = {}
    for a in free_atoms(analysis):
        fewest = min(2, a.size - 1)  # a variance needs two
        count = fewest + (met[a.size] + seed) % (a.size - fewest)
        order = np.random.default_rng([seed, a.size]).permutation(a.size)
        masks[a] = np.zeros(a.size, dtype=bool)
        masks[a][np.roll(order, met[a.size])[:count]] = True
        met[a.size] += 1
    return Selection(masks, {})


def free_atoms(analysis: fxprune.Analysis) -> list[Atom]:
    """Atoms of the operands that may shrink by the rules alone: a probe's operands are no layers' weights."""
    carried = (a for axes in analysis.weights.values() for axis in axes for a in atoms_of(axis))
    return [a for a in dict.fromkeys(carried) if a.size > 1 and analysis.graph.frozen(a) is None]


def masked(model: nn.Module, analysis: fxprune.Analysis, selection: Selection) -> nn.Module:
    """The full-size model with removed elements of its operands set to zero."""
    twin = copy.deepcopy(model)
    for name, tensor in twin.state_dict().items():  # shares the twin's memory
        mask = selection.mask(analysis.weights.get(name, ()))
        if mask is not None:
            tensor.masked_fill_(~mask, 0)
    return twin


def compacted(tensors: list[Tensor], analysis: fxprune.Analysis, selection: Selection) -> list[Tensor]:
    """The kept positions of every output."""
    output = next(n for n in analysis.module.graph.nodes if n.op == "output")
    nodes: list[fx.Node] = []
    fx.map_arg(output.args, lambda n: nodes.append(n))
    out = []
    for t, axes in zip(tensors, [axes for n in nodes for axes in analysis.axes[n]], strict=True):
        for dim, axis in enumerate(axes):
            kept = selection.positions(axis)
            if kept is not None:
                t = t.index_select(dim, torch.from_numpy(kept))
        out.append(t)
    return out


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("case", [c for c in CASES if "symbolic" in c.captures], ids=str)
def test_slicing_commutes_with_the_op(case: Case) -> None:
    check(case, seeds=2)


@pytest.mark.parametrize("case", [c for c in CASES if "export" in c.captures], ids=str)
def test_slicing_commutes_with_the_exported_op(case: Case) -> None:
    check(case, "export")


@pytest.mark.parametrize("case", [c for c in CASES if c.captures != EXPORT], ids=str)
def test_what_meets_the_result_shrinks_with_it(case: Case) -> None:
    """The result's axes are what the rule says: one that it makes up would shrink in the parameter alone."""
    model, analysis = analysed(case, "symbolic", DEFAULT_RULES, Carried)
    for seed in range(2):
        compare(case, model, analysis, random_selection(analysis, seed))


def test_each_head_keeps_elements_of_its_own() -> None:
    def scores(q: Tensor, k: Tensor) -> Tensor:
        return q.view(5, 3, 4).transpose(0, 1) @ k.view(7, 3, 4).permute(1, 2, 0)

    case = Case("matmul", scores, ((5, 12), (7, 12)))
    model, analysis = analysed(case, "symbolic", DEFAULT_RULES)
    heads, inner = atoms_of(analysis.weights["p0"][1])
    assert analysis.weights["p1"][1] == analysis.weights["p0"][1]
    own = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1]], dtype=bool)
    compare(case, model, analysis, Selection({inner: own}, {inner: heads}))


def test_every_registered_op_has_a_case() -> None:
    covered = {case.op for case in CASES}
    assert covered <= {*DEFAULT_RULES}
    assert {*DEFAULT_RULES} - covered == {*NOT_RUN}


def free_softmax(input: Typed, dim: int = -1, **options: Any) -> Flow:
    """Wrong: the axis that is normalised may shrink."""
    return Flow(input.axes)


def loose_linear(input: Typed, weight: Typed, bias: Typed | None = None) -> Flow:
    """Wrong: the axes that are contracted may shrink apart."""
    flow = linear_axes(input, weight, bias)
    return Flow(flow.out, flow.same[1:])


def unordered_roll(input: Typed, shifts: Any, dims: Any = None) -> Flow:
    """Wrong: what is rolled may shrink."""
    return Flow(input.axes)


@pytest.mark.parametrize(
    ("op", "wrong"), [("softmax", free_softmax), ("linear", loose_linear), ("roll", unordered_roll)]
)
def test_a_rule_that_claims_too_much_is_caught(op: str, wrong: Callable[..., Flow]) -> None:
    case = next(case for case in CASES if case.op == op)
    check(case)
    with pytest.raises((AssertionError, RuntimeError)):
        check(case, rules=DEFAULT_RULES.extended({op: wrong}))
