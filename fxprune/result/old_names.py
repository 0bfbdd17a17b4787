"""Find modules, and what pickles of format 1 name, under the names that they had before they moved."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec

__all__ = ["install_old_names"]

# Module or folder that moved whole -> where it is now.
RELOCATED = {
    "fxprune.axes": "fxprune.rules.axes",
    "fxprune.graph.train_mode": "fxprune.graph.refuse_train_mode",
    "fxprune.plan": "fxprune.result",
    "fxprune.rewrite": "fxprune.compiler.apply",
    "fxprune.saved": "fxprune.result.saved",
    "fxprune.zoo": "fxprune.certify.zoo",
}

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

    def __getattr__(self, name: str) -> object:
        now = MOVED[self.__name__].get(name)
        if now is None:
            raise AttributeError(f"module {self.__name__!r} is no more, and had no {name!r} that was pickled")
        return getattr(importlib.import_module(now), RENAMED.get(name, name))


class _Relocated(MetaPathFinder, InspectLoader):
    """Import a module that moved from where it is now: it is one module under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        now = _spec_now(fullname)
        if now is None:
            return None
        package = now.submodule_search_locations is not None
        return ModuleSpec(fullname, self, origin=now.name, loader_state=now, is_package=package)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return importlib.import_module(str(spec.origin))

    def get_source(self, fullname: str) -> str | None:
        """Return the source of a module that runs under its old name: `python -m old.name`."""
        now = _spec_now(fullname)
        loader = now and now.loader
        return loader.get_source(now.name) if now and isinstance(loader, InspectLoader) else None

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import machinery has put the old name's there


def _spec_now(fullname: str) -> ModuleSpec | None:
    """Find a module that moved where it is now; None for a name under which nothing has been."""
    for old, new in RELOCATED.items():
        if fullname == old or fullname.startswith(f"{old}."):
            return importlib.util.find_spec(new + fullname.removeprefix(old))
    return None


def install_old_names() -> None:
    """Let `import` and `pickle` find what is no more under its old name."""
    if not any(isinstance(finder, _Relocated) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Relocated())
    for name in MOVED:
        sys.modules.setdefault(name, _Moved(name))
