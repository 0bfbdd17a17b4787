"""Everything that can go wrong, one class each.  All derive from `FxpruneError`."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "CaptureError",
    "CertificateError",
    "DataError",
    "DrawError",
    "ExampleInputError",
    "FileError",
    "FxpruneError",
    "InputArgumentError",
    "InputSizeError",
    "MissingRuleError",
    "ModelSpecError",
    "NothingPrunableError",
    "OptionError",
    "PassError",
    "PatternError",
    "PlanError",
    "RewriteError",
    "RuleError",
    "ScoreError",
    "SiblingError",
    "TrainingError",
    "UnsupportedModuleError",
]


class FxpruneError(Exception):
    """The root: catch this to catch all of fxprune's errors."""


class OptionError(FxpruneError, ValueError):
    """An option is out of its range (a ratio of 1.5, an unknown capture)."""


class CaptureError(FxpruneError):
    """Neither symbolic tracing nor torch.export can turn the model into a graph."""

    where: str = ""  # the line of the user's code at which one of them stopped
    asks_values: bool = False  # it stopped where code asks for a tensor's values


class ExampleInputError(FxpruneError):
    """The shape of the model's input is unknown, or the model rejects the inputs given."""


class InputSizeError(FxpruneError, ValueError):
    """A pruned model gets an input for which the original's code takes a branch that was not captured."""


class InputArgumentError(FxpruneError, ValueError, TypeError):
    """A pruned model gets another plain argument (a flag, a word, None, a keyword) than was captured."""


class UnsupportedModuleError(FxpruneError):
    """A module holds something that a rewrite can't carry over: a parametrization, a hook."""


class MissingRuleError(FxpruneError):
    """Under strict=True: ops without a rule, all of them in one message."""


class RuleError(FxpruneError):
    """A rule that a user taught fails, or claims what is not so; names the op, the node and both lines."""


class NothingPrunableError(FxpruneError):
    """Every group of the model is frozen or excluded."""


class BudgetError(FxpruneError, ValueError):
    """A share of parameters, MACs or time can't be removed; the message says the nearest that can."""


class PatternError(FxpruneError, ValueError):
    """A pattern matches no module."""


class PlanError(FxpruneError):
    """A plan does not belong to this model, or a module carries no plan."""


class FileError(FxpruneError):
    """A folder is not what `fxprune.save` wrote (missing, truncated, edited), or can't be rebuilt."""


class PassError(FxpruneError):
    """A pass over the captured graph broke its contract.  A bug of fxprune's, named with those before."""


class RewriteError(FxpruneError):
    """A rewritten graph does not run: a rule claimed too much.  A bug of fxprune's, named by node."""


class CertificateError(FxpruneError):
    """A result can't be certified: it has no values, or the capture differs from the model."""


class ModelSpecError(FxpruneError, ValueError):
    """A spec (`timm:NAME`, `package.module:factory`) names no model that can be made here."""


class DataError(FxpruneError, ValueError):
    """The data for an importance is missing, empty, or nothing that the model takes."""


class ScoreError(FxpruneError, ValueError):
    """An importance gave scores that rank nothing: missing, of another shape, NaN or infinite."""


class DrawError(FxpruneError):
    """A picture can't be drawn: a package of the extra `[draw]`, or graphviz's `dot`, is missing."""


class SiblingError(FxpruneError, ValueError):
    """A model can't get the shape of a smaller one: says which dimension or part stands in the way."""


class TrainingError(FxpruneError):
    """Training can't begin or go on: another run's checkpoint, a teacher of other outputs, a NaN loss.

    Also raised by a graph in train mode, or by its backward pass, where the original's code does something
    there that the graph can't hold.
    """


MOST_LETTERS = 80  # of a value that a message shows as it is


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; nothing, if it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


def listed(names: Iterable[str], most: int = 3) -> str:
    """Join some names, and count those that are left out: `a, b, c, and 4 more`."""
    names = list(names)
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def shown(value: object) -> str:
    """Describe a value in a few words: a tensor by its shape, a model by its class, never printed whole."""
    shape, kind = getattr(value, "shape", None), type(value).__name__
    if isinstance(shape, tuple):
        return f"a {kind} of shape {tuple(shape)}"
    if callable(getattr(value, "state_dict", None)):
        return f"a model ({kind})"
    if isinstance(value, (list, tuple, dict)) and len(value) > 8:
        return f"a {kind} of {len(value)}"
    if isinstance(value, (list, tuple)):
        open_, close = "[]" if isinstance(value, list) else "()"
        return f"{open_}{', '.join(map(shown, value))}{close}"
    text = repr(value)
    return text if len(text) <= MOST_LETTERS else f"a {kind}"
