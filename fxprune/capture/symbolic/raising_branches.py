"""Branches that only raise: `assert x.isfinite().all()`, `if (labels < 0).any(): raise ValueError(..)`.

No trace knows a tensor's values, yet there is one way on: the graph takes it and checks, as the code does.
"""

from __future__ import annotations

import dis
import functools
import types

from fxprune.capture.symbolic.tried_calls import handled_at, may_be_tried, tried_at
from fxprune.graph.code_names import statement_before, steps_of

__all__ = ["truth_that_goes_on"]


def truth_that_goes_on(asks: types.FrameType, outermost: types.CodeType) -> bool | None:
    """Return the truth without which the code that asks for one raises; None if it goes on with either.

    asks: the frame that asks, at the instruction that does.
    outermost: the code that traces, beyond which no model's code stands on the stack.
    """
    places = [*may_be_tried(asks, outermost)]
    if any(tried_at(*place) for place in places) or handled_at(asks.f_code, asks.f_lineno):
        return None
    return _goes_on(asks.f_code, asks.f_lasti)


@functools.lru_cache(1 << 12)
def _goes_on(code: types.CodeType, at: int) -> bool | None:
    steps = [step for _, step in steps_of(code)]
    here = next((i for i, step in enumerate(steps) if step.offset >= at), len(steps))
    if here < len(steps) and _is_call_of_bool(steps[here], code):
        here += 2 if steps[here].opname == "PRECALL" else 1  # Python 3.11 calls some in either
    negated = False
    for i, step in enumerate(steps[here:], here):
        if step.opname == "UNARY_NOT":
            negated = not negated
        elif step.opname.startswith("POP_JUMP") and step.opname.endswith(("IF_TRUE", "IF_FALSE")):
            jumps, falls = _only_raises(steps, step.argval), _only_raises(steps, steps[i + 1].offset)
            on_true = jumps if step.opname.endswith("TRUE") else falls
            return None if jumps is falls else on_true is negated
        elif step.opname not in _IDLE:  # more is done with the truth, or it is one of several
            return None
    return None


_IDLE = {"CACHE", "EXTENDED_ARG", "NOP", "TO_BOOL"}


def _is_call_of_bool(step: dis.Instruction, code: types.CodeType) -> bool:
    """Is it `bool(x)`, and neither `any(..)` nor another function that asks several truths?"""
    if not step.opname.startswith(("CALL", "PRECALL")):
        return False
    called = {
        s.argval for s in statement_before(code, step.offset) if s.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return "bool" in called and not called & {"all", "any", "filter"}


def _only_raises(steps: list[dis.Instruction], offset: int) -> bool:
    """Does every way on from an instruction raise?"""
    place = {step.offset: i for i, step in enumerate(steps)}
    front, seen = [place[offset]], set[int]()
    while front:
        i = front.pop()
        if i in seen:
            continue
        seen.add(i)
        name = steps[i].opname
        if name.startswith(("RAISE", "RERAISE")):
            continue
        if name.startswith(("RETURN", "YIELD")) or "BACKWARD" in name:
            return False
        if "JUMP" in name or name == "FOR_ITER":
            front.append(place[steps[i].argval])
        if name not in ("JUMP_FORWARD", "JUMP_ABSOLUTE"):
            front.append(i + 1)
    return True
