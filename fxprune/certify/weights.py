"""Hold a pruned model's weights against the plan's slices of the original's, and put others into both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.certify.float64 import doubled
from fxprune.certify.randomise import randomise
from fxprune.certify.relative_error import compact
from fxprune.errors import CertificateError
from fxprune.graph.tensors import in_float64, is_float, named_tensors, tensor_at
from fxprune.result.record import Record
from fxprune.result.refitted import Refit
from fxprune.result.selection import Selection

__all__ = ["PlannedWeights", "settle_rounding"]


ROUNDING = 1e-10  # of float64 matrix products, beside a last bit of the dtype


class PlannedWeights:
    """What the plan makes of each tensor of the original.

    originals: name in the result -> the original's tensor.
    kept: name in the result -> kept positions (None: all) per dimension.
    old_of: name in the result -> the original's, where the plan renames it.
    folded: name in the result -> the rows that a factor is folded into, and the factor.
    refitted: names in the result that were solved again, and hold that still: `originals` then has what was
        solved for in the places that the plan keeps.
    """

    def __init__(
        self, model: nn.Module, pruned: fx.GraphModule, analysis: Analysis, selection: Selection
    ) -> None:
        record = getattr(pruned, "record", None)
        self.analysis = analysis
        self.folded: Mapping[str, tuple[Tensor, float]] = {}
        self.old_of: dict[str, str] = {}
        if isinstance(record, Record):
            self.folded = record.folded
            self.old_of = {new: old for old, new in record.plan.renamed.items()}
        tensors = dict(named_tensors(model)) | dict(named_tensors(analysis.module))
        self.originals: dict[str, Tensor] = {}
        self.kept: dict[str, list[Any]] = {}
        self.refitted: set[str] = set()
        for name, _ in named_tensors(pruned):
            old = self.old_of.get(name, name)
            if old in tensors:
                axes = analysis.weights.get(analysis.names.get(old, old), ())
                self.originals[name] = tensors[old]
                self.kept[name] = [selection.positions(axis) for axis in axes]
        if isinstance(record, Record):
            self._take_refitted(pruned, record.plan.refit)

    def _take_refitted(self, pruned: fx.GraphModule, refit: Mapping[str, Refit]) -> None:
        """Put what was solved again into the original, where the result holds it still."""
        tensors = dict(named_tensors(pruned))
        self.refitted = {
            name for name, done in refit.items() if name in self.originals and done.is_of(tensors[name])
        }
        for name in self.refitted:
            self.originals[name] = self._put_back(name, tensors[name], self.originals[name])

    def _put_back(self, name: str, stored: Tensor, full: Tensor) -> Tensor:
        """Return the original's tensor in float64, with a result's in the places that it came from."""
        part = in_float64(stored.detach().clone()).to(full.device)
        if name in self.folded:
            rows, ratio = self.folded[name]
            part[rows.to(part.device)] /= ratio
        return _put(in_float64(full.detach().clone()), part, self.kept[name])

    def sliced(self, name: str, full: Tensor) -> Tensor:
        """Return what the result should hold, in float64, of a tensor of the original's size."""
        part = in_float64(compact(full, self.kept[name]).clone())
        if name in self.folded:
            rows, ratio = self.folded[name]
            part[rows.to(part.device)] *= ratio
        return part

    def changed(self, pruned: fx.GraphModule) -> dict[str, float]:
        """Return the tensors that are not the plan's slices, each with its largest relative difference.

        Raises:
            CertificateError: one has another shape: it was replaced.
        """
        found: dict[str, float] = {}
        for name, stored in named_tensors(pruned):
            stored = stored.detach()
            if name not in self.originals:
                continue
            wanted = self.sliced(name, self.originals[name].detach())
            if stored.shape != wanted.shape:
                raise CertificateError(
                    f"{name} has shape {tuple(stored.shape)}, the plan's slice {tuple(wanted.shape)}: it was "
                    f"replaced since, and there is no original to compare it to; verify before you replace"
                )
            given = in_float64(stored).to(wanted.device)
            off = (given - wanted).abs() if is_float(wanted) else (given != wanted).double()
            off[(given == wanted) | (given.isnan() & wanted.isnan())] = 0  # infinite bounds as well
            bound = torch.zeros_like(off)
            if name in self.folded:  # it holds the product as rounded to its dtype
                bound = torch.finfo(self.originals[name].dtype).eps * wanted.abs()
            if not bool((off <= bound).all()):
                size = wanted.abs() if is_float(wanted) else wanted.double().abs()  # (a mask has none)
                largest = size.nan_to_num(posinf=0).max().clamp_min(torch.finfo(torch.float64).tiny)
                found[name] = float((off.max() / largest).nan_to_num(nan=float("inf")))
        return found

    def own(self) -> dict[str, Tensor]:
        """Return the original's tensors by its own names, in float64."""
        return {self.old_of.get(name, name): in_float64(t.detach()) for name, t in self.originals.items()}

    def with_those_of(self, pruned: fx.GraphModule) -> dict[str, Tensor]:
        """Return the original's tensors with the result's in the places that they were kept from."""
        found = self.own()
        for name, stored in named_tensors(pruned):
            if name not in self.originals:
                continue
            old = self.old_of.get(name, name)
            found[old] = self._put_back(name, stored, found[old])
        return found

    def constants(self) -> set[str]:
        """Return parameters and running statistics that hold one value only: what they do does not show."""
        found = set()
        for name, t in self._random_ones():
            if t.numel() > 1 and bool((t == t.flatten()[0]).all()):
                found.add(name)
        return found

    def randomised(self, names: set[str] | None = None, seed: int = 1) -> dict[str, Tensor]:
        """Return the original's tensors, with random numbers in some (None: in all parameters)."""
        shadow = doubled(self.analysis.module)
        randomise(shadow, seed)
        random = dict(named_tensors(shadow))
        by_tensor = {
            id(t): random[name].detach() for name, t in self._random_ones() if names is None or name in names
        }
        return {
            old: by_tensor.get(id(t), in_float64(t.detach()))
            for old, t in ((self.old_of.get(name, name), t) for name, t in self.originals.items())
        }

    def _random_ones(self) -> list[tuple[str, Tensor]]:
        """Return parameters and running statistics, under their own names."""
        module = self.analysis.module
        buffers = [(n, t) for n, t in module.named_buffers() if n.endswith(("running_mean", "running_var"))]
        return [(n, t) for n, t in (*module.named_parameters(), *buffers) if is_float(t)]

    def put_into_pruned(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Give a float64 copy of the result the plan's slices of them."""
        for name in self.originals:
            old, stored = self.old_of.get(name, name), tensor_at(module, name)
            if is_float(stored) and old in tensors:
                stored.data = self.sliced(name, tensors[old]).to(stored)


def settle_rounding(weights: PlannedWeights, pruned: fx.GraphModule) -> None:
    """Write a result's numbers into the original where they are the same but for rounding.

    The original is a copy that was brought to other coordinates anew: matrix products round as the machine
    will.
    """
    for name, stored in named_tensors(pruned):
        original = weights.originals.get(name)
        if original is None or not is_float(original):
            continue
        wanted = weights.sliced(name, original.detach())
        if stored.shape != wanted.shape or name in weights.folded or not wanted.numel():
            continue
        given = in_float64(stored.detach()).to(wanted.device)
        sizes = wanted.abs()
        allowed = ROUNDING * sizes.max() + 2 * torch.finfo(original.dtype).eps * sizes
        if bool(((given - wanted).abs() <= allowed).all()):
            with torch.no_grad():
                original.copy_(
                    _put(original.detach().clone(), stored.detach().to(original), weights.kept[name])
                )


def _put(full: Tensor, part: Tensor, kept: list[Any]) -> Tensor:
    """Put a slice back where it was taken from."""
    if not any(k is not None for k in kept):
        return part
    index = []
    for dim in range(full.ndim):
        positions = kept[dim] if dim < len(kept) else None
        at = torch.arange(full.shape[dim]) if positions is None else torch.as_tensor(positions)
        index.append(at.to(full.device).reshape([-1 if d == dim else 1 for d in range(full.ndim)]))
    full[tuple(index)] = part
    return full
