"""How per-op knowledge is written down: an `Op`, whose rule returns a `Flow`, and three ways to register one.

    elementwise("gelu", "silu")                 a table: every tensor argument broadcasts
    DEFAULT_RULES.add("max_pool2d", ..)         a helper that makes rules (see the op families)
    @rule("layer_norm", masked=..) def ..       a function, with the op's masked statistic if it takes one

A rule is pure.  It is called with the arguments of the op, bound to its own signature: tensors as
`Typed` (one axis per dimension), everything else as its value while tracing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TypeAlias, TypeVar

from torch import Tensor

from fxprune.rules.axes import Axis, Reason

Axes = tuple[Axis, ...]
Dims = int | Sequence[int] | None  # one dimension, several, or None for all
PerDim = int | str | Sequence[int]  # an option given once, by a word, or for each dimension
# The axes of an op's result: of one tensor, or lists of them where it returns several.
Out: TypeAlias = "Axes | Sequence[Out]"
# The value of a result while tracing, as a rule's parameter `result`: its shape, all frozen.
Result: TypeAlias = "Typed | Sequence[Result]"
# What an argument spells: an axis for an integer, a bound of a slice, nothing, in the argument's shape.
Spelled: TypeAlias = "Axis | Bound | slice | Sequence[Spelled] | None"
Pairs = Sequence[tuple[Axis, Axis]]
Masked = Callable[..., Tensor | tuple[Tensor, ...]]

T = TypeVar("T")


@dataclass(frozen=True)
class Typed:
    """A tensor as rules see it: one axis per dimension."""

    axes: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def ndim(self) -> int:
        return len(self.axes)


@dataclass(frozen=True)
class Bound:
    """A slice bound: its value is this axis's size (negative: counted from the end)."""

    axis: Axis


@dataclass(frozen=True)
class Flow:
    """What a rule says about one call; `dataclasses.replace` makes another of one.

    out: the axes of the result, a tuple per tensor; lists of them where the op returns several.
    same: pairs of axes that must be equal.
    frozen: axes that must not shrink, each with the reason, in words or as a `Reason` with its kind.
    sizes: for an argument that spells sizes as integers, the axes spelled, in the argument's shape
        (None where an element spells nothing; a list of axes may stand for a single integer).  An
        index is spelled by a `Bound`.
    replacement: the function to call instead once `sizes` are rewritten, if the op itself can't take them.
    reduced: axes over which the op adds up, or takes a statistic: where a missing channel is missed.
    macs: for each product that the op takes, the axes that its multiplications run over.
    select_result: the call is made at full size, and what is kept selected from its result.
    linear: the law of the op, as of `fxprune.rules.laws`: an equation of its tensors' dimensions, such as
        "... i, o i; o -> ... o", or "layout" where elements are moved, copied or averaged; by default the
        `Op`'s own.  It decides which changes of basis an axis allows; what no law speaks of is only permuted.
    rotates: axes that the op depends on by a norm alone, besides what `linear` says: an RMS norm.
    centred: the same, of what is left once its mean is subtracted: a layer norm.
    grows: the power by which the result grows with the number of elements along `reduced`: 1 of a sum, 1/2
        of a norm, 0 of a mean.  Numbers that it is divided by may be counts of them, see
        `fxprune.analysis.counts`; None where the op says nothing of that.
    sums, whole: the former names of `reduced` and `frozen`, for rules that were written for them.
    """

    out: Out
    same: Pairs = ()
    frozen: Sequence[tuple[Axis, str | Reason]] = ()
    sizes: Mapping[str, Spelled] = field(default_factory=dict)
    replacement: Callable[..., object] | None = None
    reduced: Sequence[Axis] = ()
    macs: Sequence[Axes] = ()
    select_result: bool = False
    linear: str = ""
    rotates: Sequence[Axis] = ()
    centred: Sequence[Axis] = ()
    grows: float | None = None
    sums: InitVar[list[Axis] | None] = None
    whole: InitVar[Sequence[tuple[Axis, str | Reason]] | None] = None

    def __post_init__(
        self, sums: list[Axis] | None, whole: Sequence[tuple[Axis, str | Reason]] | None
    ) -> None:
        if sums:
            object.__setattr__(self, "reduced", [*self.reduced, *sums])
        if whole:
            object.__setattr__(self, "frozen", [*self.frozen, *whole])

    @property
    def axes(self) -> Axes:
        """The axes of the result of an op that returns one tensor."""
        if any(not isinstance(axis, Axis) for axis in self.out):
            raise TypeError("the op returns several tensors")
        return tuple(self.out)  # type: ignore[arg-type]  # just looked at


class NotCovered(Exception):
    """Raised by a rule: this call is one that it has nothing to say about.  All that it touches is frozen.

    >>> raise NotCovered("a cell with projections is not understood")  # doctest: +SKIP
    """


@dataclass(frozen=True)
class Op:
    """All that is known of one op: how axes flow through it, and its statistic over kept elements.

    axes: the rule, called with the op's arguments (tensors as `Typed`); returns a `Flow`.
    masked: for an op that takes a statistic (a mean, a norm) over an axis that may shrink: what the
        certificate runs in its place on the full-size model.  It is called with the op's arguments by the
        names of the rule's signature, as tensors, and with `mask`: of the first tensor argument's shape, or
        one that broadcasts to it; 1 where an element is kept, 0 where it is not (while importance is
        measured, a weight in between).  Its result must equal the op's on the kept elements alone.
    linear: its law, where that is the same for every call, see `Flow`.

    An op that is taught without `masked`, and whose rule names a shrinking axis as `reduced`, is run on the
    kept elements alone and its result scattered back, see `fxprune.certify.kept_elements`.  The certificate
    then takes the rule's word that a statistic is taken over what is kept; `masked` checks it.

    Example:
        >>> def rms_axes(x, weight):
        ...     return Flow(x.axes, same=[(x.axes[-1], weight.axes[0])], reduced=[x.axes[-1]])
        >>> def masked_rms(x, weight, mask):
        ...     mean = (x.square() * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        ...     return x / (mean + 1e-6).sqrt() * weight
        >>> rules = DEFAULT_RULES.extended({"mylib.rms": Op(rms_axes, masked_rms)})
    """

    axes: Callable[..., Flow]
    masked: Masked | None = None
    linear: str = ""


@dataclass(frozen=True)
class Rule:
    """An op as it is registered: its name, its rule, the signature that calls are bound to."""

    op: str
    function: Callable[..., Flow]
    signature: inspect.Signature
    masked: Masked | None = None
    linear: str = ""
    taught: bool = False  # a user's own: a mistake in it is shown, and not taken for an odd call

    @functools.cached_property
    def positions(self) -> dict[str, int]:
        """The place of each parameter."""
        return {name: i for i, name in enumerate(self.signature.parameters)}


class RuleSet:
    """Op name -> rule.  Immutable in use: `extended` returns a new set."""

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._rules = dict(rules or {})

    def __contains__(self, op: str) -> bool:
        return op in self._rules

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._rules))

    @property
    def taught(self) -> frozenset[str]:
        """The names of the ops that a user taught."""
        return frozenset(op for op, known in self._rules.items() if known.taught)

    def get(self, op: str) -> Rule | None:
        return self._rules.get(op)

    def add(self, name: str, op: Op | Callable[..., Flow], *, taught: bool = False) -> None:
        """Register an op under a name that is still free.  A plain function is its rule alone."""
        if name in self._rules:
            raise ValueError(f"a rule for {name!r} exists: {self._rules[name].function.__name__}")
        op = op if isinstance(op, Op) else Op(op)
        self._rules[name] = Rule(name, op.axes, inspect.signature(op.axes), op.masked, op.linear, taught)

    def extended(self, ops: Mapping[str, Op | Callable[..., Flow]]) -> RuleSet:
        """Return a copy with a user's own ops added or replaced.

        An op's name may be its full one (`mylib::my_norm` or `mylib.my_norm` of a custom op,
        `mypackage.functions.my_norm` of a function, `mypackage.layers.MyNorm` of a module's class), or the
        last part of it.

        >>> from fxprune import DEFAULT_RULES, Flow, Op
        >>> mine = DEFAULT_RULES.extended({"my_gate": lambda x, g: Flow(x.axes, same=[*zip(x.axes, g.axes)])})
        >>> fxprune.prune(model, 0.5, rules=mine)  # doctest: +SKIP
        """
        named = {name.replace("::", "."): op for name, op in ops.items()}
        new = RuleSet({name: r for name, r in self._rules.items() if name not in named})
        for name, op in named.items():
            new.add(name, op, taught=True)
        return new


DEFAULT_RULES = RuleSet()


def rule(
    *ops: str, masked: Masked | None = None, linear: str = ""
) -> Callable[[Callable[..., Flow]], Callable[..., Flow]]:
    """Register the decorated function for spellings of an op, with its masked statistic and its law."""

    def register(function: Callable[..., Flow]) -> Callable[..., Flow]:
        for op in ops:
            DEFAULT_RULES.add(op, Op(function, masked, linear))
        return function

    return register


def at(dim: int, ndim: int) -> int:
    """Return a dimension as a non-negative number."""
    return dim + ndim if dim < 0 else dim


def dims_of(dim: Dims, ndim: int) -> list[int]:
    """Return dimensions (one, several; None or an empty list for all) as non-negative numbers."""
    if dim is None or dim == [] or dim == ():
        return list(range(ndim))
    return [at(d, ndim) for d in ([dim] if isinstance(dim, int) else dim)]


def results_of(out: Out) -> list[Out]:
    """Return the axes of each result of an op that returns several."""
    return [part for part in out if not isinstance(part, Axis)]


def several(tensors: Sequence[T | Sequence[T]]) -> Sequence[T]:
    """Return the tensors of an op that takes them one by one, or in one list."""
    return tensors[0] if isinstance(tensors[0], (list, tuple)) else tensors  # type: ignore[return-value]


def map_axes(spelled: Spelled, function: Callable[[Axis], Axis]) -> Spelled:
    """Map the axes in a `Flow.sizes` entry, its shape kept."""
    if spelled is None:
        return None
    if isinstance(spelled, Bound):
        return Bound(function(spelled.axis))
    if isinstance(spelled, slice):
        return slice(map_axes(spelled.start, function), map_axes(spelled.stop, function))
    if isinstance(spelled, (list, tuple)):
        return type(spelled)(map_axes(s, function) for s in spelled)
    assert isinstance(spelled, Axis)
    return function(spelled)
