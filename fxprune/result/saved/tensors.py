"""A pruned model's tensors by name: its `state_dict`, and what its constructor computed.

Constants (position grids, window indices, attention masks) are in no `state_dict`.  They are stored
beside the weights, under `CONSTANT` + name, since a model rebuilt without values can't compute them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from fxprune.errors import FileError, listed

__all__ = ["CONSTANT", "assign", "fit", "named_tensors"]

CONSTANT = "constant:"


@dataclass(frozen=True)
class _Slot:
    """One tensor, and every place in the modules that holds it."""

    name: str
    tensor: Tensor
    places: list[tuple[nn.Module, str]] = field(default_factory=list)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return each tensor once, under its first name, contiguous and sharing memory with no other.

    Raises:
        FileError: a tensor has no values (meta), or the state holds more than tensors.
    """
    for name, value in module.state_dict().items():
        if name.endswith(_EXTRA_STATE_KEY_SUFFIX):
            raise FileError(f"{name} is what a module's get_extra_state gives: such state can't be saved")
        if not isinstance(value, Tensor):
            raise FileError(f"{name} is no tensor: such state can't be saved")
    tensors, memory = {}, set()
    for slot in _slots(module):
        if slot.tensor.device.type == "meta":
            raise FileError(f"{slot.name} has no values to save: it is on the meta device")
        t = slot.tensor.detach().contiguous()
        t = t.clone() if t.numel() and t.untyped_storage().data_ptr() in memory else t
        memory.add(t.untyped_storage().data_ptr())
        tensors[slot.name] = t
    return tensors


def assign(module: nn.Module, tensors: Mapping[str, Tensor], frozen: set[str]) -> None:
    """Put stored tensors in place of the module's own; shared ones stay shared.

    frozen: names of the parameters that ask for no gradient.

    Raises:
        FileError: a name is missing, is one too many, or has another shape.
    """
    slots = {slot.name: slot for slot in _slots(module)}
    _refuse("lacks", sorted(slots.keys() - tensors.keys()))
    _refuse("has, and the model does not,", sorted(tensors.keys() - slots.keys()))
    for name, slot in slots.items():
        t = tensors[name]
        if t.shape != slot.tensor.shape:
            raise FileError(
                f"{name} is stored as {tuple(t.shape)}, and the plan leaves {tuple(slot.tensor.shape)}"
            )
        learned = isinstance(slot.tensor, nn.Parameter)
        new = nn.Parameter(t, requires_grad=name not in frozen) if learned else t
        for owner, leaf in slot.places:
            if isinstance(new, nn.Parameter) and leaf in owner._parameters:
                owner._parameters[leaf] = new
            else:
                owner._buffers[leaf] = new


def fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Do stored tensors have the shapes of the module's own?"""
    return all(
        slot.name not in tensors or slot.tensor.shape == tensors[slot.name].shape for slot in _slots(module)
    )


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise FileError(f"the file of weights {what} {listed(names)}")


def _slots(module: nn.Module) -> list[_Slot]:
    """List parameters and buffers; one that a `state_dict` name leads to goes by the first such name."""
    state = module.state_dict(keep_vars=True)
    names = {id(t): name for name, t in reversed(state.items()) if isinstance(t, Tensor)}
    slots: dict[int, _Slot] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for leaf, t in (*owner._parameters.items(), *owner._buffers.items()):
            if t is None:
                continue
            full = f"{path}.{leaf}" if path else leaf
            slot = slots.setdefault(id(t), _Slot(names.get(id(t), CONSTANT + full), t))
            slot.places.append((owner, leaf))
    return list(slots.values())
