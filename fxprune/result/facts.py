"""What others read on a model, as data on the result: its library's record, its labels, its classes.

Only what pruning leaves true is carried: no number that might be a width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from torch import Tensor, fx, nn

from fxprune.graph.example import Example
from fxprune.graph.nests import PLAIN

__all__ = ["carry_facts", "numbered_as_lists", "without_weight_decay"]

RECORDS = ("pretrained_cfg", "default_cfg")  # timm's
LABELS = ("id2label", "label2id")  # of a Hugging Face configuration
SIZES = ("input_size", "test_input_size")


def carry_facts(
    model: nn.Module, pruned: fx.GraphModule, example: Example, classes: int | None, stale: Collection[int]
) -> None:
    """Set on the result what is plain data on the original and still true.

    classes: the last dimension of what it returns; whole numbers are carried where they are that.
    stale: the sizes that shrank: a number that is one of them is never carried.
    """
    facts: dict[str, object] = {}
    for name in dir(type(model)):
        value = _vars_of_classes(model).get(name)
        if _is_count(value, classes, stale):
            facts[name] = value
    for name, value in vars(model).items():
        if _is_count(value, classes, stale) or _is_words(value):
            facts[name] = value
    config = getattr(model, "config", None)
    facts |= {name: v for name in LABELS if _is_words(v := getattr(config, name, None))}
    facts |= {name: v for name in RECORDS if (v := _record(getattr(model, name, None), example, classes))}
    for name, value in facts.items():
        if not name.startswith("_") and not hasattr(pruned, name):
            setattr(pruned, name, value)


def _vars_of_classes(model: nn.Module) -> dict[str, object]:
    """Collect the attributes of the model's own classes."""
    own = type(model).__mro__[: type(model).__mro__.index(nn.Module)]
    return {name: value for cls in reversed(own) for name, value in vars(cls).items()}


def without_weight_decay(model: nn.Module) -> tuple[str, ...]:
    """Return the parameters that a model tells optimisers to leave undecayed, by timm's convention."""
    asked = getattr(model, "no_weight_decay", None)
    try:
        names = asked() if callable(asked) else ()
        return tuple(sorted(str(name) for name in names))
    except Exception:  # the user's own code, which asks for something else
        return ()


def numbered_as_lists(pruned: nn.Module) -> None:
    """Let `pruned.blocks[3]`, `len` and loops work where a holder's children are numbered."""
    for module in pruned.modules():
        names = list(module._modules)
        if type(module) is nn.Module and names and names == [str(i) for i in range(len(names))]:
            module.__class__ = nn.ModuleList


def _record(value: object, example: Example, classes: int | None) -> dict[str, object]:
    """Return a library's record of the checkpoint, with this model's own image size and classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        return {}
    record = {str(k): v for k, v in value.items() if _is_data(v)}
    first = example.args[0] if example.args else next(iter(example.kwargs.values()), None)
    for name in SIZES:
        size = record.get(name)
        if size and isinstance(first, Tensor) and first.ndim == len(size) + 1:
            record[name] = tuple(first.shape[1:])
    if classes is not None and "num_classes" in record:
        record["num_classes"] = classes
    return record


def _is_count(value: object, classes: int | None, stale: Collection[int]) -> bool:
    return type(value) is int and value == classes and value not in stale


def _is_words(value: object) -> bool:
    """Is it a word, or a list or table of words (labels)?"""
    if isinstance(value, Mapping):
        pairs = [*value.items()]
        return bool(pairs) and all(
            {type(k), type(v)} <= {str, int} and str in (type(k), type(v)) for k, v in pairs
        )
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and bool(value) and all(isinstance(v, str) for v in value)
    return type(value) is str


def _is_data(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_data, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return isinstance(value, PLAIN)
