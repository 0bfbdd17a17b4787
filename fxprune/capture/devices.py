"""What a model's code asks of devices: on another one it makes the same graph, or the result refuses that."""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor

from fxprune.capture.patched import patch
from fxprune.graph.code_names import ends_statement, names_before, steps_of
from fxprune.graph.example import Example
from fxprune.graph.own_nodes import guard_device
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import is_users

__all__ = [
    "OF_DEVICES",
    "TOLD_BY_TENSORS",
    "DeviceQuestions",
    "asks_kind",
    "differs_elsewhere",
    "guard_device_of",
    "kind_told",
    "noticed_devices",
    "told_of_another",
]

OF_DEVICES = ("is_cuda", "is_cpu", "is_xpu", "is_mps", "is_mtia", "is_hpu", "is_maia")
TOLD_BY_TENSORS = tuple(name for name in OF_DEVICES if hasattr(Tensor, name))


class DeviceQuestions:
    """The answers to code that asks for a kind of device, and the lines that asked.

    elsewhere: answer as on another kind than the example's.
    """

    def __init__(self, elsewhere: bool) -> None:
        self.elsewhere = elsewhere
        self.lines: dict[str, None] = {}

    def kind(self, device: torch.device, line: str | None = None) -> str:
        """Return the word for a device's kind; a line that asks for it is noted."""
        if line is not None:
            self.lines[line] = None
        return _other(device.type) if self.elsewhere else device.type

    def index(self, device: torch.device, line: str) -> int | None:
        """Return the number of a device, which kinds have of which there are several."""
        return self.told(device, line).index

    def told(self, device: torch.device, line: str) -> torch.device:
        """Return a device, or one of the other kind, to code that asks for its kind."""
        kind = self.kind(device, line)
        return _device(kind) if self.elsewhere else device


def kind_told(kind: str) -> str:
    """Return the kind of device that a model's code is told now, of a tensor on a kind."""
    return _told_kinds.get().get(kind, kind)


_told_kinds: ContextVar[dict[str, str]] = ContextVar("_told_kinds", default={})  # noqa: B039 (never written)


def _other(kind: str) -> str:
    return "cuda" if kind == "cpu" else "cpu"


def _device(kind: str) -> torch.device:
    """Return the device of a kind that a tensor lies on: the first, of several."""
    return torch.device(kind) if kind == "cpu" else torch.device(kind, 0)


@contextlib.contextmanager
def told_of_another(kind: str) -> Iterator[None]:
    """Answer a model's code that asks tensors for a kind of device as on another one, in this thread."""
    here, other = this_thread_only(), f"is_{_other(kind)}"

    def told(name: str, of: Any) -> property:
        def get(tensor: Tensor) -> bool:
            users = here() and is_users(sys._getframe(1).f_code.co_filename)
            return name == other if users else bool(of.__get__(tensor))

        return property(get)

    with contextlib.ExitStack() as patches:
        patches.callback(_told_kinds.reset, _told_kinds.set({kind: _other(kind)}))
        patches.enter_context(_devices_asked(lambda device, line: _device(_other(kind))))
        for name in TOLD_BY_TENSORS:
            patch(patches, Tensor, name, told(name, getattr(Tensor, name)))
        yield


def noticed_devices(lines: dict[str, None]) -> contextlib.AbstractContextManager[None]:
    """Note the lines of a model's code that ask the device of a tensor for its kind, in this thread."""

    def note(device: torch.device, line: str) -> torch.device:
        lines[line] = None
        return device

    return _devices_asked(note)


@contextlib.contextmanager
def _devices_asked(answer: Callable[[torch.device, str], torch.device]) -> Iterator[None]:
    """Give code that asks for the kind of a tensor's device an answer: of no other device it hears."""
    here = this_thread_only()

    def read(of: Any) -> property:
        def get(tensor: Tensor) -> torch.device:
            device: torch.device = of.__get__(tensor)
            caller = sys._getframe(1)
            if is_users(caller.f_code.co_filename) and here() and asks_kind(caller):
                return answer(device, f"{caller.f_code.co_filename}:{caller.f_lineno}")
            return device

        return property(get)

    number_of = Tensor.get_device

    def get_device(tensor: Tensor) -> int:
        caller = sys._getframe(1)
        if not (is_users(caller.f_code.co_filename) and here()):
            return number_of(tensor)
        told = answer(tensor.device, f"{caller.f_code.co_filename}:{caller.f_lineno}")
        return -1 if told.index is None else told.index  # as a tensor on the CPU says

    with contextlib.ExitStack() as patches:
        for cls in (Tensor, FakeTensor):
            patch(patches, cls, "device", read(cls.device))
        patch(patches, Tensor, "get_device", get_device)
        yield


def asks_kind(reader: types.FrameType) -> bool:
    """Does the code that reads a device ask it for its kind, and no more?

    By its type or number, in a text, or beside a device that the code itself names.  Whatever else is done
    with a device needs the tensor's own; of two tensors both move.  A word that only says where something is
    made (`torch.ones(1, device=x.device.type)`) moves as well.

    reader: the frame that reads it; what a property or function hands back, its caller has read.
    """
    frame: types.FrameType | None = reader
    while frame is not None and _hands_back(frame.f_code, frame.f_lasti):
        frame = frame.f_back
    if frame is None or not is_users(frame.f_code.co_filename):
        return False
    return _asks_kind(frame.f_code, frame.f_lasti, _devices_held(frame))


def _devices_held(frame: types.FrameType) -> frozenset[str]:
    """Return the names under which a function's file, and its first argument, hold devices."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    attributes = vars(first) if isinstance(first, nn.Module) else {}
    places = (frame.f_globals, attributes)
    return frozenset(n for n in code.co_names if any(type(at.get(n)) is torch.device for at in places))


@functools.lru_cache(1 << 12)
def _hands_back(code: types.CodeType, at: int) -> bool:
    """Does code hand on what an instruction reads, and nothing else?"""
    following = _following(code, at).opname
    return following == "RETURN_VALUE" or (code.co_name == "<genexpr>" and following == "YIELD_VALUE")


def _following(code: types.CodeType, at: int) -> dis.Instruction:
    """Return the instruction after one, less those between that do nothing."""
    steps = [step for _, step in steps_of(code) if step.opname not in _IDLE]
    here = max(i for i, step in enumerate(steps) if step.offset <= at)  # of a call, `at` may be in its cache
    return steps[here + (2 if steps[here].opname == "PRECALL" else 1)]  # Python 3.11 calls some in either


@functools.lru_cache(1 << 12)
def _asks_kind(code: types.CodeType, at: int, held: frozenset[str]) -> bool:
    statement = _statement_around(code, at)
    if _names_keyword(statement, code, "device") and not _compares(statement):
        return False
    following = _following(code, at)
    if following.opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return following.argval in ("type", "index")
    if following.opname == "STORE_FAST":  # `device = x.device`, of which nothing else is asked below
        name = following.argval
        loads = [step for _, step in steps_of(code) if "LOAD_FAST" in step.opname and _is_of(step, name)]
        return bool(loads) and all(s.argval == name and _asks_kind(code, s.offset, held) for s in loads)
    if following.opname.startswith(("CALL", "PRECALL")):
        return "str" in names_before(code, at)
    return following.opname.startswith("FORMAT") or _names_a_device(code, at, held)


@functools.lru_cache(1 << 12)
def _names_a_device(code: types.CodeType, at: int, held: frozenset[str]) -> bool:
    statement = _statement_around(code, at)
    words = [step for step in statement if step.opname.startswith("LOAD")]
    own = _devices_named(code)
    is_held = any(
        w.argval in (own if "FAST" in w.opname else held) for w in words if w.opname != "LOAD_CONST"
    )
    return (_makes_device(words) or is_held) and _compares(statement)


@functools.lru_cache(1 << 12)
def _devices_named(code: types.CodeType) -> frozenset[str]:
    """Return the names of its own to which code gives a device that it names: `cpu = torch.device("cpu")`."""
    named, words = set[str](), list[dis.Instruction]()
    for _, step in steps_of(code):
        if step.opname == "STORE_FAST" and _makes_device(words):
            named.add(step.argval)
        words = [] if ends_statement(step) else [*words, *([step] if step.opname.startswith("LOAD") else [])]
    return frozenset(named)


def _makes_device(words: Iterable[dis.Instruction]) -> bool:
    """Is `device` loaded, and then a word?"""
    return any(
        name.argval == "device" and word.opname == "LOAD_CONST" and isinstance(word.argval, str)
        for name, word in itertools.pairwise(words)
    )


def _is_of(step: dis.Instruction, name: str) -> bool:
    """Is a local name read, alone or beside another?"""
    return step.argval == name or (isinstance(step.argval, tuple) and name in step.argval)


def _names_keyword(statement: Iterable[dis.Instruction], code: types.CodeType, name: str) -> bool:
    """Does a statement call something with a keyword argument of a name?"""
    places = [step.arg for step in statement if step.opname in ("KW_NAMES", "LOAD_CONST")]
    named = [code.co_consts[place] for place in places if place is not None]
    return any(isinstance(names, tuple) and name in names for names in named)


def _compares(statement: Iterable[dis.Instruction]) -> bool:
    return any(step.opname in ("COMPARE_OP", "CONTAINS_OP") for step in statement)


def _statement_around(code: types.CodeType, at: int) -> list[dis.Instruction]:
    """Return the instructions of the statement that one stands in."""
    statement: list[dis.Instruction] = []
    for _, step in steps_of(code):
        if step.opname not in _IDLE:
            statement.append(step)
        if ends_statement(step):
            if step.offset > at:
                break
            statement = []
    return statement


_IDLE = {"CACHE", "EXTENDED_ARG", "RESUME", "NOP", "PUSH_NULL", "COPY"}


def differs_elsewhere(graph: fx.Graph, elsewhere: Callable[[], fx.Graph], device: torch.device) -> bool:
    """Does the model's code make another graph on another kind of device?

    elsewhere: traces it with the answers of that kind.
    """
    try:
        return _spelled(graph, device) != _spelled(elsewhere(), device)
    except Exception:  # whatever user code raises for want of such a device
        return True


def guard_device_of(graph: fx.Graph, example: Example, lines: Iterable[str]) -> None:
    """Let a graph refuse inputs on another kind of device than the example's."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    given = zip(inputs, (*example.args, *example.kwargs.values()), strict=False)
    for node, value in given:
        if isinstance(value, Tensor):
            with graph.inserting_before(inputs[-1].next):
                of = graph.call_function(getattr, (node, "device"))
                kind = graph.call_function(getattr, (of, "type"))
                graph.call_function(guard_device, (kind, value.device.type), {"where": next(iter(lines))})
            return


def _spelled(graph: fx.Graph, device: torch.device) -> str:
    """Spell a graph alike on both kinds."""
    other = _device(_other(device.type))
    text = str(graph).replace(repr(other), repr(device)).replace(str(other), str(device))
    return text.replace(other.type, device.type)
