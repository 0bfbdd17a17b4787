"""Sums over an axis that two operands share."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
import torchvision.ops

from op_cases.case import BOTH, Cases, indices

aten = torch.ops.aten


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
