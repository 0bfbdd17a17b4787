"""What a prune comes to, as data: the plan of what is kept, the pruned module and its record."""

from fxprune.result.plan import Kept, Plan  # where pickles of format 1 look for them, as `fxprune.plan`

__all__ = ["Kept", "Plan"]
