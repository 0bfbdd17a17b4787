"""Score each element of each group: criteria by name, or the user's own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.baselines import activation, random, taylor
from fxprune.choose.importance.exact import kl_exact
from fxprune.choose.importance.kl import kl
from fxprune.choose.importance.magnitude import magnitude
from fxprune.choose.importance.scores import Scores, check_scores, shape_of
from fxprune.errors import OptionError, shown

__all__ = [
    "CRITERIA",
    "WITH_DATA",
    "Importance",
    "Scores",
    "check_options",
    "criterion_for",
    "magnitude",
    "options_of",
    "score",
    "shape_of",
]

# A name of CRITERIA, or a function (analysis, groups) -> scores.
Importance = str | Callable[[Analysis, Sequence[Group]], Scores]

WITHOUT_DATA: dict[str, Callable[..., Scores]] = {"magnitude": magnitude, "random": random}
WITH_DATA: dict[str, Callable[..., Scores]] = {
    "activation": activation,
    "taylor": taylor,
    "kl": kl,
    "kl-exact": kl_exact,
}
LEAST = {"draws": 1, "measured": 0, "at_once": 1, "seed": 0}  # of options that are whole numbers
BY_DEFAULT = {"draws", "measured"}  # of those, what None leaves to the criterion
FUNCTIONS = {"log_probabilities", "loss"}
COMPARABLE = {"kl", "kl-exact", "taylor"}  # they measure the same quantity in every group
CRITERIA = (*WITHOUT_DATA, *WITH_DATA)


def criterion_for(importance: Importance | None, data: Iterable[Any] | None) -> Importance:
    """Return what is asked for, or the default: "kl" where there is data, else "magnitude".

    Raises:
        OptionError: it is neither a name of CRITERIA nor a function.
    """
    chosen = importance if importance is not None else ("magnitude" if data is None else "kl")
    if not callable(chosen) and chosen not in CRITERIA:
        known = ", ".join(map(repr, CRITERIA))
        raise OptionError(f"importance={shown(chosen)}: one of {known}, or a function")
    return chosen


def options_of(criterion: Importance) -> set[str]:
    """Return the options that a criterion takes by name; none where it is the user's function."""
    if not isinstance(criterion, str):
        return set()
    parameters = inspect.signature((WITHOUT_DATA | WITH_DATA)[criterion]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise OptionError where the value of an option makes no sense, whichever criterion takes it."""
    for name, value in options.items():
        if value is None and name not in LEAST.keys() - BY_DEFAULT:
            continue
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if name in LEAST and not (is_whole and value >= LEAST[name]):
            said = f"a whole number of at least {LEAST[name]}"
        elif name in FUNCTIONS and not callable(value):
            said = "a function"
        elif name == "resume" and not isinstance(value, (str, os.PathLike)):
            said = "the path of a file"
        else:
            continue
        raise OptionError(f"importance_options[{name!r}]={shown(value)}: {said}")


def score(
    analysis: Analysis,
    groups: Sequence[Group],
    importance: Importance | None = None,
    data: Iterable[Any] | None = None,
    relative: bool = False,
    **options: Any,
) -> Scores:
    """Return one number per element of each group; the lowest go first.

    Args:
        importance: a name of `CRITERIA`, a function (analysis, groups) -> scores, or None: "kl" where
            there is data, else "magnitude".
        data: batches of inputs, for the criteria that look at what the model does.
        relative: make groups comparable: divide each group's scores by their mean, unless the criterion
            measures the same quantity everywhere ("kl", "kl-exact", "taylor", your own).
        options: of the criterion: `log_probabilities`, `draws`, `resume`, `seed`, ...

    Raises:
        OptionError: an unknown criterion, or an option that it does not have.
        DataError: data that is missing, empty, or nothing that the model takes.
        ScoreError: scores that are missing, of another shape, NaN or infinite.
    """
    chosen = criterion_for(importance, data)
    if unknown := set(options) - options_of(chosen):
        raise OptionError(f"importance={shown(chosen)} has no option {', '.join(map(repr, sorted(unknown)))}")
    check_options(options)
    if not isinstance(chosen, str):
        return check_scores(chosen(analysis, groups), list(groups))
    if chosen in WITH_DATA:
        scores = WITH_DATA[chosen](analysis, groups, data, **options)
    else:
        scores = WITHOUT_DATA[chosen](analysis, groups, **options)
    scores = check_scores(scores, list(groups))
    return _by_mean(scores) if relative and chosen not in COMPARABLE else scores


def _by_mean(scores: Scores) -> Scores:
    return {group: values / max(float(np.abs(values).mean()), 1e-30) for group, values in scores.items()}
