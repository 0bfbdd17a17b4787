"""Names of torch that are not public, and without which an exported program can't be trusted.

What torch.export took for granted of sizes stands in no public place.  All that is read or patched of it is
here, and asked for by name before anything is exported: a torch that lacks one is refused, never guessed.
"""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_impls
from torch.fx.experimental import _config, symbolic_shapes

from fxprune.errors import CaptureError
from fxprune.graph.source_files import is_users

__all__ = ["TooLong", "all_sizes_alike", "guards_of", "layout_unasked", "refuse_other_torch", "users_lines"]

_SHAPE_ENV = symbolic_shapes.ShapeEnv
# How torch finds out whether a view of some strides can be had: the model's code does not ask, and the graph
# has reshapes.
_LAYOUT: tuple[tuple[Any, str], ...] = (
    *(
        (fake_impls, name)
        for name in ("_compute_stride", "is_contiguous", "_is_contiguous_with_hinted_checks")
    ),
    (torch._C, "_conv_determine_backend_memory_format"),
)
_NEEDED: tuple[tuple[Any, str], ...] = (
    (_config, "backed_size_oblivious"),
    (_config, "patch"),
    (_SHAPE_ENV, "_get_user_frame"),
    (_SHAPE_ENV, "suppress_guards"),
    (torch.SymInt, "__int__"),
    (torch.SymFloat, "__int__"),
    (torch.SymFloat, "__float__"),
)


class TooLong(BaseException):
    """Sizes are such long expressions that they are better not left open."""


def refuse_other_torch() -> None:
    """Refuse a torch that lacks what is needed.

    Raises:
        CaptureError: names what is missing, and the ways out.
    """
    missing = [
        f"{getattr(owner, '__name__', owner)}.{name}" for owner, name in _NEEDED if not hasattr(owner, name)
    ]
    if missing:
        raise CaptureError(
            f"torch {torch.__version__} has no {', '.join(missing)}, by which fxprune learns what "
            f"torch.export relies on: use capture='symbolic', or a torch that has it (2.14 does)"
        )


def all_sizes_alike() -> contextlib.AbstractContextManager[Any]:
    """Make a size of one no case apart: `if x.shape[0] == 1` is among what a program relies on."""
    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def guards_of(program: torch.export.ExportedProgram) -> list[tuple[str, str]]:
    """Return what a program relies on, as Python code over `L['x'].size()[0]`, and the user's line of each.

    A line is "" where it is not known.

    Raises:
        CaptureError: this torch does not say what it relies on.
    """
    codes = getattr(program, "_guards_code", None)
    if codes is None:
        raise CaptureError(
            f"torch {torch.__version__} has no ExportedProgram._guards_code, by which fxprune learns what "
            f"torch.export relies on: use capture='symbolic', or a torch that has it (2.14 does)"
        )
    lines = _lines(program)
    return list(zip(codes, lines if len(lines) == len(codes) else [""] * len(codes), strict=True))


def _lines(program: torch.export.ExportedProgram) -> list[str]:
    """Return the line at which each guard on inputs alone was made, in torch's order."""
    sizes = (
        size
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
        for size in node.meta["val"].shape
        if isinstance(size, torch.SymInt)
    )
    known: Any = next((size.node.shape_env for size in sizes), None)
    if known is None:
        return []
    inputs = set(known.var_to_sources)
    return [_line(g.sloc.framework_loc) for g in known.guards if g.expr.free_symbols <= inputs]


def _line(place: Any) -> str:
    known = isinstance(place, traceback.FrameSummary) and is_users(place.filename)
    return f"{place.filename}:{place.lineno}" if known else ""


@contextlib.contextmanager
def users_lines() -> Iterator[None]:
    """Let torch note the line of the model's code, not of a library that it calls, where it makes a guard."""

    def users_frame(_: Any) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None and not is_users(frame.f_code.co_filename):
            frame = frame.f_back
        return frame

    before = _SHAPE_ENV._get_user_frame
    _SHAPE_ENV._get_user_frame = users_frame  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        _SHAPE_ENV._get_user_frame = before  # type: ignore[method-assign]


@contextlib.contextmanager
def layout_unasked(longest: float = math.inf) -> Iterator[None]:
    """Keep what is computed of strides out of what the program relies on.

    Args:
        longest: operations in the sizes of one tensor, beyond which TooLong is raised: torch takes minutes
            to compare them.
    """

    def unasked(original: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*args: Any, **kwargs: Any) -> Any:
            shapes = [(*a.shape, *a.stride()) if isinstance(a, Tensor) else a for a in args]
            listed = [s for s in shapes if isinstance(s, (tuple, list))]
            sizes = [size for sizes in listed for size in sizes if isinstance(size, torch.SymInt)]
            known: Any = sizes[0].node.shape_env if sizes else None
            if sum(int(size.node.expr.count_ops()) for size in sizes) > longest:
                raise TooLong
            with contextlib.nullcontext() if known is None else known.suppress_guards():
                return original(*args, **kwargs)

        return computed

    with contextlib.ExitStack() as patches:
        for owner, name in _LAYOUT:
            original = getattr(owner, name, None)  # one that is missing is not asked: a guard more
            if original is not None:
                patches.callback(setattr, owner, name, original)
                setattr(owner, name, unasked(original))
        yield
