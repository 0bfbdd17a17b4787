"""A plan: which elements of every group are kept, and which branches are removed.

Pure data, applied by rewriting.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import LongTensor, fx

from fxprune.errors import PlanError
from fxprune.files import write_whole

__all__ = ["Kept", "Plan", "plan_of"]


@dataclass(frozen=True)
class Kept:
    """What is kept of one group.

    size: elements before.
    indices: sorted int64 [k]; or [heads, k] where each head keeps indices of its own.
    """

    size: int
    indices: torch.Tensor

    @property
    def count(self) -> int:
        return self.indices.shape[-1]


@dataclass(frozen=True)
class Plan:
    """Kept indices, by group and by weight, and removed branches.

    groups: group name -> `Kept`, for the groups that shrink.
    kept: name in the original's `state_dict` -> one sorted int64 index tensor (None: whole) per
        dimension; a name that is absent is whole (or was removed with its branch).
    renamed: name in the original's `state_dict` -> name in the result's, where they differ (`like=`).
    scales: node -> the constant that it multiplies by in the result, where it was another one; the
        ratio is folded into the weights that bring its query (`like=`): these are no plain slices.
    regrouped: group of heads -> how many wider ones they were merged to first (`attention="merge"`); the
        groups are then those of the merged model.
    removed: the names of the residual branches that were left out, e.g. `blocks.3.attn`.
    """

    groups: dict[str, Kept]
    kept: dict[str, tuple[LongTensor | None, ...]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    regrouped: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("group", "size", "kept")]
        rows += [(name, str(k.size), str(k.count)) for name, k in self.groups.items()]
        rows += [(name, "branch", "none") for name in self.removed]
        rows += [(name, "merged", str(count)) for name, count in self.regrouped.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the file appears whole or not at all."""
        record = {
            "format": "fxprune-plan-1",
            "groups": {n: {"size": k.size, "kept": k.indices.tolist()} for n, k in self.groups.items()},
            "weights": {
                n: [None if i is None else i.tolist() for i in dims] for n, dims in self.kept.items()
            },
            "removed": list(self.removed),
            "renamed": self.renamed,
            "scales": self.scales,
            "regrouped": self.regrouped,
        }
        write_whole(path, json.dumps(record))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.  Raises PlanError for anything else."""
        try:
            with open(path) as file:
                record = json.load(file)
            if record["format"] != "fxprune-plan-1":
                raise PlanError(f"{path} is of format {record['format']!r}, not fxprune-plan-1")
            groups = {n: _kept(n, k["size"], k["kept"]) for n, k in record["groups"].items()}
            kept = {n: tuple(map(_indices, dims)) for n, dims in record["weights"].items()}
            removed = _branches(record.get("removed", []))
            renamed = _named(record.get("renamed", {}), str)
            scales = _named(record.get("scales", {}), float)
            regrouped = _named(record.get("regrouped", {}), int)
        except (
            json.JSONDecodeError,
            KeyError,
            TypeError,
            AttributeError,
            UnicodeDecodeError,
        ) as error:
            raise PlanError(f"{path} holds no whole fxprune plan: {error}") from error
        return Plan(groups, kept, removed, renamed, scales, regrouped)


def _kept(name: str, size: Any, values: Any) -> Kept:
    """A group's record as data, if it is one: increasing whole numbers within the group."""
    rows = values if isinstance(values, list) and values and isinstance(values[0], list) else [values]
    for row in rows:
        if not isinstance(row, list) or not all(type(v) is int for v in row):
            raise PlanError(f"{name}: kept indices must be a list of whole numbers")
        if not row or row[0] < 0 or row[-1] >= size:
            raise PlanError(f"{name}: kept indices must be within 0..{size - 1}, and at least one")
        if any(b <= a for a, b in itertools.pairwise(row)):
            raise PlanError(f"{name}: kept indices must increase")
    if len({len(row) for row in rows}) > 1:
        raise PlanError(f"{name}: every head must keep the same number")
    return Kept(size, torch.tensor(values))


def _branches(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise PlanError("removed branches must be a list of names")
    return tuple(values)


def _named(values: Any, kind: type) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(v, kind) for v in values.values()):
        raise PlanError(f"renamed, scales and regrouped must be of {kind.__name__} by name")
    return values


def _indices(values: Any) -> Any:
    return None if values is None else torch.tensor(values)


def plan_of(pruned: fx.GraphModule) -> Plan:
    """The plan that a pruned model was made by.

    Raises:
        PlanError: the module was not made by `fxprune.prune` or `fxprune.apply`.
    """
    record = getattr(pruned, "meta", {}).get("fxprune", {})
    plan = record.get("plan")
    if not isinstance(plan, Plan):
        raise PlanError(
            f"{type(pruned).__name__} carries no plan: it was not made by fxprune.prune or fxprune.apply"
        )
    return plan
