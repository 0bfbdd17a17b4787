"""fxprune: structural pruning of any traceable vision transformer, as a graph-rewriting compiler.

>>> pruned = fxprune.prune(model, ratio=0.5)
>>> assert fxprune.verify(model, pruned) < 1e-8
"""

from fxprune.analysis import Analysis, Group, Site
from fxprune.budget import Latency
from fxprune.capture import trace
from fxprune.certify import Certificate
from fxprune.draw import draw
from fxprune.errors import FxpruneError
from fxprune.plan import Kept, Plan, plan_of
from fxprune.prune import analyze, apply, prune, verify
from fxprune.reports.explain import explain
from fxprune.reports.report import Report, report
from fxprune.rules import DEFAULT_RULES, Flow, RuleSet
from fxprune.saved.load import load
from fxprune.saved.save import save

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_RULES",
    "Analysis",
    "Certificate",
    "Flow",
    "FxpruneError",
    "Group",
    "Kept",
    "Latency",
    "Plan",
    "Report",
    "RuleSet",
    "Site",
    "analyze",
    "apply",
    "draw",
    "explain",
    "load",
    "plan_of",
    "prune",
    "report",
    "save",
    "trace",
    "verify",
]
