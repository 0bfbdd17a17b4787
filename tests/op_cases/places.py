"""Order, places and pieces: what is looked up, stacked or cut as NumPy does."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from op_cases.case import BOTH, EXPORT, Cases, flags, indices, unit

aten = torch.ops.aten


def order_cases(case: Cases) -> None:
    """What is ordered is frozen, the rest passes."""
    for name in ("median", "nanmedian", "mode"):
        run = getattr(torch, name)
        case(name, lambda a, run=run: run(a, 1), (4, 7, 5), captures=BOTH)
        case(name, lambda a, run=run: run(a, dim=-1, keepdim=True), (3, 2, 4, 6, 7))
    case("median", torch.median, (4, 6), frozen=True)
    case("kthvalue", lambda a: a.kthvalue(2, 1), (4, 7, 5), captures=BOTH)
    case("aminmax", lambda a: a.aminmax(dim=1), (4, 6, 5), captures=BOTH)
    case("aminmax", torch.aminmax, (4, 6), frozen=True)
    for name in ("quantile", "nanquantile"):
        run = getattr(torch, name)
        case(name, lambda a, run=run: run(a, 0.3, dim=1), (4, 6, 5), captures=BOTH)
        case(name, lambda a, q, run=run: run(a, q, 1, True), (4, 6, 5), unit(3))
        case(name, lambda a, run=run: run(a, 0.3), (4, 6), frozen=True)
    for name in ("cummax", "cummin"):
        case(name, lambda a, name=name: getattr(torch, name)(a, 1), (4, 6, 5), captures=BOTH)
    case("msort", torch.msort, (4, 6))
    case("diff", torch.diff, (4, 6), captures=BOTH)
    case("diff", lambda a, b, c: torch.diff(a, 2, 1, b, c), (4, 6, 5), (4, 2, 5), (4, 1, 5))
    for name in ("trapezoid", "trapz", "cumulative_trapezoid"):
        case(name, lambda a, name=name: getattr(torch, name)(a, dim=1), (4, 6, 5))
        case(name, lambda a, x, name=name: getattr(torch, name)(a, x), (4, 6), (6,))
    case("count_nonzero", lambda a: torch.count_nonzero(a, 1), (4, 6, 5), captures=BOTH)
    case("renorm", lambda a: torch.renorm(a, 2, 0, 0.5), (4, 6, 5), captures=BOTH)
    case("renorm", lambda a: a.renorm(1, -1, 0.5), (4, 6))
    case("bucketize", torch.bucketize, (4, 6), torch.arange(5.0).double(), captures=BOTH)
    case("searchsorted", torch.searchsorted, torch.arange(5.0).double(), (4, 6), captures=BOTH)
    case("searchsorted", lambda s, a: torch.searchsorted(s.sort(-1)[0], a), (3, 4, 6), (3, 4, 5))
    case("isin", torch.isin, (4, 6), (5,))
    case("histc", lambda a: torch.histc(a, 4), (4, 6), frozen=True)
    case("bincount", torch.bincount, indices(6, below=4), frozen=True)
    case("multinomial", lambda a: torch.multinomial(a, 2), unit(4, 6), values=False, frozen=True)
    for name in ("nonzero", "argwhere", "unique", "unique_consecutive"):
        case(name, getattr(torch, name), (4, 6), frozen=True)
    case("_unique2", lambda a: aten._unique2.default(a), (4, 6), frozen=True)
    case("unique_dim", lambda a: aten.unique_dim.default(a, 0), (4, 6), frozen=True)
    case("masked_select", torch.masked_select, (4, 6), flags(4, 6), frozen=True)
    case("combinations", torch.combinations, (4,), frozen=True)
    case("as_strided", lambda a: torch.as_strided(a, (2, 3), (1, 2)), (4, 6), frozen=True)


def lookup_cases(case: Cases) -> None:
    """Places are frozen, what lies beside them passes."""
    case("take", torch.take, (4, 6), indices(5, below=24), frozen=True)
    case("put", lambda a, i, b: a.put(i, b), (4, 6), torch.arange(3), (3,), frozen=True)
    case(
        "take_along_dim",
        lambda a, i: torch.take_along_dim(a, i, 1),
        (4, 7, 6),
        indices(4, 3, 1, below=7),
        captures=BOTH,
    )
    case(
        "take_along_dim",
        lambda a, i: torch.take_along_dim(a, i, dim=-1),
        (1, 7, 6),
        indices(4, 7, 3, below=6),
    )
    case("take_along_dim", lambda a, i: torch.take_along_dim(a, i), (4, 6), indices(5, below=24))
    case(
        "masked_scatter",
        lambda a, m, b: a.masked_scatter(m, b),
        (4, 5, 6),
        flags(4, 5, 1),
        (20, 6),
        captures=BOTH,
    )
    case("masked_scatter", lambda a, m, b: a.masked_scatter(m, b), (4, 6), flags(4, 6), (4, 6), frozen=True)
    case("masked_scatter", lambda a, m, b: a.masked_scatter(m, b), (3, 4, 5, 6), flags(4, 1, 1), (12, 5, 6))
    case(
        "index_reduce",
        lambda a, i, b: a.index_reduce(1, i, b, "amax"),
        (4, 7, 6),
        indices(3, below=7),
        (4, 3, 6),
    )
    case("diagonal", lambda a: a.diagonal(dim1=1, dim2=2), (4, 5, 6, 3), captures=BOTH)
    case("diagonal", lambda a: torch.diagonal(a, 1, -2, -1), (4, 3, 5, 5))
    case("linalg_diagonal", torch.linalg.diagonal, (4, 3, 5, 5))
    case("diagonal_scatter", lambda a, b: torch.diagonal_scatter(a, b, dim1=1, dim2=2), (4, 5, 5), (4, 5))
    case("diag_embed", torch.diag_embed, (4, 6), captures=BOTH)
    case("diag_embed", lambda a: torch.diag_embed(a, dim1=0, dim2=2), (4, 6))
    for name in ("diag", "diagflat"):
        case(name, getattr(torch, name), (6,), frozen=True)
    case("diag", torch.diag, (4, 4), frozen=True)
    case("trace", torch.trace, (4, 4), frozen=True)


def stacking_cases(case: Cases) -> None:
    """NumPy's joins and cuts."""
    case("atleast_1d", torch.atleast_1d, (6,))
    case("atleast_2d", torch.atleast_2d, (6,), captures=BOTH)
    case("atleast_3d", torch.atleast_3d, (4, 6))
    case("atleast_3d", lambda a, b: torch.atleast_3d(a, b), (6,), (4, 6))
    case("hstack", lambda a, b: torch.hstack([a, b]), (4, 6), (4, 5), captures=BOTH)
    case("hstack", lambda a, b: torch.hstack((a, b)), (6,), (5,))
    case("vstack", lambda a, b: torch.vstack((a, b)), (4, 6), (3, 6), captures=BOTH)
    case("vstack", lambda a, b: torch.vstack((a, b)), (6,), (6,))
    case("row_stack", lambda a, b: torch.row_stack((a, b)), (4, 6), (3, 6))
    case("dstack", lambda a, b: torch.dstack((a, b)), (4, 6), (4, 6), captures=BOTH)
    case("dstack", lambda a, b: torch.dstack((a, b)), (2, 4, 6), (2, 4, 5))
    case("column_stack", lambda a, b: torch.column_stack((a, b)), (4,), (4,))
    case("column_stack", lambda a, b: torch.column_stack((a, b)), (4, 6), (4, 5), captures=BOTH)
    case("hsplit", lambda a: torch.hsplit(a, 3), (4, 12))
    case("vsplit", lambda a: torch.vsplit(a, 2), (12, 4))
    case("dsplit", lambda a: a.dsplit(2), (3, 4, 12))
    case("block_diag", torch.block_diag, (4, 6), (3, 5), captures=BOTH)
    case("cartesian_prod", torch.cartesian_prod, (4,), (6,))
    case("fliplr", torch.fliplr, (4, 6), captures=BOTH)
    case("flipud", torch.flipud, (4, 6))
    case("rot90", lambda a: torch.rot90(a, 1, (1, 2)), (4, 5, 6))
    case("rot90", lambda a: torch.rot90(a, 2, (0, 1)), (4, 5, 6))


def wider_pixel_cases(case: Cases) -> None:
    """Transforms of places, pools that say where they looked."""
    image = (2, 6, 4, 5)
    grid = (2, 3, 3, 2)
    case("grid_sampler", lambda a, g: torch.grid_sampler(a, g, 0, 0, False), image, grid, captures=BOTH)
    case("grid_sampler_2d", lambda a, g: aten.grid_sampler_2d.default(a, g, 0, 0, False), image, grid)
    volume = ((2, 6, 4, 3, 3), (2, 3, 2, 2, 3))
    case("grid_sampler_3d", lambda a, g: aten.grid_sampler_3d.default(a, g, 0, 0, False), *volume)
    case("grid_sample", lambda a, g: F.grid_sample(a, g, align_corners=False), *volume)
    case("affine_grid", lambda t: F.affine_grid(t, (2, 6, 3, 4), align_corners=False), (2, 2, 3))
    case(
        "affine_grid_generator",
        lambda t: aten.affine_grid_generator.default(t, [2, 6, 3, 4], False),
        (2, 2, 3),
        captures=BOTH,
    )
    for n in (1, 2, 3):
        shape = (2, 6, *[4] * n)
        for name in (f"max_pool{n}d_with_indices", f"adaptive_max_pool{n}d_with_indices"):
            case(name, lambda a, name=name: getattr(F, name)(a, 2), shape)
        size = [2] * n
        case(
            f"max_unpool{n}d",
            lambda a, i, n=n: getattr(F, f"max_unpool{n}d")(a, i, 2),
            (2, 6, *size),
            torch.zeros(2, 6, *size, dtype=torch.long),
        )
        if n > 1:
            case(
                f"fractional_max_pool{n}d",
                lambda a, n=n: getattr(F, f"fractional_max_pool{n}d")(a, 2, output_size=2),
                shape,
                values=False,
            )
            name = f"fractional_max_pool{n}d_with_indices"
            case(name, lambda a, name=name: getattr(F, name)(a, 2, output_size=2), shape, values=False)
    case("local_response_norm", lambda a: F.local_response_norm(a, 3), image)
    case("stft", lambda a: torch.stft(a, 8, return_complex=True), (3, 32), captures=BOTH)


def wider_source_cases(case: Cases) -> None:
    """Windows, numbers of places, noise."""
    case("randint", lambda a: a + torch.randint(0, 3, (4, 6)), (5, 4, 6), values=False, captures=EXPORT)
    case("randperm", lambda a: a + torch.randperm(a.shape[1]), (4, 6), values=False)
    for name in ("tril_indices", "triu_indices"):
        case(name, lambda a, name=name: a + getattr(torch, name)(3, 3), (4, 2, 6), captures=EXPORT)
    case(
        "empty_strided",
        lambda a: a + torch.empty_strided((4, 6), (6, 1)),
        (5, 4, 6),
        values=False,
        captures=EXPORT,
    )
    for name in ("hann", "hamming", "blackman", "bartlett", "kaiser"):
        case(f"{name}_window", lambda a, name=name: a * getattr(torch, f"{name}_window")(a.shape[1]), (4, 6))
    for name in ("fftfreq", "rfftfreq"):
        case(
            f"fft_{name}",
            lambda a, name=name: a[:, :1] + getattr(torch.fft, name)(6),
            (4, 6),
            captures=EXPORT,
        )
    case("normal", lambda a: a + torch.normal(0.0, 1.0, (4, 6)), (4, 6), values=False, captures=EXPORT)
    case("normal", torch.normal, (4, 6), unit(4, 6), values=False)
    case("randint_like", lambda a: torch.randint_like(a, 3), (4, 6), values=False)
    for name in ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "random_"):
        op = name if name == "normal_" else name[:-1]
        case(op, lambda a, name=name: getattr(torch.empty_like(a), name)(), (4, 6), values=False)
    case("geometric", lambda a: torch.empty_like(a).geometric_(0.5), (4, 6), values=False)
    case("normal_functional", lambda a: aten.normal_functional.default(a), (4, 6), values=False)
    case("poisson", torch.poisson, unit(4, 6), values=False)
    case("binomial", lambda a, b: torch.binomial(a.round(), b), unit(4, 6), unit(4, 6), values=False)
