"""Suggest what to write for a model whose inputs can't be found, in the words of its kind of input."""

from __future__ import annotations

import inspect

from torch import nn

from fxprune.capture.inputs.entry import Entry

__all__ = ["hint_for", "required_arguments"]

SHAPES = {
    "ids": "torch.zeros(2, 16, dtype=torch.long)",
    "signal": "torch.zeros(2, {width}, 1024)",
    "image": "torch.zeros(2, {width}, 224, 224)",
    "video": "torch.zeros(2, {width}, 8, 224, 224)",
    "vectors": "torch.zeros(2, {width})",
}
MEANINGS = {
    "ids": "token ids [batch, length]",
    "signal": "[batch, channels, time]",
    "image": "images [batch, channels, height, width]",
    "video": "videos [batch, channels, frames, height, width]",
    "vectors": "[batch, features], or torch.zeros(2, 16, {width}) for [batch, tokens, features]",
}


def hint_for(entry: Entry | None, model: nn.Module) -> str:
    """Suggest a call: `pass example_inputs=torch.zeros(2, 1, 1024), with your sizes: ..`."""
    needed = required_arguments(model)
    if entry is None:
        tensor, meaning = "TENSOR", "one call's input, its first dimension the batch"
    else:
        tensor = SHAPES[entry.kind].format(width=entry.width)
        meaning = MEANINGS[entry.kind].format(width=entry.width)
    if len(needed) > 1:
        rest = ", ".join(needed[1:])
        return (
            f"its forward takes {', '.join(needed)}: pass example_inputs=({tensor}, {rest}) with a tensor "
            f"for each, or example_kwargs={{...}}; the first looks like {meaning}"
        )
    return f"pass example_inputs={tensor}, with your sizes: {meaning}"


def required_arguments(model: nn.Module) -> list[str]:
    """Return the names of `forward`'s arguments that have no default."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in plain and p.default is p.empty]
