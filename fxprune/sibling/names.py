"""What a model's tensors and modules are called in its smaller sibling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

__all__ = ["prefixes", "renamed_path", "tensor_names"]


def tensor_names(
    module: fx.GraphModule, pairs: Sequence[tuple[fx.Node, fx.Node]]
) -> Iterator[tuple[str, str]]:
    """(name in the model, name in the sibling) of every weight that corresponding nodes read."""
    for ours, theirs in pairs:
        if ours.op == "get_attr":
            yield str(ours.target), str(theirs.target)
        elif ours.op == "call_module":
            owner = module.get_submodule(str(ours.target))
            for name, _ in (*owner.named_parameters(), *owner.named_buffers()):
                yield f"{ours.target}.{name}", f"{theirs.target}.{name}"


def prefixes(names: Mapping[str, str]) -> dict[str, str]:
    """What renamed tensors say about the modules that hold them.

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
    """A path with the longest prefix that was renamed replaced."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        known = modules.get(".".join(parts[:i]))
        if known is not None:
            return ".".join((known, *parts[i:]))
    return path
