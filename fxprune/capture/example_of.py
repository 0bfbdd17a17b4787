"""Example inputs: given, recorded on the model, or found by asking the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture.inputs.find import find_example
from fxprune.capture.refuse import refuse_unsupported
from fxprune.errors import ExampleInputError
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.process_lock import PROCESS_LOCK
from fxprune.graph.tensors import like_weights

__all__ = ["example_of"]


def example_of(model: nn.Module, example_inputs: Any = None, example_kwargs: Any = None) -> Example:
    """Return the example given, or one that the model takes: two blank samples.

    Looked for in turn: an `example_input_array` (Lightning); the shapes that a result of ours was pruned
    with; the size that timm (`pretrained_cfg`), Hugging Face (`config`) or torchvision record, where the
    model agrees with it; what the model's first layer and its tables of positions tell, see
    `fxprune.capture.inputs`.

    Raises:
        ExampleInputError: no inputs are known; says what to pass.
    """
    if example_inputs is not None or example_kwargs is not None:
        return _with_something(_given(example_inputs, example_kwargs))
    recorded = getattr(model, "example_input_array", None)
    if recorded is not None:
        return _on_device(_recorded_example(recorded), model)
    shapes = getattr(getattr(model, "record", None), "example", None)
    if isinstance(shapes, Example):  # a result of ours, pruned again
        return seeded_noise(shapes, model)
    refuse_unsupported(model)
    if not inspect.signature(model.forward).parameters:
        raise ExampleInputError(
            f"{type(model).__name__}.forward takes no arguments, and only a function of inputs can be "
            f"pruned: let it take what it starts from"
        )
    with PROCESS_LOCK:  # the model's code runs, which must not meet what a capture patches
        return find_example(model)


def _with_something(example: Example) -> Example:
    """Refuse an example of nothing."""
    if not pytree.tree_leaves((example.args, example.kwargs)):
        raise ExampleInputError(
            "example_inputs= and example_kwargs= hold nothing, and a model is captured as a function of its "
            "inputs: give one"
        )
    return example


def _recorded_example(recorded: Any) -> Example:
    """Return a tensor, a tuple of positional arguments or a dict of keyword arguments."""
    if isinstance(recorded, Mapping):
        return Example((), dict(recorded))
    return _given(recorded, None)


def _on_device(example: Example, model: nn.Module) -> Example:
    """Bring an example to the dtype and device of the model's weights."""
    like = like_weights(model)
    return example.map(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype))


def _given(example_inputs: Any, example_kwargs: Any) -> Example:
    if example_inputs is None:
        args: tuple[Any, ...] = ()
    elif isinstance(example_inputs, Tensor):
        args = (example_inputs,)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    else:
        cure = "; keyword arguments go to example_kwargs=" if isinstance(example_inputs, Mapping) else ""
        raise ExampleInputError(
            "example_inputs is a tensor or a tuple of positional arguments, "
            f"not {type(example_inputs).__name__}{cure}"
        )
    return Example(args, dict(example_kwargs or {}))
