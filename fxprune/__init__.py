"""fxprune: structural pruning of any traceable vision transformer, as a graph-rewriting compiler.

>>> pruned = fxprune.prune(model, ratio=0.5)
>>> assert fxprune.verify(model, pruned) < 1e-8
"""

from fxprune.analysis.analysis import Analysis, Group, Site
from fxprune.analysis.analyze import analyze
from fxprune.capture.trace import trace
from fxprune.certify.certificate import Certificate
from fxprune.choose.budget import Latency
from fxprune.compiler import apply, prune, rebase, verify
from fxprune.errors import FxpruneError
from fxprune.finetune.distill import Trained, distill
from fxprune.finetune.loss import Distillation
from fxprune.finetune.steps import prune_and_distill
from fxprune.finetune.training import Training
from fxprune.result.old_names import install_old_names
from fxprune.result.plan import Kept, Plan
from fxprune.result.pruned_module import plan_of
from fxprune.result.saved.load import load
from fxprune.result.saved.save import save
from fxprune.rules import DEFAULT_RULES, Flow, NotCovered, Op, RuleSet
from fxprune.show.pictures.draw import draw
from fxprune.show.reports.explain import explain
from fxprune.show.reports.report import Report, report

__version__ = "0.2.0"

# Pickles and scripts may name modules by where they stood before.
install_old_names()

__all__ = [
    "DEFAULT_RULES",
    "Analysis",
    "Certificate",
    "Distillation",
    "Flow",
    "FxpruneError",
    "Group",
    "Kept",
    "Latency",
    "NotCovered",
    "Op",
    "Plan",
    "Report",
    "RuleSet",
    "Site",
    "Trained",
    "Training",
    "analyze",
    "apply",
    "distill",
    "draw",
    "explain",
    "load",
    "plan_of",
    "prune",
    "prune_and_distill",
    "rebase",
    "report",
    "save",
    "trace",
    "verify",
]
