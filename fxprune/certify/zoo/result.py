"""One row of the zoo's table: what became of one model."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from fxprune.certify.zoo.coverage import OpUse

__all__ = ["COLUMNS", "EXCLUDED", "FAILED", "PASSED", "Result", "in_short"]

# Outcomes.  "excluded" is for what the library itself can't build or run here, and nothing else.
CERTIFIED, SHAPES, EXCLUDED, FAILED = "certified", "shapes", "excluded", "FAILED"
PASSED = (CERTIFIED, SHAPES)


@dataclass(frozen=True)
class Result:
    """What became of one model, pruned at 0.5 without an option.

    model: its spec, `timm:resnet18`.
    outcome: "certified" (in float64, to 1e-8), "shapes" (a giant, on the meta device: every output has
        the original's shape), "excluded" or "FAILED"; `note` says why.
    capture: "symbolic" or "export".
    seconds: processor time from the eager model to the pruned GraphModule.
    params: millions of parameters of the original.
    params_left, macs_left: the share that the pruned model keeps.
    certificate: the largest relative error in float64.
    frozen: the share of parameters in tensors that no group can shrink.
    reasons: what freezes dimensions, each with the share of parameters that it concerns.
    note: the failure, or how the certificate was made; ops without a rule, and what the capture lost.
    batches, sizes, copies, training: what became of each use, see `certify.zoo.uses.Uses`; empty where
        the model itself does not take it, or is too large for it to be tried.
    complaint: what someone would complain about, though the certificate holds; empty: nothing.
    ops: what `fxprune.certify.zoo.coverage` keeps, in a file of its own.
    """

    model: str
    outcome: str
    capture: str = ""
    seconds: float | None = None
    params: float | None = None
    params_left: float | None = None
    macs_left: float | None = None
    certificate: float | None = None
    frozen: float | None = None
    reasons: str = ""
    note: str = ""
    batches: str = ""
    sizes: str = ""
    copies: str = ""
    training: str = ""
    complaint: str = ""
    ops: tuple[OpUse, ...] = ()

    @property
    def passed(self) -> bool:
        return self.outcome in PASSED

    @property
    def sound(self) -> bool:
        """Passed, with nothing to complain about."""
        return self.passed and not self.complaint

    def row(self) -> dict[str, str]:
        """Write the row as text, rounded: the table changes only where something did."""
        return {name: _text(name, getattr(self, name)) for name in COLUMNS}

    @staticmethod
    def of_row(row: dict[str, str]) -> Result:
        numbers = {f.name for f in fields(Result) if "float" in str(f.type)}
        row = {FORMER.get(name, name): value for name, value in row.items()}
        values = {k: (float(v) if v else None) if k in numbers else v for k, v in row.items()}
        return Result(**values)  # type: ignore[arg-type]


FORMER = {"whole": "frozen"}  # columns of tables that earlier versions wrote
COLUMNS = [f.name for f in fields(Result) if f.name != "ops"]
_FORMATS = {"seconds": ".2f", "params": ".2f", "certificate": ".0e"}


def _text(name: str, value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, _FORMATS.get(name, ".3f"))


def in_short(words: str, length: int = 200) -> str:
    """Shorten what was said, and name files by where they stand in their package."""
    return re.sub(r"/\S*/(?:site-packages|tests)/", "", words)[:length]
