"""The compiler: `pipeline` reads top-down, and `rewrite` is its third arrow.

`native/` builds an instance of the user's own class, `refit/` solves layers again by calibration data.
"""

from fxprune.compiler.apply import apply
from fxprune.compiler.pipeline import prune, prune_analyzed
from fxprune.compiler.rebase import rebase
from fxprune.compiler.verify import verify

__all__ = ["apply", "prune", "prune_analyzed", "rebase", "verify"]
