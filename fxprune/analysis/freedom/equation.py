"""Read the equation of a law: the names that each dimension of each operand has in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Equation", "equation_of"]

Names = tuple[str, ...]


@dataclass(frozen=True)
class Equation:
    """A law whose dots are spelled out.

    terms: for each summand, its factors: the operand's place and a name per dimension; none for a number.
    out: a name per dimension of the result.
    apart: names of dimensions along which the op goes element by element, whatever the terms say.
    """

    terms: tuple[tuple[tuple[int, Names], ...], ...]
    out: Names
    apart: frozenset[str]


@lru_cache(maxsize=4096)
def equation_of(law: str, ranks: tuple[int, ...], rank: int) -> Equation:
    """Read a law for operands and a result of so many dimensions.

    Raises:
        ValueError: it names another number of operands or dimensions.
    """
    left, arrow, right = law.partition("->")
    if not arrow:
        raise ValueError(f"the law {law!r} has no '->'")
    result, _, apart = right.partition("/")
    terms = [[factor.split() for factor in term.split(",")] for term in left.split(";")]
    named = [words for term in terms for words in term if words != ["()"]]
    if len(named) == 2 and len(ranks) == 1:
        ranks = (ranks[0], ranks[0])  # one tensor, multiplied by itself
        places = [0, 0]
    else:
        places = list(range(len(named)))
    if len(named) != len(ranks):
        raise ValueError(f"the law {law!r} is of {len(named)} tensors, the call has {len(ranks)}")
    numbered = iter(zip(places, ranks, strict=True))
    spelled = []
    for term in terms:
        factors = []
        for words in term:
            if words != ["()"]:
                place, n = next(numbered)
                factors.append((place, _spelled(words, n, law)))
        spelled.append(tuple(factors))
    return Equation(tuple(spelled), _spelled(result.split(), rank, law), frozenset(apart.split()))


def _spelled(words: Sequence[str], rank: int, law: str) -> Names:
    words = [word for word in words if word != "[]"]
    if "..." in words:
        at = words.index("...")
        more = rank - len(words) + 1
        words = [*words[:at], *(f"...{i}" for i in range(more, 0, -1)), *words[at + 1 :]]
    if len(words) != rank:
        raise ValueError(f"the law {law!r} names {len(words)} dimensions of a tensor that has {rank}")
    return tuple(words)
