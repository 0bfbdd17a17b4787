"""What is asked for: a ratio of what, divided how, with which exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis, Group
from fxprune.analysis.patterns import groups_within
from fxprune.errors import OptionError, shown

__all__ = ["SCOPES", "TARGETS", "Budget", "Latency"]

TARGETS = ("channels", "params", "macs", "latency")
SCOPES = ("uniform", "global", "isomorphic")


@dataclass(frozen=True)
class Latency:
    """Time as the target: at which batch size, with how many threads, over how many turns.

    >>> fxprune.prune(model, 0.5, target=fxprune.Latency(batch=8, threads=1))
    """

    batch: int = 1
    threads: int | None = None
    rounds: int = 9

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("threads", self.threads), ("rounds", self.rounds)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise OptionError(f"Latency({name}={value!r}): a whole number of at least 1")


@dataclass(frozen=True)
class Budget:
    """The options of `prune` that say how much goes, checked.

    on_the_way: more goes in a later step, so that the nearest choice will do.
    own_code: the model's own code is to hold the sizes, with the numbers that it has.
    """

    ratio: float = 0.5
    target: str | Latency = "channels"
    scope: str = "uniform"
    ratios: Mapping[str, float] = field(default_factory=dict)
    floor: int | float | None = None
    round_to: int = 1
    on_the_way: bool = False
    own_code: bool = False

    def __post_init__(self) -> None:
        _check_share("ratio", self.ratio)
        if not isinstance(self.target, Latency) and self.target not in TARGETS:
            raise OptionError(
                f"target={shown(self.target)}: one of {_listed(TARGETS)}, or fxprune.Latency(...)"
            )
        if self.scope not in SCOPES:
            raise OptionError(f"scope={shown(self.scope)}: one of {_listed(SCOPES)}")
        for pattern, value in self.ratios.items():
            _check_share(f"ratios[{pattern!r}]", value)
        if isinstance(self.round_to, bool) or not isinstance(self.round_to, int) or self.round_to < 1:
            raise OptionError(f"round_to={shown(self.round_to)}: a whole number of at least 1")
        if self.floor is None:
            return
        share = isinstance(self.floor, float) and 0 < self.floor < 1
        count = isinstance(self.floor, int) and not isinstance(self.floor, bool) and self.floor >= 1
        if not share and not count:
            raise OptionError(
                f"floor={shown(self.floor)}: a number of elements (1 or more), or a share below 1.0"
            )

    @property
    def measure(self) -> str:
        """ "channels", "params", "macs" or "latency"."""
        return "latency" if isinstance(self.target, Latency) else self.target

    @property
    def plain(self) -> bool:
        """Does the ratio say for each group by itself what it keeps?"""
        return self.measure == "channels" and self.scope == "uniform"

    def overrides(self, analysis: Analysis) -> dict[Group, float]:
        """Return the groups that `ratios` names, each with its ratio; of several patterns the last counts."""
        own: dict[Group, float] = {}
        for pattern, value in self.ratios.items():
            own |= dict.fromkeys(groups_within(analysis, pattern), value)
        return own


def _check_share(name: str, value: object) -> None:
    if isinstance(value, (Tensor, nn.Module)) or (isinstance(value, (tuple, list)) and value):
        raise OptionError(
            f"{name} is a number, the fraction to remove, and was given {shown(value)}: example inputs go to "
            f"example_inputs=, data to data=, a smaller model to like="
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise OptionError(f"{name}={shown(value)}: the fraction to remove must be in [0, 1)")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
