"""A plan: which elements of every group are kept, and which branches are removed.

Pure data, applied by rewriting.  As JSON it is small beside the weights that it is stored with:

    {"format": "fxprune-plan-2",
     "groups": {"blocks.0.attn.head_dim": {"size": 64, "heads": 6, "kept": BITS}, ...},
     "indices": [BITS, ...],
     "weights": {"blocks.0.attn.qkv.weight": [0, 3], ...}}

BITS: one bit per element, 1 for kept, the first in the highest bit, as base64; of all heads in a row
("heads" is absent where they share one choice).  `weights` gives for each dimension a number in `indices`,
since many share a choice, or null for a whole one.  "removed", "floored", "renamed", "scales", "regrouped",
"unfitted", "discarded", "samples" and "divergence" stand as in `Plan`, and are absent where they are empty;
"refit" as the fields of each `Refit`; a matrix of "bases" as its shape and its numbers in base64, float64 of
the lowest byte first.  A plain list of indices is
read as well as BITS.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
import torch
from torch import LongTensor, Tensor

from fxprune.errors import PlanError
from fxprune.result.bits import flags_of, mask_bits, position_bits, positions_of, read_matrix, written_matrix
from fxprune.result.files import write_whole
from fxprune.result.json_types import JsonObject, json_list, json_object, json_value
from fxprune.result.refitted import Refit

__all__ = ["Kept", "Plan", "plan_data", "plan_from"]


FORMAT = "fxprune-plan-2"
# Fields of `Plan` that are dicts: what their values are; and that are lists of names: what errors call them.
NAMED = {"renamed": str, "scales": float, "regrouped": int, "unfitted": str, "discarded": float}
LISTED = {"removed": "removed branches", "floored": "groups at their floor"}
T = TypeVar("T")
OLD_FORMAT = "fxprune-plan-1"  # index lists, one per weight's dimension


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
    floored: the groups of which the request would have taken more, had `floor=` (or its default) not
        held it up.
    removed: the names of the residual branches that were left out, e.g. `blocks.3.attn`.
    refit: name in the result's `state_dict` -> how it was solved again after selection; such a tensor is
        no plain slice.  `apply` to another model gives the slices.
    unfitted: weight, or node -> why the layer kept its slice, where others were solved again.
    discarded: group -> the estimated KL divergence, for the mean calibration sample, of what it lost; where
        channels were chosen by "kl".
    samples: calibration samples that layers were solved again on.
    divergence: KL divergence from the original for the mean calibration sample of those held out, before
        layers were solved again and after; empty where none were.
    bases: name of a basis, as of `fxprune.rebase` -> the matrix that changed it first, float64 [n, n] or
        [heads, n, n]; the indices are then those of the model in these coordinates.
    """

    groups: dict[str, Kept]
    kept: dict[str, tuple[LongTensor | None, ...]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    regrouped: dict[str, int] = field(default_factory=dict)
    floored: tuple[str, ...] = ()
    refit: dict[str, Refit] = field(default_factory=dict)
    unfitted: dict[str, str] = field(default_factory=dict)
    discarded: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    divergence: tuple[float, ...] = ()
    bases: dict[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("group", "size", "kept")]
        rows += [(name, str(k.size), str(k.count)) for name, k in self.groups.items()]
        rows += [(name, "branch", "none") for name in self.removed]
        rows += [(name, "merged", str(count)) for name, count in self.regrouped.items()]
        rows += [(name, "basis", "changed") for name in self.bases]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the file appears whole or not at all.

        Kept indices stand as bits in base64, each list once: the module's docstring has the format.
        """
        write_whole(path, json.dumps(plan_data(self)))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.  Raises PlanError for anything else."""
        try:
            with open(path) as file:
                return plan_from(json.load(file))
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
        except OSError as error:
            raise PlanError(f"{path} can't be read: {error}") from error
        except ValueError as error:
            raise PlanError(f"{path} holds no whole fxprune plan: {error}") from error


# ---------------------------------------------------------------- as JSON data


def plan_data(plan: Plan, *, weights: bool = True) -> dict[str, object]:
    """Return a plan as JSON data; without `weights`, its groups only, of which the rest follows by replay."""
    record: dict[str, object] = {
        "format": FORMAT,
        "groups": {name: _written_group(kept) for name, kept in plan.groups.items()},
    }
    extras: dict[str, object] = {name: getattr(plan, name) for name in NAMED}
    extras["refit"] = {name: done.as_data() for name, done in plan.refit.items()}
    extras |= {name: list(getattr(plan, name)) for name in LISTED}
    extras |= {"samples": plan.samples, "divergence": list(plan.divergence)}
    extras["bases"] = {name: written_matrix(matrix) for name, matrix in plan.bases.items()}
    record |= {name: value for name, value in extras.items() if value}
    if weights:
        numbers: dict[str, int] = {}
        record["weights"] = {
            name: [None if d is None else numbers.setdefault(position_bits(d), len(numbers)) for d in dims]
            for name, dims in plan.kept.items()
        }
        record["indices"] = list(numbers)
    return record


def plan_from(data: object) -> Plan:
    """Read a plan.  Raises PlanError for what is none, or names elements that a group does not have."""
    try:
        record = json_object(data)
        if record["format"] not in (FORMAT, OLD_FORMAT):
            raise PlanError(f"it is of format {record['format']!r}, not {FORMAT}")
        groups = {n: _read_group(n, **json_object(g)) for n, g in json_object(record["groups"]).items()}
        kept = _read_weights(record)
        bases = {name: read_matrix(m) for name, m in json_object(record.get("bases", {})).items()}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(f"it holds no whole fxprune plan: {type(error).__name__}: {error}") from error
    listed = {field: _listed(record, field, what) for field, what in LISTED.items()}
    named = {field: _named(record, field, kind) for field, kind in NAMED.items()}
    refit = {name: Refit.from_data(name, done) for name, done in _of_kind(record, "refit", dict).items()}
    samples, divergence = record.get("samples", 0), record.get("divergence", [])
    if type(samples) is not int or samples < 0:
        raise PlanError("samples must be a whole number")
    if not isinstance(divergence, list) or any(type(value) is not float for value in divergence):
        raise PlanError("divergence must be a list of floats")
    measured = {"samples": samples, "divergence": tuple(divergence)}
    return Plan(groups, kept, refit=refit, bases=bases, **measured, **listed, **named)  # type: ignore[arg-type]


def _read_weights(record: JsonObject) -> dict[str, tuple[LongTensor | None, ...]]:
    """Return what each weight keeps by dimension: indices (format 1), or the number of a list of them."""
    choices = [positions_of(json_value(bits, str)) for bits in json_list(record.get("indices", []))]
    kept: dict[str, tuple[LongTensor | None, ...]] = {}
    for name, dims in json_object(record.get("weights", {})).items():
        found: list[LongTensor | None] = []
        for dim in json_list(dims):
            if dim is None:
                found.append(None)
            elif record["format"] == FORMAT:
                found.append(cast(LongTensor, torch.tensor(choices[json_value(dim, int)])))
            else:
                found.append(cast(LongTensor, torch.tensor(json_list(dim))))
        kept[name] = tuple(found)
    return kept


def _of_kind(record: JsonObject, field: str, kind: type[T]) -> T:
    """Return a field's value, or an empty one.  Raises PlanError for another kind."""
    try:
        return json_value(record.get(field, kind()), kind)
    except TypeError as error:
        raise PlanError(f"it holds no whole fxprune plan: {field} is {error}") from error


def _listed(record: JsonObject, field: str, what: str) -> tuple[str, ...]:
    names = record.get(field, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PlanError(f"{what} must be a list of names")
    return tuple(names)


def _named(record: JsonObject, field: str, kind: type) -> JsonObject:
    values = record.get(field, {})
    if not isinstance(values, dict) or not all(type(v) is kind for v in values.values()):
        raise PlanError(f"{field} must be of {kind.__name__} by name")
    if field == "renamed" and not all(map(_is_path, values.values())):
        raise PlanError("renamed must be to names of tensors")
    return values


def _is_path(name: object) -> bool:
    """May a graph's code name a tensor so?"""
    return isinstance(name, str) and name.isprintable() and not set(name) & set("\"'\\")


def _written_group(kept: Kept) -> dict[str, object]:
    mask = np.zeros((*kept.indices.shape[:-1], kept.size), dtype=bool)
    np.put_along_axis(mask, kept.indices.numpy(), True, axis=-1)
    heads = {"heads": len(mask)} if mask.ndim == 2 else {}
    return {"size": kept.size, **heads, "kept": mask_bits(mask.ravel())}


def _read_group(name: str, size: object, kept: object, heads: object = None) -> Kept:
    """Read what a group keeps.  Raises PlanError unless it is increasing whole numbers within the group."""
    if type(size) is not int or size < 1 or not (heads is None or (type(heads) is int and heads > 0)):
        raise PlanError(f"{name}: a size is a whole number of at least 1")
    if isinstance(kept, str):
        kept = _unpacked(name, kept, size, heads)
    nested = isinstance(kept, list) and bool(kept) and isinstance(kept[0], list)
    rows: list[list[int]] = []
    for row in kept if nested and isinstance(kept, list) else [kept]:
        if not isinstance(row, list) or not all(type(v) is int for v in row):
            raise PlanError(f"{name}: kept indices must be a list of whole numbers")
        rows.append(row)
        if not row or row[0] < 0 or row[-1] >= size:
            raise PlanError(f"{name}: kept indices must be within 0..{size - 1}, and at least one")
        if any(b <= a for a, b in itertools.pairwise(row)):
            raise PlanError(f"{name}: kept indices must increase")
    if len({len(row) for row in rows}) > 1:
        raise PlanError(f"{name}: every head must keep the same number")
    return Kept(size, torch.tensor(rows if nested else rows[0]))


def _unpacked(name: str, bits: str, size: int, heads: int | None) -> list[object]:
    flat = flags_of(bits)
    count = size * (heads or 1)
    if len(flat) != -(-count // 8) * 8 or flat[count:].any():
        raise PlanError(f"{name}: kept indices must be within 0..{size - 1}: there are {len(flat)} bits")
    if heads is None:
        return [*np.flatnonzero(flat).tolist()]
    return [np.flatnonzero(row).tolist() for row in flat[:count].reshape(heads, size)]
