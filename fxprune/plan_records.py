"""Plans as JSON data, small beside the weights that they are stored with.

    {"format": "fxprune-plan-2",
     "groups": {"blocks.0.attn.head_dim": {"size": 64, "heads": 6, "kept": BITS}, ...},
     "indices": [BITS, ...],
     "weights": {"blocks.0.attn.qkv.weight": [0, 3], ...}}

BITS: one bit per element, 1 for kept, the first in the highest bit, as base64; of all heads in a row
("heads" is absent where they share one choice).  `weights` gives for each dimension a number in `indices`,
since many share a choice, or null for a whole one.  "removed", "renamed", "scales" and "regrouped" stand as
in `Plan`, and are absent where they are empty.  A plain list of indices is read as well as BITS.
"""

from __future__ import annotations

import base64
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import PlanError

if TYPE_CHECKING:
    from fxprune.plan import Kept, Plan

__all__ = ["read", "written"]

FORMAT = "fxprune-plan-2"
NAMED = {"renamed": str, "scales": float, "regrouped": int}
OLD_FORMAT = "fxprune-plan-1"  # index lists, one per weight's dimension


def written(plan: Plan, *, weights: bool = True) -> dict[str, Any]:
    """A plan as JSON data; without `weights`, its groups only, of which the rest follows by replay."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "groups": {name: _written_group(kept) for name, kept in plan.groups.items()},
    }
    extras = {"removed": list(plan.removed), "renamed": plan.renamed, "scales": plan.scales}
    extras["regrouped"] = plan.regrouped
    record |= {name: value for name, value in extras.items() if value}
    if weights:
        numbers: dict[str, int] = {}
        record["weights"] = {
            name: [None if d is None else numbers.setdefault(_bits(d), len(numbers)) for d in dims]
            for name, dims in plan.kept.items()
        }
        record["indices"] = list(numbers)
    return record


def read(record: Any) -> Plan:
    """Raises PlanError for what is no plan, or names elements that a group does not have."""
    from fxprune.plan import Plan

    try:
        if record["format"] not in (FORMAT, OLD_FORMAT):
            raise PlanError(f"it is of format {record['format']!r}, not {FORMAT}")
        groups = {n: _read_group(n, **group) for n, group in record["groups"].items()}
        weights = record.get("weights", {})
        if record["format"] == FORMAT:
            choices = [_positions(bits) for bits in record.get("indices", [])]
            weights = {n: [d if d is None else choices[d] for d in dims] for n, dims in weights.items()}
        kept = {n: tuple(None if d is None else torch.tensor(d) for d in dims) for n, dims in weights.items()}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(f"it holds no whole fxprune plan: {type(error).__name__}: {error}") from error
    removed = record.get("removed", [])
    if not isinstance(removed, list) or not all(isinstance(name, str) for name in removed):
        raise PlanError("removed branches must be a list of names")
    named = {field: _named(record, field, kind) for field, kind in NAMED.items()}
    return Plan(groups, kept, removed=tuple(removed), **named)  # type: ignore[arg-type]


def _named(record: dict[str, Any], field: str, kind: type) -> dict[str, Any]:
    values = record.get(field, {})
    if not isinstance(values, dict) or not all(type(v) is kind for v in values.values()):
        raise PlanError(f"{field} must be of {kind.__name__} by name")
    return values


def _written_group(kept: Kept) -> dict[str, Any]:
    mask = np.zeros((*kept.indices.shape[:-1], kept.size), dtype=bool)
    np.put_along_axis(mask, kept.indices.numpy(), True, axis=-1)
    heads = {"heads": len(mask)} if mask.ndim == 2 else {}
    return {"size": kept.size, **heads, "kept": _packed(mask.ravel())}


def _read_group(name: str, size: Any, kept: Any, heads: Any = None) -> Kept:
    """A group's record as data, if it is one: increasing whole numbers within the group."""
    from fxprune.plan import Kept

    if type(size) is not int or size < 1 or not (heads is None or (type(heads) is int and heads > 0)):
        raise PlanError(f"{name}: a size is a whole number of at least 1")
    if isinstance(kept, str):
        kept = _unpacked(name, kept, size, heads)
    rows = kept if isinstance(kept, list) and kept and isinstance(kept[0], list) else [kept]
    for row in rows:
        if not isinstance(row, list) or not all(type(v) is int for v in row):
            raise PlanError(f"{name}: kept indices must be a list of whole numbers")
        if not row or row[0] < 0 or row[-1] >= size:
            raise PlanError(f"{name}: kept indices must be within 0..{size - 1}, and at least one")
        if any(b <= a for a, b in itertools.pairwise(row)):
            raise PlanError(f"{name}: kept indices must increase")
    if len({len(row) for row in rows}) > 1:
        raise PlanError(f"{name}: every head must keep the same number")
    return Kept(size, torch.tensor(kept))


def _unpacked(name: str, bits: str, size: int, heads: int | None) -> list[Any]:
    flat = _flags(bits)
    count = size * (heads or 1)
    if len(flat) != -(-count // 8) * 8 or flat[count:].any():
        raise PlanError(f"{name}: kept indices must be within 0..{size - 1}: there are {len(flat)} bits")
    if heads is None:
        return np.flatnonzero(flat).tolist()
    return [np.flatnonzero(row).tolist() for row in flat[:count].reshape(heads, size)]


def _bits(positions: Tensor) -> str:
    mask = np.zeros(int(positions.max()) + 1, dtype=bool)
    mask[positions.numpy()] = True
    return _packed(mask)


def _positions(bits: str) -> list[int]:
    return np.flatnonzero(_flags(bits)).tolist()


def _packed(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def _flags(bits: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(bits, validate=True), dtype=np.uint8))
