"""Regions of autocast in a model's code: nodes turn it off; no graph turns it on, elsewhere either."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fxprune.capture.precisions import AUTOCAST_ON
from fxprune.graph.own_nodes import autocast_back, autocast_off
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import users_frame

__all__ = ["noticed_regions", "traced_regions"]

ASKED = "_fxprune_asked"  # of a region: does its code turn autocast on?  (Torch forgets where it can't be.)


def _asks_for_autocast(region: Any) -> bool:
    """Does a region's code turn autocast on?  One that was made before nobody looked may."""
    return bool(vars(region).get(ASKED, True))


@contextlib.contextmanager
def noticed_regions(kind: str, lines: dict[str, None]) -> Iterator[None]:
    """Note the lines of a model's code that turn autocast on for another kind of device, in this thread."""
    autocast: Any = torch.amp.autocast_mode.autocast
    init, enter, here = autocast.__init__, autocast.__enter__, this_thread_only()

    def made(region: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(region, device_type, *args, **kwargs)
        vars(region)[ASKED] = bool(kwargs.get("enabled", args[1] if len(args) > 1 else True))

    def entered(region: Any) -> Any:
        if here() and region.device != kind and _asks_for_autocast(region):
            lines[_line()] = None
        return enter(region)

    autocast.__init__, autocast.__enter__ = made, entered
    try:
        yield
    finally:
        autocast.__init__, autocast.__enter__ = init, enter


def _line() -> str:
    frame = users_frame(sys._getframe(2)) or sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def traced_regions(
    autocast: Any, tracer: Any, tracing_here: Callable[[], bool]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Patch `with torch.autocast(..)`: nodes turn it off and on again."""
    enter, leave = autocast.__enter__, autocast.__exit__
    entered: dict[Any, list[Any]] = {}

    def off(region: Any) -> Any:
        if not tracing_here():
            return enter(region)
        device = tracer.device_node()
        kind = device and tracer.devices.kind(tracer.decisions.structure(device))
        own = region.device == kind
        if not own and _asks_for_autocast(region):
            return enter(region)
        if own and region._enabled:
            raise NotImplementedError(AUTOCAST_ON)
        device = device if own else torch.device(region.device)  # the result may be moved there
        before = tracer.create_proxy("call_function", autocast_off, (device,), {})
        entered.setdefault(region, []).append((before, device))
        return region

    def back(region: Any, *raised: Any) -> Any:
        if not entered.get(region):
            return leave(region, *raised)
        tracer.create_proxy("call_function", autocast_back, entered[region].pop(), {})
        return False

    return off, back
