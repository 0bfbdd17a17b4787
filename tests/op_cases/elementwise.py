"""Every element alike: arithmetic, functions, activations."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op_cases.case import BOTH, Cases, Operand, flags, unit

aten = torch.ops.aten


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
    for name in ["entr", "erfcx", "i0e", "i1", "i1e", "log_ndtr", "ndtri", "ndtr"]:
        case(f"special_{name}", getattr(torch.special, name), unit(4, 6))
    for name in ["bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1"]:
        case(f"special_{name}", getattr(torch.special, name), unit(4, 6))
    case("special_xlog1py", torch.special.xlog1py, unit(4, 6), unit(6))
    case("special_zeta", torch.special.zeta, unit(4, 6) + 2, unit(6) + 1)
    for name, op in {"expit": "sigmoid", "psi": "digamma", "gammaln": "lgamma", "log1p": "log1p"}.items():
        case(op, getattr(torch.special, name), unit(4, 6))
    case("mvlgamma", lambda a: torch.mvlgamma(a + 1, 2), unit(4, 6))
    case("frexp", torch.frexp, (4, 6))
    case("chalf", lambda a: a.chalf(), (4, 6))
    quantize = torch.fake_quantize_per_tensor_affine
    case("fake_quantize_per_tensor_affine", lambda a: quantize(a.float(), 0.1, 0, -9, 9), (4, 6))
    for name in ["lshift", "rshift"]:
        shift = getattr(operator, name)
        case(name, lambda a, b, shift=shift: shift((a * 5).int(), (b * 3).int()), unit(4, 6), unit(6))
        shift = getattr(aten, f"__{name}__").Tensor
        case(
            f"__{name}__", lambda a, b, shift=shift: shift((a * 5).int(), (b * 3).int()), unit(4, 6), unit(6)
        )
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
    case("ForwardOnly", lambda a: Pair.apply(a)[1], (4, 6), captures=BOTH)
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


class Pair(torch.autograd.Function):
    """Of two results, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> tuple[Tensor, Tensor]:
        return a * 2, a.sigmoid()


class StillIdentity(nn.Identity):
    """An identity by another name, which stays a module."""
