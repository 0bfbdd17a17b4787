"""Find numbers in a dict beside the path of a module: `{"module": "layer1", "num_chs": 64}`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from torch import nn

from fxprune.result.own_code import Slot

__all__ = ["numbers_beside_paths"]


def numbers_beside_paths(
    model: nn.Module, held: Iterable[list[tuple[Slot, int]]]
) -> Iterator[tuple[Slot, str]]:
    """List the numbers that stand in a dict beside the path of one module: they say something of that.

    A model inside another one has paths that begin at itself.
    """
    paths = {path for path, _ in model.named_modules() if path}
    ends = Counter(end for path in paths for end in _ends(path))
    paths_of = {end: path for path in paths for end in _ends(path) if ends[end] == 1 or end == path}
    paths_of |= {path: path for path in paths}
    for slot, _ in itertools.chain.from_iterable(held):
        holder = slot.holder(model) if len(slot.keys) > 1 else None
        texts = [v for v in holder.values() if isinstance(v, str)] if isinstance(holder, dict) else []
        if len(found := {paths_of[text] for text in texts if text in paths_of}) == 1:
            yield slot, found.pop()


def _ends(path: str) -> Iterator[str]:
    parts = path.split(".")
    yield from (".".join(parts[i:]) for i in range(len(parts)))
