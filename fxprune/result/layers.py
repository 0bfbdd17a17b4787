"""Find layers of a result that are no longer the plan's: `pruned.head = nn.Linear(96, 7)`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fxprune.graph.refuse_train_mode import refusing_paths
from fxprune.graph.tensors import called_modules, named_tensors
from fxprune.result.fingerprint import settings_digest
from fxprune.result.forms import graph_form
from fxprune.result.pruned_module import PrunedModule, record_of

__all__ = ["called_layers", "layers_of", "replaced_layers"]


def called_layers(pruned: PrunedModule) -> dict[str, nn.Module | None]:
    """Return the modules that the graph computes with, by path; None for one that is no more."""
    modules = dict(pruned.named_modules(remove_duplicate=False))
    return {path: modules.get(path) for path in sorted({*called_modules(pruned)} - refusing_paths(pruned))}


def layers_of(pruned: PrunedModule) -> dict[str, str]:
    """Digest each layer that the graph calls, by path; of a tensor in none of them, its shape by name."""
    called = called_layers(pruned)
    found = {path: settings_digest(layer) for path, layer in called.items() if layer is not None}
    within = tuple(f"{path}." for path in called)
    for name, tensor in named_tensors(pruned):
        if not name.startswith(within):
            found[name] = str(list(tensor.shape))
    return found


def replaced_layers(pruned: nn.Module) -> dict[str, str]:
    """Compare layers with the plan's: what is there now in words, by path, where they differ."""
    made: Mapping[str, str] = record_of(pruned).layers
    if not made:
        return {}
    graph = graph_form(pruned)
    now, called = layers_of(graph), called_layers(graph)
    changed = [name for name in sorted({*made, *now}) if made.get(name) != now.get(name)]
    return {name: _words(called.get(name), now.get(name)) for name in changed}


def _words(layer: nn.Module | None, digest: str | None) -> str:
    if layer is None:
        return "nothing" if digest is None else f"a tensor {digest}"
    inner = layer.extra_repr() or ", ".join(type(child).__name__ for child in layer.children())
    return f"{type(layer).__name__}({inner})"
