"""How much goes: a share of channels, parameters, MACs or time, and how the groups divide it.

request (what is asked) -> schedules (how many elements each group keeps, for every level)
                        -> costs     (what a choice of counts costs, from the axes)
                        -> fit       (the level that meets the request, checked on the result)
"""

from fxprune.choose.budget.request import Budget, Latency

__all__ = ["Budget", "Latency"]
