"""Sums, statistics, extrema, norms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from op_cases.case import BOTH, Cases, flags, unit

aten = torch.ops.aten


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
    case("frobenius_norm", lambda a: torch.frobenius_norm(a, (1, 2)), (4, 6, 5))
    case("linalg_norm", lambda a: torch.linalg.norm(a, dim=-1), (4, 6))
    case("linalg_norm", lambda a: torch.linalg.norm(a, 2, dim=(0, 1)), (4, 6))
    case("linalg_norm", lambda a: torch.linalg.norm(a, -1, dim=(0, 1)), (4, 6), frozen=True)
    for name in ["amax", "amin", "argmax", "argmin", "prod", "logsumexp"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 6, 5))
    for name in ["all", "any"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, 1, keepdim=True), flags(4, 3, 5))
    case("amax", lambda a: a.amax((-1, -2)), -unit(4, 6, 5))
    case("amax", lambda a: a.amax((-1, -2), keepdim=True), (4, 6, 5))
    for name in ["max", "min"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 6, 5), captures=BOTH)
        case(name, getattr(torch, name), (4, 6), (6,))
        case(name, lambda a, name=name: getattr(torch, name)(a), (4, 6), frozen=True)
    case("topk", lambda a: a.topk(3), (4, 6), captures=BOTH)
    case("topk", lambda a: torch.topk(a, 2, dim=1, largest=False), (4, 6, 5))
    for name in ["softmax", "log_softmax"]:
        case(name, lambda a, name=name: getattr(torch, name)(a, -1), (4, 6, 5), captures=BOTH)
        case(name, lambda a, name=name: getattr(F, name)(a, dim=1), (4, 6, 5))
    case("softmax", lambda a: a.softmax(-1), (2, 4, 5, 6))
    case("softmax", lambda a: F.softmax(a, _stacklevel=5), (2, 4, 5, 6))
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
