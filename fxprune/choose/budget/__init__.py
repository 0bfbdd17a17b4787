"""How much goes: a share of channels, parameters, MACs or time, and how the groups divide it.

request    what is asked
floors     the least that every group keeps
ties       which groups keep as many as each other
schedules  how many elements each group keeps, for every level
costs      what a choice of counts costs, from the axes
search     the level, and then the choice, whose cost is nearest to what is wanted
measured   what a result is left with
fit        all of these in turn, until a result meets the request
"""

from fxprune.choose.budget.request import Budget, Latency

__all__ = ["Budget", "Latency"]
