"""Find what pickles of format 1 name: classes and functions by the files that they stood in then."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__all__ = ["install_old_names"]

# Module that is no more -> what was in it -> where that is now.
MOVED = {
    "fxprune.pruned_module": {
        "_unpickled": "fxprune.result.pruned_module",
        "PrunedModule": "fxprune.result.pruned_module",
    },
    "fxprune.groups": {"Site": "fxprune.analysis.groups"},
    "fxprune.capture.merge_modes": {"ModeValue": "fxprune.graph.own_nodes"},
    "fxprune.capture.writes": {"written": "fxprune.graph.own_nodes"},
    "fxprune.capture.decisions": {"holds": "fxprune.graph.own_nodes"},
    "fxprune.passes.shrink": {"_getitem": "fxprune.graph.own_nodes"},
}
RENAMED = {"holds": "guard_branch"}


class _Moved(types.ModuleType):
    """A module that is no more."""

    def __getattr__(self, name: str) -> Any:
        now = MOVED[self.__name__].get(name)
        if now is None:
            raise AttributeError(f"module {self.__name__!r} is no more, and had no {name!r} that was pickled")
        return getattr(importlib.import_module(now), RENAMED.get(name, name))


def install_old_names() -> None:
    """Let `pickle` import the modules that are no more."""
    for name in MOVED:
        sys.modules.setdefault(name, _Moved(name))
