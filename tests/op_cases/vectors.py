"""Losses, distances, recurrent cells: what is done with whole vectors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op_cases.case import BOTH, Cases, flags, indices, signed, unit

aten = torch.ops.aten


def loss_cases(case: Cases) -> None:
    """Of each element; added up; averaged over what is kept."""
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        run = getattr(F, name)
        captures = BOTH if name == "huber_loss" else ("symbolic",)
        case(name, lambda a, b, run=run: run(a, b, reduction="none"), (4, 6), (4, 6), captures=captures)
        case(name, lambda a, b, run=run: run(a, b, reduction="sum"), (4, 6), (4, 6), captures=captures)
        case(name, run, (4, 6, 5), (4, 6, 5), statistic=True, captures=captures)
    case("smooth_l1_loss", lambda a, b: F.smooth_l1_loss(a, b, beta=0.3), (4, 6), (4, 6), statistic=True)
    case("huber_loss", lambda a, b: F.huber_loss(a, b, delta=0.3), (4, 6), (4, 6), statistic=True)
    case("mse_loss", lambda a, b, w: F.mse_loss(a, b, weight=w, reduction="none"), *[(4, 6)] * 3)
    for name in ("mse_loss", "huber_loss"):
        run = getattr(F, name)
        case(name, lambda a, b, w, run=run: run(a, b, weight=w * w), *[(4, 6)] * 3, statistic=True)
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss"):
        run = getattr(aten, name).default
        case(f"aten.{name}", lambda a, b, run=run: run(a, b, 0), (4, 6), (4, 6), captures=BOTH)
        case(f"aten.{name}", run, (4, 6), (4, 6), statistic=True, captures=BOTH)
        case(f"aten.{name}", lambda a, b, run=run: run(a, b, 2), (4, 6), (4, 6))
    case(
        "aten.smooth_l1_loss",
        lambda a, b: aten.smooth_l1_loss.default(a, b, 1, 0.3),
        (4, 6),
        (4, 6),
        statistic=True,
    )
    for name in (
        *("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "poisson_nll_loss"),
        *("soft_margin_loss", "hinge_embedding_loss"),
    ):
        run = getattr(F, name)
        case(name, lambda a, b, run=run: run(a, b, reduction="none"), unit(4, 6), unit(4, 6))
        case(name, lambda a, b, run=run: run(a, b, reduction="sum"), unit(4, 6), unit(4, 6), frozen=True)
    case(
        "binary_cross_entropy_with_logits",
        lambda a, b, w: F.binary_cross_entropy_with_logits(a, b, pos_weight=w, reduction="none"),
        (4, 6),
        unit(4, 6),
        (6,),
    )
    each = {"reduction": "none"}
    classes = indices(4, below=6)
    case("cross_entropy", lambda a, i: F.cross_entropy(a, i), (4, 6), classes, frozen=True)
    case(
        "cross_entropy",
        lambda a, i: F.cross_entropy(a, i, **each),
        (4, 6, 3),
        indices(4, 3, below=6),
        frozen=True,
    )
    case("nll_loss", lambda a, i: F.nll_loss(a, i), (4, 6), classes, frozen=True)
    case(
        "cross_entropy_loss", lambda a, i: aten.cross_entropy_loss.default(a, i), (4, 6), classes, frozen=True
    )
    case("nll_loss_nd", lambda a, i: aten.nll_loss_nd.default(a, i), (4, 6), classes, frozen=True)
    image = indices(4, 3, 2, below=6)
    case("nll_loss2d", lambda a, i: aten.nll_loss2d.default(a, i), (4, 6, 3, 2), image, frozen=True)
    signs = signed((4,), 3).sign()
    case("cosine_embedding_loss", F.cosine_embedding_loss, (4, 6), (4, 6), signs, frozen=True)
    case("triplet_margin_loss", F.triplet_margin_loss, (4, 6), (4, 6), (4, 6), frozen=True)
    case("margin_ranking_loss", F.margin_ranking_loss, (4,), (4,), signs, frozen=True)
    case("multi_margin_loss", F.multi_margin_loss, (4, 6), classes, frozen=True)
    case("multilabel_margin_loss", F.multilabel_margin_loss, (4, 6), indices(4, 6, below=6), frozen=True)
    labels = flags(4, 6).double()
    case("multilabel_soft_margin_loss", F.multilabel_soft_margin_loss, (4, 6), labels, frozen=True)
    case(
        "ctc_loss",
        lambda a, t: F.ctc_loss(a.log_softmax(-1), t, torch.tensor([7, 7]), torch.tensor([3, 3])),
        (7, 2, 6),
        1 + indices(2, 3, below=5),
        frozen=True,
    )


def distance_cases(case: Cases) -> None:
    """Sums over an axis that both have."""
    case("cosine_similarity", F.cosine_similarity, (4, 6, 5), (4, 6, 5), captures=BOTH)
    case("cosine_similarity", lambda a, b: F.cosine_similarity(a, b, dim=-1), (4, 1, 6), (3, 6))
    case("cosine_similarity", lambda a, b: F.cosine_similarity(a, b, dim=1), *[(2, 4, 5, 6, 8)] * 2)
    case("cosine_similarity", nn.CosineSimilarity(dim=-1), (4, 6), (4, 6))
    case("linalg_vecdot", torch.linalg.vecdot, (4, 6), (4, 6), captures=BOTH)
    case("linalg_vecdot", lambda a, b: torch.linalg.vecdot(a, b, dim=1), (4, 6, 5), (4, 6, 5))
    for p in (1.0, 2.0):
        case(
            "pairwise_distance",
            lambda a, b, p=p: F.pairwise_distance(a, b, p),
            (4, 6),
            (4, 6),
            statistic=True,
        )
    case(
        "pairwise_distance",
        lambda a, b: F.pairwise_distance(a, b, keepdim=True),
        (3, 4, 6),
        (6,),
        statistic=True,
        captures=BOTH,
    )
    case("pairwise_distance", nn.PairwiseDistance(), (4, 6), (4, 6), statistic=True)
    case("cdist", torch.cdist, (4, 6), (5, 6), captures=BOTH)
    case("cdist", lambda a, b: torch.cdist(a, b, p=1.0), (2, 4, 6), (2, 5, 6))
    case("cdist", torch.cdist, (2, 7, 4, 6), (7, 5, 6))
    case("dist", torch.dist, (4, 6), (6,), captures=BOTH)
    case("mse_loss", lambda a, b: F.mse_loss(a, b, reduction="sum"), (4, 6), (6,))
    case("cosine_similarity", F.cosine_similarity, (4, 1), (4, 6))
    case("inner", torch.inner, (3, 6), (4, 6), captures=BOTH)
    case("inner", torch.inner, (2, 3, 6), (6,))
    case("vdot", torch.vdot, (6,), (6,))
    case("kron", torch.kron, (4, 6), (3, 5), captures=BOTH)
    case("kron", torch.kron, (4, 6), (5,))
    case("bilinear", F.bilinear, (3, 6), (3, 5), (8, 6, 5), (8,), captures=BOTH)
    case("bilinear", F.bilinear, (2, 3, 6), (2, 3, 5), (8, 6, 5))
    case("addmv", torch.addmv, (3,), (3, 6), (6,), captures=BOTH)
    case("addbmm", torch.addbmm, (3, 5), (4, 3, 6), (4, 6, 5))
    case("addr", torch.addr, (3, 5), (3,), (5,))
    case("linalg_matmul", torch.linalg.matmul, (2, 3, 6), (6, 8))
    case(
        "linalg_multi_dot",
        lambda a, b, c: torch.linalg.multi_dot([a, b, c]),
        (3, 6),
        (6, 4),
        (4, 5),
        captures=BOTH,
    )
    case("chain_matmul", torch.chain_matmul, (3, 6), (6, 4), (4, 5))
    conv = aten.convolution.default
    case(
        "convolution",
        lambda x, w, b: conv(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        (2, 6, 5, 5),
        (8, 6, 3, 3),
        (8,),
        captures=BOTH,
    )
    case(
        "convolution",
        lambda x, w, b: conv(x, w, b, [2, 2], [0, 0], [1, 1], True, [0, 0], 3),
        (2, 12, 4, 4),
        (12, 2, 2, 2),
        (6,),
    )
    case("embedding_bag", lambda i, w: F.embedding_bag(i, w), indices(2, 5, below=7), (7, 6))
    case(
        "embedding_bag",
        lambda i, w: F.embedding_bag(i, w, torch.tensor([0, 3]), mode="sum"),
        indices(5, below=7),
        (7, 6),
    )


def recurrent_cases(case: Cases) -> None:
    """Hidden channels of cells; the inputs of layers."""
    for name, gates in {"gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}.items():
        run = getattr(torch, name)
        rows = gates * 6
        weights = ((4, 5), (4, 6), (rows, 5), (rows, 6), (rows,), (rows,))
        case(name, run, *weights, captures=BOTH)
        case(name, run, *weights[:4])
    cell = ((4, 5), (4, 6), (4, 6), (24, 5), (24, 6), (24,), (24,))
    case("lstm_cell", lambda x, h, c, *w: torch.lstm_cell(x, (h, c), *w), *cell, captures=BOTH)
    for name, gates in {"gru": 3, "rnn_tanh": 1, "rnn_relu": 1}.items():
        run = getattr(torch, name)
        rows = gates * 6
        for first in (True, False):
            one = ((2, 4, 5), (1, 2 if first else 4, 6), (rows, 5), (rows, 6), (rows,), (rows,))
            case(
                name,
                lambda x, h, *w, r=run, f=first: r(x, h, list(w), True, 1, 0.0, False, False, f),
                *one,
                captures=BOTH,
            )
        both = ((2, 4, 5), (2, 4, 6), *[(rows, 5), (rows, 6)] * 2)
        case(name, lambda x, h, *w, r=run: r(x, h, list(w), False, 1, 0.0, False, True, False), *both)
        deep = ((2, 4, 6), (2, 4, 6), *[(rows, 6), (rows, 6)] * 2)
        case(name, lambda x, h, *w, r=run: r(x, h, list(w), False, 2, 0.0, False, False, False), *deep)
    lstm = ((2, 4, 5), (1, 2, 6), (1, 2, 6), (24, 5), (24, 6), (24,), (24,))
    case(
        "lstm",
        lambda x, h, c, *w: torch.lstm(x, (h, c), list(w), True, 1, 0.0, False, False, True),
        *lstm,
        captures=BOTH,
    )
    case("torch.nn.modules.rnn.LSTM", nn.LSTM(5, 6, bidirectional=True).double(), (4, 2, 5))


def matrix_cases(case: Cases) -> None:
    """A batch of matrices passes, each of them is frozen."""
    square = torch.eye(4, dtype=torch.float64) + 0.1 * signed((5, 4, 4), 3)
    positive = square @ square.mT
    for name in (
        "det",
        "slogdet",
        "svdvals",
        "eigvals",
        "matrix_exp",
        "cond",
        "matrix_rank",
        "pinv",
        "inv_ex",
    ):
        case(f"linalg_{name}", zeroes(getattr(torch.linalg, name)), square, captures=BOTH)
    for name in ("svd", "qr", "eig", "lu"):
        case(f"linalg_{name}", zeroes(getattr(torch.linalg, name)), square, values=False)
    for name in ("cholesky_ex", "eigh", "eigvalsh"):
        case(f"linalg_{name}", zeroes(getattr(torch.linalg, name)), positive, values=False)
    case("linalg_matrix_power", lambda a: torch.linalg.matrix_power(a, 2), square)
    case("linalg_matrix_norm", lambda a: torch.linalg.matrix_norm(a), square)
    for name in ("det", "logdet", "slogdet", "pinverse", "matrix_exp"):
        case(name, zeroes(getattr(torch, name)), positive)
    case("svd", zeroes(torch.svd), square, values=False)
    case("matrix_power", lambda a: torch.matrix_power(a, 2), square)
    case("nuclear_norm", torch.nuclear_norm, (4, 6), frozen=True)
    case("inverse", zeroes(torch.inverse), square, frozen=True)
    case("cholesky_inverse", zeroes(torch.cholesky_inverse), square, frozen=True)
    for name in ("inv", "lu_factor"):
        case(f"linalg_{name}", zeroes(getattr(torch.linalg, name)), square, frozen=True, captures=BOTH)
    case("linalg_cholesky", zeroes(torch.linalg.cholesky), positive, frozen=True)
    sides = (5, 4, 3)
    for name in ("solve", "lstsq"):
        solve = getattr(torch.linalg, name)
        case(f"linalg_{name}", lambda a, b, solve=solve: solve(upright(a), b), square, sides, frozen=True)
    triangular = torch.linalg.solve_triangular
    case(
        "linalg_solve_triangular",
        lambda a, b: triangular(upright(a), b, upper=True),
        square,
        sides,
        frozen=True,
    )
    for name in ("cholesky_solve", "triangular_solve"):
        solve = getattr(torch, name)
        case(name, lambda b, a, solve=solve: solve(b, upright(a)), sides, square, frozen=True)
    case("cross", lambda a, b: torch.cross(a, b, dim=1), (4, 3, 5), (4, 3, 5), captures=BOTH)
    case("linalg_cross", torch.linalg.cross, (4, 5, 3), (1, 5, 3))


def upright(a: Tensor) -> Tensor:
    """A matrix that has an inverse, whatever was set to zero."""
    return a + 3 * torch.eye(4, dtype=a.dtype)


def zeroes(run: Any) -> Any:
    return lambda a: run(upright(a))
