"""How much each element of each group matters: criteria by name, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.baselines import activation, random, taylor
from fxprune.choose.importance.exact import kl_exact
from fxprune.choose.importance.kl import kl
from fxprune.choose.importance.magnitude import magnitude
from fxprune.choose.importance.scores import Scores, check_scores, shape_of
from fxprune.errors import OptionError

__all__ = ["CRITERIA", "Importance", "Scores", "magnitude", "score", "shape_of"]

# A name of CRITERIA, or a function (analysis, groups) -> scores.
Importance = str | Callable[[Analysis, Sequence[Group]], Scores]

WITHOUT_DATA: dict[str, Callable[..., Scores]] = {"magnitude": magnitude, "random": random}
WITH_DATA: dict[str, Callable[..., Scores]] = {
    "activation": activation,
    "taylor": taylor,
    "kl": kl,
    "kl-exact": kl_exact,
}
COMPARABLE = {"kl", "kl-exact", "taylor"}
CRITERIA = (*WITHOUT_DATA, *WITH_DATA)


def score(
    analysis: Analysis,
    groups: Sequence[Group],
    importance: Importance | None = None,
    data: Iterable[Any] | None = None,
    relative: bool = False,
    **options: Any,
) -> Scores:
    """One number per element of each group; the lowest go first.

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
    chosen = importance if importance is not None else ("magnitude" if data is None else "kl")
    if callable(chosen):
        return check_scores(chosen(analysis, groups), list(groups))
    if chosen not in CRITERIA:
        raise OptionError(f"importance={chosen!r}: one of {', '.join(map(repr, CRITERIA))}, or a function")
    try:
        if chosen in WITH_DATA:
            scores = WITH_DATA[chosen](analysis, groups, data, **options)
        else:
            scores = WITHOUT_DATA[chosen](analysis, groups, **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise OptionError(f"importance={chosen!r}: {error}") from error
    scores = check_scores(scores, list(groups))
    return _by_mean(scores) if relative and chosen not in COMPARABLE else scores


def _by_mean(scores: Scores) -> Scores:
    return {group: values / max(float(np.abs(values).mean()), 1e-30) for group, values in scores.items()}
