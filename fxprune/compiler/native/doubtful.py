"""Find the methods that read numbers which may be widths that shrank, or none: no run and no source tells.

Such a number is as the original has it, and a method that reads it is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from fxprune.compiler.native.barred import methods_that_name, names_of_forward
from fxprune.compiler.native.proposals import Proposals
from fxprune.compiler.native.sizes import Sizes
from fxprune.errors import listed
from fxprune.result.own_code import OwnCode

__all__ = ["with_doubts"]


def with_doubts(model: nn.Module, instance: nn.Module, own: OwnCode, sizes: Mapping[str, Sizes]) -> OwnCode:
    """Record which methods would read numbers that nobody can tell from widths."""
    proposals = Proposals(model, instance, sizes)
    edited = {edit.slot for edit in own.edits}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for slot, _ in proposals.first():
        if slot in edited or slot.held > 1 or not proposals.is_doubtful(slot, slot.read(model)):
            continue
        module = model.get_submodule(slot.path)
        run = {"forward"} | names_of_forward(module)
        for name in methods_that_name(module, str(slot.keys[0])):
            if name not in run:
                found[slot.path, name].append(str(slot))
    unsure = [(path, name, listed(numbers)) for (path, name), numbers in found.items()]
    return replace(own, unsure=tuple(unsure))
