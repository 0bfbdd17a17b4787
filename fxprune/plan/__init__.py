"""Plans: which elements of every group are kept, as data."""

from fxprune.plan.plan import Kept, Plan  # where pickles of format 1 look for them

__all__ = ["Kept", "Plan"]
