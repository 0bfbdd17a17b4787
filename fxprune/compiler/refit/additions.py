"""What a layer's answer is added to, and what the result lacks there.

Of what is lost before a layer, the residual stream carries the errors on.  A layer that writes to the stream
can make up for some of them: it is solved for what it gave in the original and for what the stream lacks by
then, as far as what it reads tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, fx

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.branches import addition_at, is_value
from fxprune.graph.writes import writes_in_place
from fxprune.rules.registry import Axes

__all__ = ["Addition", "Between", "addition_of", "as_answer", "between"]

Way = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Addition:
    """The sum of a stream and of what becomes of an answer; nodes by name, the same in both graphs.

    ends: the node that is added, the layer's own where nothing lies between.
    stream: the node that it is added to.
    axes: the stream's in the original.
    """

    ends: str
    stream: str
    axes: Axes


def addition_of(analysis: Analysis, node: fx.Node) -> Addition | None:
    """Find the addition to an earlier value that all of an answer goes to, by ops that sum over nothing."""
    ends = node
    while len(users := [user for user in ends.users if is_value(user)]) == 1:
        operands = addition_at(users[0], analysis.module, analysis.rules)
        if operands and operands[0] is not operands[1]:
            stream = operands[1] if operands[0] is ends else operands[0]
            known = analysis.axes.get(stream)
            return Addition(ends.name, stream.name, known[0]) if known and stream < node else None
        step = analysis.steps.get(users[0])
        if step is None or step.flow.reduced or writes_in_place(users[0], analysis.module):
            return None
        (ends,) = users
    return None


class Between(Enum):
    """What lies between an answer and what is added."""

    NOTHING = "every number stays what it is"
    SCALES = "numbers move, and are scaled"
    OTHER = "anything else"


def between(way: Way, like: Tensor) -> Between:
    """Tell what a way to an addition does, by random numbers.

    A map A that moves and scales numbers is linear, and A^T A is diagonal.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    with torch.no_grad():
        once, twice, back, none = (way(drawn * factor) for factor in (1, 2, -1, 0))
    if not (_close(twice, 2 * once) and _close(back, -once) and bool((none == 0).all())):
        return Between.OTHER
    if torch.equal(once, drawn):
        return Between.NOTHING
    scales = _close(_transposed(way, drawn, once), drawn * _squares(way, drawn))
    return Between.SCALES if scales else Between.OTHER


def as_answer(way: Way, lacking: Tensor, like: Tensor) -> Tensor:
    """Return the answer that adds what is lacking; 0 where the way to the addition drops it.

    Args:
        way: one that scales numbers, as `between` says.
        lacking: shaped like what is added.
        like: an answer.
    """
    squares = _squares(way, like)
    found = _transposed(way, like, lacking) / squares
    return torch.where(squares > 0, found, torch.zeros_like(found))


def _squares(way: Way, like: Tensor) -> Tensor:
    """Return the diagonal of A^T A."""
    with torch.no_grad():
        ones = way(torch.ones_like(like))
    return _transposed(way, like, ones)


def _transposed(way: Way, like: Tensor, value: Tensor) -> Tensor:
    """Return A^T value."""
    with torch.enable_grad():
        start = like.detach().clone().requires_grad_()
        found = torch.autograd.grad(way(start.clone()), start, value)[0]
    return found.detach()


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= 1e-2 * b.norm())  # half precision rounds by less
