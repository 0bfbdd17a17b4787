"""Say what the code of a train mode that no capture takes may do wrong on the new sizes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fxprune.capture.modes.follow import branches_on_mode
from fxprune.compiler.native.barred import names_of_forward, raises_to_powers
from fxprune.compiler.native.reads import Reads
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.unproved import named_numbers
from fxprune.errors import listed
from fxprune.graph.classes import is_torchs
from fxprune.result.own_code import OwnCode

__all__ = ["uncaptured"]


def uncaptured(
    model: nn.Module, instance: nn.Module, own: OwnCode, seen: Reads, sizes: Mapping[str, Sizes]
) -> str:
    """Name sizes that the code of train mode may read and that of eval mode does not; or nothing.

    Or say that it may compute a scale from sizes that shrank, which eval mode views by.

    seen: what eval mode reads.
    """
    asking = {
        path: names_of_forward(module) for path, module in model.named_modules() if branches_on_mode(module)
    }
    found = [
        str(slot)
        for slot, _ in named_numbers(model, instance, sizes)
        if slot.path in asking and not seen.has(slot)
    ]
    if found:
        return f"it may read {listed(found)}, of which no graph says what it should be there"
    edited = {(edit.slot.path, edit.slot.keys[0]) for edit in own.edits}
    for path, named in asking.items():
        module = model.get_submodule(path)
        by_number = any(there == path and name in named for there, name in edited)
        shrinks = any(old not in news for old, news in sizes[path].whole.items())
        if (
            not is_torchs(module)
            and raises_to_powers(module)
            and (by_number or (shrinks and named & {"shape", "size"}))
        ):
            where = path or type(module).__name__
            return f"{where} may compute a scale from sizes, of which no graph says what it should be"
    return ""
