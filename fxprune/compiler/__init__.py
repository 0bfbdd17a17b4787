"""The compiler: `pipeline` reads top-down, `rewrite` is its third arrow, `native` its user's own class."""

from fxprune.compiler.apply import apply
from fxprune.compiler.pipeline import prune, prune_analyzed
from fxprune.compiler.rebase import rebase
from fxprune.compiler.verify import verify

__all__ = ["apply", "prune", "prune_analyzed", "rebase", "verify"]
