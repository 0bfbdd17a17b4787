"""What a change of basis of an axis is: its freedom, the regions that change together, and their sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from fxprune.rules.axes import Atom, Reason

__all__ = ["Fold", "Freedom", "Place", "Region"]


class Freedom(IntEnum):
    """Which matrices an axis may be changed by; each word allows what those before it do."""

    NONE = 0
    PERMUTATION = 1
    ROTATION = 2
    ANY = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Place:
    """A dimension of a weight, or the part of it at some index of atoms that are taken apart by index.

    name, dim: the weight, by its name in the graph.
    part: (atom, index) for each atom of the weight that an op takes apart: of (3 heads head_dim), which of
        three.
    run: which of the atom's places in the dimension: of [q | k], one atom in two parts, which.
    side: +1 where a matrix A changes the weight by A along the dimension, -1 where by the inverse of A^T.
    """

    name: str
    dim: int
    part: tuple[tuple[Atom, int], ...] = ()
    run: int = 0
    side: int = 1


@dataclass(frozen=True)
class Fold:
    """A vector that is moved into weights beside it, and so becomes one.

    vector: where it is: a norm's weight, or a layer scale.
    atom: what lies along it.
    places: the weights that take it, by the side on which they do: multiplied by it (+1) or divided (-1).
    alike: the vector has other factors beside the atom, and so has every place: they go element by element.
    """

    vector: Place
    atom: Atom
    places: tuple[Place, ...]
    alike: bool


@dataclass(frozen=True)
class Region:
    """Places that one matrix changes together.

    freedom: the matrices that it may be.
    centred: a rotation must keep the vector of ones as well.
    limited_by: what does not let it be any; None if it may.
    folds: vectors to move out of the way first, in order.
    """

    freedom: Freedom
    centred: bool
    limited_by: Reason | None
    places: tuple[Place, ...]
    folds: tuple[Fold, ...] = ()

    @property
    def sides(self) -> Mapping[tuple[str, int], int]:
        """The side of each dimension of a weight, by (name in the graph, dimension)."""
        return {(place.name, place.dim): place.side for place in self.places}
