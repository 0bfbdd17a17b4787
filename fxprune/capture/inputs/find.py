"""Find inputs that a model takes when none are given."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn

from fxprune.capture.inputs.entry import Entry, entries_of
from fxprune.capture.inputs.hints import hint_for, required_arguments
from fxprune.capture.inputs.recorded import recorded_calls, recorded_size
from fxprune.capture.inputs.sizes import shapes_for, told_sizes
from fxprune.capture.inputs.trial import Trial
from fxprune.errors import ExampleInputError
from fxprune.graph.example import Example
from fxprune.graph.tensors import like_weights

__all__ = ["find_example"]

BATCH = 2
LAYERS = 4  # of those that may be the first, how many are asked
MOST = 80  # trials for each of them


def find_example(model: nn.Module) -> Example:
    """Return two blank samples that the model takes.

    First what is recorded on the model, if the model itself agrees: the record is that of published weights,
    and the model may be built for other sizes or channels.  Then what its first layer, its tables of
    positions and its own numbers suggest, each tried without computing anything (token ids and vectors are
    also tried by a call that computes).  The first that the model takes is it.

    Raises:
        ExampleInputError: nothing is taken, or the model takes vectors as well as sequences of them.
    """
    size, entries = recorded_size(model), entries_of(model)
    if size is not None and _agrees(size, entries, model):
        return _blank(model, size)
    trial = Trial(model)
    first_error = ""
    for example, entry, recorded in _candidates(model, size, entries, trial):
        really = _has_ids(example) or (entry is not None and entry.kind == "vectors")
        taken = trial.accepts_really(example) if really else trial.accepts(example, recorded)
        if taken:
            _refuse_ambiguous(model, example, entry, trial)
            return example
        first_error = first_error or trial.error
    raise ExampleInputError(_not_found(model, size, first_error, [*trial.readers, *entries]))


def _agrees(size: tuple[int, int, int], entries: list[Entry], model: nn.Module) -> bool:
    """Is a recorded size that of this model, as far as its first layer and its own sizes tell?"""
    if not entries or entries[0].kind != "image" or entries[0].width != size[0]:
        return False
    if len(required_arguments(model)) > 1 or recorded_calls(model):
        return False
    told = told_sizes(entries[0], model)
    return not told or size[1:] in told


def _candidates(
    model: nn.Module, size: tuple[int, int, int] | None, entries: list[Entry], trial: Trial
) -> Iterator[tuple[Example, Entry | None, bool]]:
    """Yield calls worth trying, with the entry that suggests each and whether it is recorded."""
    for call in recorded_calls(model):
        yield call, None, True
    if len(required_arguments(model)) > 1:
        return
    if size is not None:
        yield _blank(model, size), None, True
    asked: list[Entry] = []
    while entry := next((e for e in (*trial.readers, *entries[:LAYERS]) if e not in asked), None):
        asked.append(entry)
        for shape in itertools.islice(shapes_for(entry, model, [size[1:]] if size else []), MOST):
            yield (_ids(model, shape, entry) if entry.kind == "ids" else _blank(model, shape)), entry, False
            if trial.readers and entry not in trial.readers:
                break  # another layer was seen to read the input


def _blank(model: nn.Module, shape: tuple[int, ...]) -> Example:
    like = like_weights(model)
    return Example((torch.zeros(BATCH, *shape, dtype=like.dtype, device=like.device),))


def _ids(model: nn.Module, shape: tuple[int, ...], entry: Entry) -> Example:
    """Make token ids of the vocabulary, no two alike as far as it goes."""
    ids = torch.arange(BATCH * shape[0], device=like_weights(model).device) % entry.width
    return Example((ids.view(BATCH, *shape),))


def _has_ids(example: Example) -> bool:
    values = (*example.args, *example.kwargs.values())
    return any(isinstance(t, torch.Tensor) and not t.is_floating_point() for t in values)


def _refuse_ambiguous(model: nn.Module, example: Example, entry: Entry | None, trial: Trial) -> None:
    """Refuse a model that takes vectors as well as sequences of them: `dim=1` means another thing in each."""
    if entry is None or entry.kind != "vectors" or example.args[0].ndim != 2:
        return
    if all(trial.accepts_really(_blank(model, (n, entry.width))) for n in (16, 9)):  # no length by chance
        name, width = type(model).__name__, entry.width
        raise ExampleInputError(
            f"{name} takes vectors of {width} as well as sequences of them: "
            f"pass example_inputs=torch.zeros(2, {width}) or torch.zeros(2, 16, {width})"
        )


def _not_found(model: nn.Module, size: tuple[int, int, int] | None, error: str, entries: list[Entry]) -> str:
    name, hint = type(model).__name__, hint_for(entries[0] if entries else None, model)
    if len(required_arguments(model)) > 1:
        return f"the inputs of {name} are recorded nowhere: {hint}"
    if size is not None:
        return f"{name} rejects inputs of the recorded shape {(BATCH, *size)} ({error}): {hint}"
    tried = f" ({error})" if error else ""
    return f"the input shape of {name} is recorded nowhere, and no usual one is taken{tried}: {hint}"
