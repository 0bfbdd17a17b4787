"""Per-op knowledge: how axes flow through each op.  One file per op family."""

from fxprune.rules import (
    contractions,
    elementwise,
    fourier,
    joining,
    normalisation,
    reductions,
    reshaping,
    sources,
    spatial,
)
from fxprune.rules.registry import DEFAULT_RULES, Flow, NotCovered, Op, RuleSet, Typed, rule

__all__ = [
    "DEFAULT_RULES",
    "Flow",
    "NotCovered",
    "Op",
    "RuleSet",
    "Typed",
    "contractions",
    "elementwise",
    "fourier",
    "joining",
    "normalisation",
    "reductions",
    "reshaping",
    "rule",
    "sources",
    "spatial",
]
