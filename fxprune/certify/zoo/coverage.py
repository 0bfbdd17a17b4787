"""Which ops the zoo met, and the rule that served each: kept by model, reported by op."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fxprune.analysis.analysis import Analysis
from fxprune.result.files import write_whole
from fxprune.rules.elementwise import alike_axes, elementwise_axes
from fxprune.rules.registry import Rule

__all__ = ["NO_RULE", "OpUse", "ops_met", "read", "report", "store_of", "summary", "write"]

NO_RULE = "none"


class OpUse(NamedTuple):
    """Calls of one op in one model.

    rule: the function that served them and its file, `linear_axes (fxprune/rules/contractions.py)`, or
        "none": no rule knows the op, or not this way of calling it.
    tier: how the rule is written down: "table" (elementwise), "helper" (made by one) or "function".
    """

    op: str
    rule: str
    tier: str
    calls: int


Ops = Mapping[str, Iterable[OpUse]]  # by model


def ops_met(analysis: Analysis) -> tuple[OpUse, ...]:
    """Return every op of a captured graph, sorted."""
    counts = Counter((s.call.op, *_named(s.rule)) for s in analysis.steps.values())
    counts.update({(op, NO_RULE, ""): len(nodes) for op, nodes in analysis.missing.items()})
    return tuple(OpUse(*met, calls) for met, calls in sorted(counts.items()))


def _named(rule: Rule | None) -> tuple[str, str]:
    if rule is None:
        return NO_RULE, ""
    function = rule.function
    name = f"{function.__name__} ({function.__module__.replace('.', '/')}.py)"
    if function in (elementwise_axes, alike_axes):
        return name, "table"
    return name, "helper" if "<locals>" in function.__qualname__ else "function"


# ---------------------------------------------------------------- files


def store_of(table: str | os.PathLike[str]) -> Path:
    """Return the path of the ops of each model, beside the zoo's table: zoo.csv -> zoo-ops.json."""
    return Path(table).with_name(f"{Path(table).stem}-ops.json")


def read(table: str | os.PathLike[str]) -> dict[str, tuple[OpUse, ...]]:
    """Return the ops by model; none where there is no file yet."""
    store = store_of(table)
    if not store.exists():
        return {}
    models = json.loads(store.read_text(encoding="utf-8"))
    return {model: tuple(OpUse(*use) for use in uses) for model, uses in models.items()}


def write(table: str | os.PathLike[str], ops: Ops) -> None:
    """Write the ops of every model, and the report made of them: zoo-ops.json, zoo-ops.csv."""
    lines = (f"{json.dumps(model)}: {json.dumps(list(ops[model]))}" for model in sorted(ops))
    store = store_of(table)
    write_whole(store, "{\n" + ",\n".join(lines) + "\n}\n")
    write_whole(store.with_suffix(".csv"), report(ops))


# ---------------------------------------------------------------- reports


def report(ops: Ops) -> str:
    """Write as CSV each op and the rule that served it, in how many models and calls, and one such model."""
    models: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    calls: Counter[tuple[str, str, str]] = Counter()
    for model, uses in sorted(ops.items()):
        for use in uses:
            models[use[:3]].append(model)
            calls[use[:3]] += use.calls
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["op", "rule", "tier", "models", "calls", "example"])
    writer.writerows([*met, len(found), calls[met], found[0]] for met, found in sorted(models.items()))
    return text.getvalue()


def summary(ops: Ops) -> str:
    """Count the ops that were met, by tier, and list those that no rule served."""
    served = {(use.op, use.tier) for uses in ops.values() for use in uses if use.rule != NO_RULE}
    rules = {use.rule for uses in ops.values() for use in uses} - {NO_RULE}
    tiers = Counter(tier for _, tier in served)
    by_tier = ", ".join(f"{tier} {tiers[tier]}" for tier in ("table", "helper", "function") if tiers[tier])
    lines = [f"{len(served)} ops met in {len(ops)} models, served by {len(rules)} rules ({by_tier})"]
    unserved: dict[str, list[str]] = defaultdict(list)
    for model, uses in sorted(ops.items()):
        for use in uses:
            if use.rule == NO_RULE:
                unserved[use.op].append(model)
    for op, models in sorted(unserved.items(), key=lambda entry: -len(entry[1])):
        lines.append(f"no rule served {op}: {len(models)} models, {models[0]}")
    return "\n".join(lines)
