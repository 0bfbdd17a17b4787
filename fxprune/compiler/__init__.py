"""The compiler: `pipeline` reads top-down, `rewrite` is its third arrow."""

from fxprune.compiler.pipeline import prune, prune_analyzed, verify

__all__ = ["prune", "prune_analyzed", "verify"]
