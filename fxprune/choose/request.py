"""What `prune` is asked for, as one value, checked before any work is done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from fxprune.choose.budget import Budget
from fxprune.choose.depth import BRANCH_OPTIONS, check_depth
from fxprune.choose.importance.score import WITH_DATA, Importance, check_options, criterion_for, options_of
from fxprune.choose.steps import Between
from fxprune.errors import OptionError, shown
from fxprune.graph.nests import Value

__all__ = ["ATTENTION", "Request"]

ATTENTION = ("auto", "heads", "head_dim", "merge")
BASES = ("principal", "given")
REFIT_OPTIONS = {"log_probabilities", "progress"}  # of `refit`
DERIVATIVE_OPTIONS = {"draws", "log_probabilities", "progress", "seed"}  # of `gathered`


@dataclass(frozen=True)
class Request:
    """The options of `prune` that say what goes: how much, by what measure, where, in how many steps.

    Every option has an effect, or the request is refused: nothing is dropped in silence.

    Raises:
        OptionError: an option is out of its range, or two of them don't go together.
    """

    budget: Budget
    exclude: str | Sequence[str] = ()
    attention: str = "auto"
    depth: float = 0.0
    unit: str = "branch"
    like: nn.Module | None = None
    data: Iterable[Value] | None = None
    importance: Importance | None = None
    importance_options: Mapping[str, Value] = field(default_factory=dict)
    steps: int = 1
    between: Between | None = None
    refit: bool | None = None
    basis: str | None = None
    trained: bool = False  # in a step after training: what is there is not solved again

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise OptionError(f"attention={shown(self.attention)}: one of {', '.join(map(repr, ATTENTION))}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise OptionError(f"steps={shown(self.steps)}: a whole number of at least 1")
        if self.basis not in (None, *BASES):
            raise OptionError(f"basis={shown(self.basis)}: one of {', '.join(map(repr, BASES))}")
        check_depth(self.depth, self.unit)
        if isinstance(self.exclude, str):
            object.__setattr__(self, "exclude", (self.exclude,))
        if isinstance(self.data, Iterable) and not isinstance(self.data, Tensor | Sequence | Mapping):
            object.__setattr__(self, "data", list(self.data))  # it is looked at more than once
        self._refuse_beside_like()
        if self.basis == "principal" and not self._may_change_bases:
            raise OptionError(
                "basis='principal' orders coordinates by the KL divergence that they cost on data=: it goes "
                "with importance='kl' and steps=1, and not with like= or attention='merge'"
            )
        self._refuse_lonely()
        self._refuse_unused_data()
        self._refuse_unknown_options()

    @property
    def criterion(self) -> Importance:
        """A name of CRITERIA or the user's function."""
        return criterion_for(self.importance, self.data)

    @property
    def changes_bases(self) -> bool:
        """Are the coordinates of free axes chosen first?"""
        return self._may_change_bases if self.basis is None else self.basis == "principal"

    @property
    def compares_groups(self) -> bool:
        """Do elements of several groups compete, by estimates that bases or the re-fit change?"""
        changed = self.changes_bases or self.solves
        return self.budget.scope != "uniform" and self.criterion == "kl" and changed

    @property
    def compares_kinds(self) -> bool:
        """Do elements of groups of every kind compete, by such estimates?"""
        return self.compares_groups and self.budget.scope == "global"

    @property
    def _may_change_bases(self) -> bool:
        plain = self.like is None and self.steps == 1 and self.attention != "merge"
        return self.data is not None and self.criterion == "kl" and plain

    @property
    def refits(self) -> bool:
        """Are layers solved again after selection?"""
        return self.data is not None if self.refit is None else self.refit

    @property
    def solves(self) -> bool:
        """Are layers solved again after this step's selection?  Weights that were trained are not."""
        return self.refits and not self.trained

    @property
    def refit_options(self) -> dict[str, Value]:
        """The importance options that solving layers again takes."""
        return self._options_in(REFIT_OPTIONS)

    @property
    def score_options(self) -> dict[str, Value]:
        """The importance options that the criterion takes."""
        return self._options_in(options_of(self.criterion))

    @property
    def derivative_options(self) -> dict[str, Value]:
        """The importance options that derivatives by layers' answers and readers' operands take."""
        return self._options_in(DERIVATIVE_OPTIONS & options_of(self.criterion))

    @property
    def branch_options(self) -> dict[str, Value]:
        """The importance options that ranking branches takes."""
        return self._options_in(BRANCH_OPTIONS)

    def _options_in(self, names: Collection[str]) -> dict[str, Value]:
        return {k: v for k, v in self.importance_options.items() if k in names}

    @property
    def ranks_branches(self) -> bool:
        """May whole branches go, so that `data` ranks them?"""
        return self.depth > 0 or self.like is not None

    @property
    def judges_by_data(self) -> bool:
        return self.criterion in WITH_DATA

    def part(self, step: int) -> Request:
        """Return the same request for its share of a step, from 1; what is kept of a run has a file each."""
        share, options = step / self.steps, dict(self.importance_options)
        if step > 1 and options.get("resume") is not None:
            path = Path(options["resume"])
            options["resume"] = path.with_name(f"{path.stem}-{step}{path.suffix}")
        own = {pattern: ratio * share for pattern, ratio in self.budget.ratios.items()}
        ratio, on_the_way = self.budget.ratio * share, step < self.steps
        budget = replace(self.budget, ratio=ratio, ratios=own, on_the_way=on_the_way)
        trained = step > 1 and self.between is not None
        return replace(self, budget=budget, importance_options=options, trained=trained)

    # ------------------------------------------------------------ what doesn't go together

    def _refuse_beside_like(self) -> None:
        """Refuse options that say how wide something gets beside `like=`, which says it all."""
        if self.like is None:
            return
        usual, budget = Request(Budget()), self.budget
        given = {
            name: getattr(budget, name) != getattr(usual.budget, name)
            for name in ("ratio", "target", "scope", "ratios", "floor", "round_to")
        }
        given |= {name: getattr(self, name) != getattr(usual, name) for name in ("depth", "unit", "steps")}
        given |= {"between": self.between is not None, "attention": self.attention in ("heads", "head_dim")}
        names = [f"{name}=" for name, wanted in given.items() if wanted]
        if names:
            raise OptionError(
                f"like= decides widths, heads and depth by a smaller model: {', '.join(names)} would have no "
                f"effect beside it; leave out {'it' if len(names) == 1 else 'them'}, or like="
            )

    def _refuse_lonely(self) -> None:
        """Refuse options that mean something only beside another one, where that is missing."""
        if self.between is not None and self.steps == 1:
            raise OptionError(
                "between= is called between steps, and steps=1 has none: give steps= of 2 or more"
            )
        if self.unit != "branch" and self.depth == 0:
            raise OptionError(
                f"unit={shown(self.unit)} is what depth= counts, and depth=0 removes none: give depth="
            )

    def _refuse_unused_data(self) -> None:
        if self.data is None and self.refit:
            raise OptionError("refit=True solves layers again on data=, which is missing")
        if self.data is None or self.judges_by_data or self.ranks_branches or self.refits:
            return
        name = repr(self.criterion) if isinstance(self.criterion, str) else "a function of your own"
        raise OptionError(
            f"data= is not looked at by importance={name}: leave it out, or choose a criterion that needs it "
            f"({', '.join(map(repr, WITH_DATA))})"
        )

    def _refuse_unknown_options(self) -> None:
        """Refuse an importance option that nothing takes: not the criterion, the re-fit, ranking branches."""
        known = options_of(self.criterion)
        if self.ranks_branches and self.data is not None:
            known |= BRANCH_OPTIONS
        if self.refits:
            known |= REFIT_OPTIONS
        unknown = sorted(set(self.importance_options) - known)
        if not unknown:
            check_options(self.importance_options)
            return
        what = repr(self.criterion) if isinstance(self.criterion, str) else "a function of your own"
        why = " (the default without data=)" if self.importance is None and self.data is None else ""
        has = f"has the options {', '.join(sorted(known))}" if known else "has no options"
        names = ", ".join(map(repr, unknown))
        raise OptionError(f"importance_options= holds {names}, but importance={what}{why} {has}")
