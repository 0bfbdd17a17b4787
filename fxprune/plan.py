"""A plan: which elements of every group are kept, and which branches are removed.

Pure data, applied by rewriting.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

import torch
from torch import LongTensor, fx

from fxprune import plan_records
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
        """Write the plan as JSON; the file appears whole or not at all.

        Kept indices stand as bits in base64, each list once: `fxprune.plan_records` has the format.
        """
        write_whole(path, json.dumps(plan_records.written(self)))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.  Raises PlanError for anything else."""
        try:
            with open(path) as file:
                return plan_records.read(json.load(file))
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
        except OSError as error:
            raise PlanError(f"{path} can't be read: {error}") from error
        except ValueError as error:
            raise PlanError(f"{path} holds no whole fxprune plan: {error}") from error


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
