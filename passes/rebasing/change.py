"""Change the basis of groups: fold what stands in the way, then multiply weights by matrices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.freedom.positions import labelled_in
from fxprune.analysis.freedom.regions import Freedom, Region
from fxprune.analysis.groups import Group
from fxprune.errors import OptionError
from fxprune.graph.tensors import in_float64, tensor_at
from fxprune.passes.rebasing.along import changed, scaled, taken
from fxprune.rules.axes import Atom

__all__ = ["bases_of", "changed_weights", "heads_of"]

EXACT = 1e-9  # how far from a rotation a matrix may be that must be one


def bases_of(analysis: Analysis) -> dict[str, tuple[Group, Region]]:
    """Return every region that a matrix may change, by the name that `fxprune.rebase` takes."""
    return {name: (group, region) for group in analysis.groups for name, region in group.bases.items()}


def heads_of(analysis: Analysis, group: Group, region: Region) -> Atom | None:
    """Return what counts the heads that may each have a matrix of their own, or None if all share one."""
    if group.inside is None:
        return None
    heads = group.inside.atom
    labelled = (labelled_in(analysis.weights[p.name], p.dim, group.atom, p.run, heads) for p in region.places)
    return heads if all(dim is not None for dim in labelled) else None


def changed_weights(analysis: Analysis, bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that changes of basis make, in float64, by their names in the graph.

    Args:
        analysis: of the model.
        bases: name of a basis -> its matrix [n, n], or one per head [heads, n, n].

    Raises:
        OptionError: no basis has the name, or the matrix is none that it allows.
    """
    known = bases_of(analysis)
    weights = {name: in_float64(tensor_at(analysis.module, name).detach()) for name in analysis.weights}
    for name, matrix in bases.items():
        if name not in known:
            raise OptionError(_unknown(analysis, name))
        _check(name, matrix, *known[name], heads_of(analysis, *known[name]))
    touched: set[str] = set()
    for name in bases:
        for fold in known[name][1].folds:
            vector = fold.vector.name
            elements, ones = taken(weights[vector], analysis.weights[vector], fold.vector, fold.atom)
            for place in fold.places:
                axes = analysis.weights[place.name]
                weights[place.name] = scaled(weights[place.name], axes, place, fold.atom, elements)
            weights[vector] = ones
            touched |= {vector, *(place.name for place in fold.places)}
    for name, matrix in bases.items():
        group, region = known[name]
        heads = heads_of(analysis, group, region) if matrix.ndim == 3 else None
        matrix = matrix.detach().double()
        for place in region.places:
            axes = analysis.weights[place.name]
            mine = matrix.to(weights[place.name].device)
            weights[place.name] = changed(weights[place.name], axes, place, group.atom, mine, heads)
            touched.add(place.name)
    return {name: weights[name] for name in sorted(touched)}


def _unknown(analysis: Analysis, name: str) -> str:
    group = next((g for g in analysis.groups if g.name == name.partition(":")[0]), None)
    if group is not None and not group.bases:
        return f"{group.name} allows no change of basis but {group.freedom}: {group.limited_by}"
    return f"no basis is called {name!r}: there are {', '.join(bases_of(analysis)) or 'none'}"


def _check(name: str, matrix: Tensor, group: Group, region: Region, heads: Atom | None) -> None:
    """Raise an OptionError for a matrix that is none of those that a region allows."""
    n = group.size
    shapes = [(n, n)] + ([(heads.size, n, n)] if heads is not None else [])
    if tuple(matrix.shape) not in shapes:
        raise OptionError(f"{name} takes a matrix of shape {shapes[-1]}, not {tuple(matrix.shape)}")
    matrix = matrix.detach().double()
    if region.freedom is Freedom.ROTATION:
        one = torch.eye(n, dtype=torch.float64, device=matrix.device)
        if not bool(((matrix @ matrix.mT - one).abs() < EXACT).all()):
            raise OptionError(f"{name} allows rotations only ({region.limited_by}); this matrix is none")
        if region.centred and not bool(((matrix.sum(-1) - 1).abs() < EXACT).all()):
            raise OptionError(
                f"{name} allows only rotations that keep the vector of ones ({region.limited_by} subtracts "
                f"a mean); this one does not"
            )
    elif not bool(torch.isfinite(torch.linalg.inv_ex(matrix)[0]).all()):
        raise OptionError(f"{name} takes a matrix that has an inverse")
