"""Model -> module-level FX graph: symbolic where tracing sees the whole model, torch.export otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.attention import decompose_modules
from fxprune.capture.call_state import DependsOnCall
from fxprune.capture.checkpoints import CHECKPOINTS, noticed_checkpoints
from fxprune.capture.example_of import example_of
from fxprune.capture.exported.capture import FIXED_BATCH, capture_exported
from fxprune.capture.held_state import HeldState
from fxprune.capture.refuse import refuse_unsupported
from fxprune.capture.symbolic.capture import capture_symbolic
from fxprune.capture.taught import taught_notes
from fxprune.capture.torch_errors import asks_values
from fxprune.errors import CaptureError, ExampleInputError, OptionError, PassError, first_line, shown
from fxprune.graph.captured import Captured, Way
from fxprune.graph.copies import copy_to_trace, own, structural_copy
from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_size
from fxprune.graph.quiet import quiet_libraries
from fxprune.graph.refuse_train_mode import refuse_train_mode
from fxprune.graph.source_files import line_of_error, users_level
from fxprune.graph.uncompiled import outdate
from fxprune.passes.canonical.canonicalise import canonicalise
from fxprune.passes.check import Check

__all__ = ["Example", "capture_alike", "capture_model", "example_of", "trace"]

WAYS: dict[str, tuple[Way, ...]] = {
    "auto": ("symbolic", "export"),
    "symbolic": ("symbolic",),
    "export": ("export",),
}

OF_VALUES = (
    "Which code runs there, or how large a tensor is, depends on the values of a tensor, which differ from "
    "call to call: no graph holds that.  Prune the part before it (a submodule: prune(model.encoder, ..)), "
    "or give example inputs with which that code does not run"
)
HOOKS = "forward hooks of the model's own library are traced with it, and are not in the result"


def trace(
    model: nn.Module,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    *,
    capture: str = "auto",
    split_qkv: bool = False,
    check: Check = False,
) -> fx.GraphModule:
    """Capture a model as a canonical, module-level FX graph that shares the model's tensors.

    Args:
        model: any vision model; it is not changed.
        example_inputs: a tensor or a tuple of positional arguments, where the model does not record
            its input shape.
        example_kwargs: keyword arguments of the example call.
        capture: "symbolic", "export", or "auto": the first, and the second where the first fails.
        split_qkv: cut projections that hold queries, keys and values apart.
        check: verify the graph after every pass that brings it to its canonical form, for whoever works on
            passes: True looks at its structure, and at the outputs' shapes and values; "shapes" runs nothing.

    Returns:
        A GraphModule in eval mode; `.meta["capture"]` says how it was captured, `.meta["notes"]` what
        the capture could not keep.  Each node's `meta["val"]` holds its (fake) value.

    Raises:
        CaptureError: neither way works; the message holds both reasons.
        ExampleInputError: no input shape is known, or the model rejects the example.
        UnsupportedModuleError: a parametrised weight, a hook, a compiled, scripted or lazy layer.
        PassError: with `check`, a pass broke the graph; names it and those that ran before it.

    Example:
        >>> fxprune.trace(timm.create_model("deit_tiny_patch16_224")).print_readable()
    """
    example = example_of(model, example_inputs, example_kwargs)
    captured = capture_model(model, example, capture=capture, split_qkv=split_qkv, check=check)
    captured.module.recompile()
    refuse_train_mode(captured.module, captured.untrained)
    captured.module.meta.update(capture=captured.way, notes=list(captured.notes))  # for users to read
    return captured.module


def capture_model(
    model: nn.Module,
    example: Example,
    *,
    capture: str = "auto",
    split_qkv: bool = False,
    check: Check = False,
    taught: frozenset[str] = frozenset(),
) -> Captured:
    """Capture a model as a canonical graph; arguments and errors as of `trace`.

    taught: the names of functions and module classes that a user taught rules for: their calls stay.
    """
    ways = WAYS.get(capture)
    if ways is None:
        raise OptionError(f"capture={shown(capture)}: one of {', '.join(map(repr, WAYS))}")
    refuse_unsupported(model)
    failures: list[CaptureError] = []
    refused: list[DependsOnCall] = []
    for way in ways:
        try:
            with quiet_libraries():
                captured = _captured(model, example, way, split_qkv, taught, check)
            _say_where(captured, failures)
            for note in captured.notes:
                if note.startswith(FIXED_BATCH):
                    warnings.warn(f"{type(model).__name__}: {note}", stacklevel=users_level())
            return captured
        except (ExampleInputError, PassError):
            raise
        except DependsOnCall as error:  # export follows tensors that code keeps, where it can
            refused.append(error)
        except Exception as error:  # whatever user code raises while it is traced
            failures.append(_located(way, error))
    if refused:
        raise DependsOnCall(f"{type(model).__name__} can't be captured as a graph: {refused[0]}")
    raise _why_not(model, example, failures)


def capture_alike(
    model: nn.Module,
    captured: Captured,
    *,
    taught: frozenset[str] = frozenset(),
    watched: Callable[[nn.Module], AbstractContextManager[None]] = lambda copy: nullcontext(),
) -> Captured:
    """Capture a model as another one was: by the same way, with the same example and options.

    Code that was held beside its graph in other shapes, with that one, is not again.

    watched: entered with the copy of the model whose code then runs.  Raises whatever that code raises.
    """
    with quiet_libraries():
        return _captured(
            *(model, captured.example, captured.way, captured.split_qkv, taught, False),
            watched=watched,
            tried=False,
        )


def _captured(
    model: nn.Module,
    example: Example,
    way: Way,
    split_qkv: bool,
    taught: frozenset[str],
    check: Check,
    watched: Callable[[nn.Module], AbstractContextManager[None]] = lambda copy: nullcontext(),
    tried: bool = True,
) -> Captured:
    copy = copy_to_trace(model)
    decompose_modules(copy)
    with noticed_checkpoints() as checkpoints, watched(copy):
        if way == "symbolic":
            captured = capture_symbolic(copy, example, _copies(model, copy), taught, tried=tried)
        else:
            captured = capture_exported(copy, example)
            captured = replace(captured, notes=(*captured.notes, *taught_notes(model, taught)))
    if checkpoints:
        captured = replace(captured, notes=(*captured.notes, CHECKPOINTS))
    if any(m._forward_hooks or m._forward_pre_hooks for m in copy.modules()):
        captured = replace(captured, notes=(*captured.notes, HOOKS))
    return canonicalise(replace(captured, split_qkv=split_qkv), copy, check=check)


def _say_where(captured: Captured, failures: list[CaptureError]) -> None:
    """Write into guards of sizes that know no line the one at which symbolic tracing stopped."""
    for where in filter(None, (failure.where for failure in failures)):
        for node in captured.module.graph.nodes:
            if node.target is guard_size and not node.kwargs.get("where"):
                node.kwargs = {**node.kwargs, "where": where}
        outdate(captured.module)


def _copies(model: nn.Module, copy: nn.Module) -> dict[int, nn.Module]:
    pairs = zip(model.modules(), copy.modules(), strict=True)
    return {id(original): copied for original, copied in pairs if original is not copied}


def _located(way: str, error: Exception) -> CaptureError:
    """Return the reason a capture failed, with the last line of the user's code that it passed through."""
    where = line_of_error(error)
    said = f"{way}: {type(error).__name__}: {first_line(error)}"
    found = CaptureError(said + (f" at {where}" if where else ""))
    found.where, found.asks_values = where, asks_values(error)
    return found


def _why_not(model: nn.Module, example: Example, failures: list[CaptureError]) -> Exception:
    """Find the error to raise: the model rejects the example, or no capture takes the model."""
    shapes = [tuple(t.shape) for t in example.args if hasattr(t, "shape")]
    rejected = _rejection(model, example)
    if rejected is not None and example.args and all(type(a) is int for a in example.args):
        size = ", ".join(map(str, example.args))
        return ExampleInputError(
            f"{type(model).__name__} rejects the example inputs ({size}), which are no tensors: for "
            f"an input of that shape give torch.zeros({size})"
        )
    if rejected is not None:
        return ExampleInputError(
            f"{type(model).__name__} rejects the example inputs {shapes}: {rejected}; pass "
            f"example_inputs= that the model accepts"
        )
    reasons = "\n  ".join(map(str, failures))
    cure = f"\n{OF_VALUES}" if any(f.asks_values for f in failures) else ""
    return CaptureError(f"{type(model).__name__} can't be captured as a graph:\n  {reasons}{cure}")


def _rejection(model: nn.Module, example: Example) -> str | None:
    copy = structural_copy(model, own)
    copy.eval()
    try:
        with quiet_libraries(), HeldState(copy).restored(), torch.no_grad():
            copy(*example.args, **example.kwargs)
    except Exception as error:  # any error of the user's model is the answer
        return f"{type(error).__name__}: {first_line(error)}"
    return None
