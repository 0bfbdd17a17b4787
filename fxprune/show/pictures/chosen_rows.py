"""Which part of a tree a picture shows: all of it, or the modules that patterns choose."""

from __future__ import annotations

import fnmatch

from fxprune.errors import PatternError, listed
from fxprune.show.pictures.tree import Row, Tree

__all__ = ["chosen_rows"]


def chosen_rows(tree: Tree, patterns: list[str]) -> list[Row]:
    """Return the rows of modules and layers that match; everything inside them belongs to them.

    Raises PatternError, with names that would match, for a pattern that chooses nothing.
    """
    places = [row for row in tree.rows if row.kind in ("module", "layer")]
    chosen: list[Row] = []
    for pattern in patterns:
        found = [row for row in places if fnmatch.fnmatchcase(row.path, pattern)]
        if not found:
            names = listed(dict.fromkeys(row.path for row in places), 8)
            raise PatternError(f"modules={pattern!r} matches no module of the graph; there are {names}")
        chosen += [row for row in found if row not in chosen]
    return sorted(chosen, key=lambda row: row.index)
