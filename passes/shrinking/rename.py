"""Give tensors and modules other names: `blocks.7.mlp.fc1` becomes `blocks.3.mlp.fc1`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn

from fxprune.graph.tensors import get_or_create_submodule
from fxprune.result.pruned_module import PrunedModule

__all__ = ["prefixes", "rename", "renamed_path"]


def rename(pruned: PrunedModule, *, names: Mapping[str, str]) -> PrunedModule:
    """Give tensors and the modules that hold them new names.

    `names` are of tensors, old to new; a module without tensors (a dropout) moves along with its neighbours.

    Needs: new names that differ from one another.  Guarantees: a new module with the same graph on the same
    tensors.
    """
    modules = prefixes(names)
    root = nn.Module()
    placed: dict[str, str] = {}  # old target -> new target
    targets = dict.fromkeys(str(n.target) for n in pruned.graph.nodes if n.op in ("call_module", "get_attr"))
    for old in sorted(targets, key=lambda t: _is_stateless(pruned, t)):  # names of tensors are not negotiable
        new = names.get(old, renamed_path(old, modules))
        while new in placed.values():
            new += "_"
        placed[old] = new
        _move(pruned, old, root, new)
    graph = fx.Graph()
    new_of: dict[fx.Node, fx.Node] = {}
    for node in pruned.graph.nodes:
        new_of[node] = graph.node_copy(node, lambda n: new_of[n])
        if node.op in ("call_module", "get_attr"):
            new_of[node].target = placed[str(node.target)]
    renamed = PrunedModule(root, graph, type(pruned).__name__)
    ties = {
        names.get(second, renamed_path(second, modules)): names.get(first, renamed_path(first, modules))
        for second, first in pruned.ties.items()
    }
    renamed.meta = dict(pruned.meta)
    renamed.folded = {names.get(name, name): fold for name, fold in pruned.folded.items()}
    modes = pruned.modes
    renamed.restore(ties, modes | {new: modes[old] for old, new in placed.items() if old in modes})
    return renamed


def _is_stateless(root: nn.Module, target: str) -> bool:
    value = _at(root, target)
    return isinstance(value, nn.Module) and not value.state_dict()


def _move(source: nn.Module, old: str, root: nn.Module, new: str) -> None:
    """Place a module or a tensor of the source at another path."""
    value = _at(source, old)
    path, _, leaf = new.rpartition(".")
    place = get_or_create_submodule(root, path)
    if isinstance(value, nn.Module):
        place.add_module(leaf, value)
    elif isinstance(value, nn.Parameter):
        place.register_parameter(leaf, value)
    else:
        owner, _, own = old.rpartition(".")
        persistent = own not in source.get_submodule(owner)._non_persistent_buffers_set
        place.register_buffer(leaf, value, persistent=persistent)


def _at(root: nn.Module, target: str) -> nn.Module | Tensor:
    path, _, leaf = target.rpartition(".")
    found: nn.Module | Tensor = getattr(root.get_submodule(path), leaf)
    return found


def prefixes(names: Mapping[str, str]) -> dict[str, str]:
    """Derive the modules' new paths from the renamed tensors that they hold.

    >>> prefixes({"blocks.7.attn.qkv.weight": "blocks.3.attn.qkv.weight"})
    {'blocks.7.attn.qkv': 'blocks.3.attn.qkv', 'blocks.7.attn': 'blocks.3.attn', 'blocks.7': 'blocks.3'}
    """
    found: dict[str, str] = {}
    for old, new in names.items():
        (old, _, last), (new, _, new_last) = old.rpartition("."), new.rpartition(".")
        while last == new_last and old and new:
            found.setdefault(old, new)
            (old, _, last), (new, _, new_last) = old.rpartition("."), new.rpartition(".")
    return found


def renamed_path(path: str, modules: Mapping[str, str]) -> str:
    """Return a path with the longest prefix that was renamed replaced."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        known = modules.get(".".join(parts[:i]))
        if known is not None:
            return ".".join((known, *parts[i:]))
    return path
