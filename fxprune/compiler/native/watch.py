"""Run a module's own code beside the pruned graph, and find the module that makes the first difference."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.certify.comparison import same_draws
from fxprune.certify.float64 import Float64Interpreter, default_float64, in_double
from fxprune.compiler.native.boundaries import Boundary
from fxprune.compiler.native.fingerprint import Fingerprint, Prints, is_same, prints_match, prints_of
from fxprune.compiler.native.traits import repeatable
from fxprune.errors import first_line
from fxprune.graph.example import Example
from fxprune.graph.source_files import line_of_error
from fxprune.graph.tensors import floats_of, is_inside
from fxprune.result.own_forward import runs_graph
from fxprune.rules.modules import native

__all__ = ["Expected", "Fault", "expected_of", "fault_in"]


@dataclass(frozen=True)
class Expected:
    """What the graph computes on an example: its layers' inputs, call by call, and its outputs.

    inputs: None in the place of a call that code makes and the graph does not, as nothing depends on it.
    entries: what other modules are given, call by call; None for what is not known.
    results: what they return, where all of it is known.
    """

    example: Example
    inputs: Mapping[str, list[Prints | None]]
    outputs: list[Tensor]
    entries: Mapping[str, list[list[Fingerprint | None]]] = field(default_factory=dict)
    results: Mapping[str, list[Prints]] = field(default_factory=dict)


def expected_of(
    double: fx.GraphModule, example: Example, boundaries: Mapping[str, list[Boundary]] | None = None
) -> Expected:
    """Run a graph in float64; note what goes into its layers, and what it has at modules' boundaries."""
    boundaries = {path: calls for path, calls in (boundaries or {}).items() if path}
    results = {
        path: [call.names for call in calls]
        for path, calls in boundaries.items()
        if all(call.is_known for call in calls)
    }
    entries = {path: [call.given for call in calls] for path, calls in boundaries.items()}
    lists = [names for known in (results, entries) for calls in known.values() for names in calls]
    with torch.no_grad(), same_draws(double), default_float64():
        run = _Recorder(double, {name for names in lists for name in names})
        outputs = run.run_on(example)
    known = {
        path: [tuple(run.prints[name] for name in names) for names in calls]
        for path, calls in results.items()
        if all(name in run.prints for names in calls for name in names)
    }
    given = {path: [[*map(run.prints.get, names)] for names in calls] for path, calls in entries.items()}
    inputs = {path: _with_dead(prints, boundaries.get(path, [])) for path, prints in run.inputs.items()}
    return Expected(example, inputs, floats_of(outputs), given, known)


def _with_dead(prints: list[Prints], calls: list[Boundary]) -> list[Prints | None]:
    """Put None among a graph's calls of a layer wherever the code makes one more."""
    known = iter(prints)
    alive = sum(not call.is_dead for call in calls)
    return [None if call.is_dead else next(known) for call in calls] if alive == len(prints) else [*prints]


class _Recorder(Float64Interpreter):
    def __init__(self, module: fx.GraphModule, noted: set[str]) -> None:
        super().__init__(module)
        self.inputs: dict[str, list[Prints]] = {}
        self.noted, self.prints = noted, dict[str, Fingerprint]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.noted and isinstance(value, Tensor):
            self.prints[n.name] = Fingerprint.of(value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.inputs.setdefault(str(target), []).append(prints_of((args, kwargs)))
        return super().call_module(target, args, kwargs)


@dataclass(frozen=True)
class Fault:
    """Where a module's code first does something else than the graph.

    path: the module whose own code was running.
    args, kwargs: what it was called with.
    calls: how often each layer had been called before.
    draws: where random numbers stood.
    error: what the code raised, with its line, or what differed.
    progress: how many modules had been entered and left as they should; then the line of its own code.
    caller: the call of the module around it, from the same run, if it was not the first.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: Counter[str]
    draws: Tensor | None
    error: str
    progress: tuple[int, int]
    caller: Fault | None = None


def fault_in(
    module: nn.Module,
    path: str,
    example: Example,
    expected: Expected,
    calls: Counter[str],
    draws: Tensor | None = None,
    root: nn.Module | None = None,
) -> Fault | None:
    """Call a float64 module; return the first difference to what the graph expects, or None.

    Of the root (path ""), what it returns is compared as well.  Random numbers are those that the graph drew.

    root: what the module lies in, whose other modules it may be given; what they keep is taken back as well.
    """
    modules = {f"{path}.{name}".strip("."): m for name, m in module.named_modules()}
    watch = _Watch(expected, Counter(calls), modules)
    first = _Call(path, example.args, example.kwargs, calls, draws)
    args, kwargs = repeatable((example.args, example.kwargs))
    kept = _state_kept(module if root is None else root)
    with torch.no_grad(), same_draws(module), in_double(), kept, _watched(module, path, watch):
        if draws is not None:
            torch.set_rng_state(draws)
        try:
            outputs = module(*args, **kwargs)
        except Exception as error:  # whatever the code does with sizes that it did not expect
            fault, said = None, _said(error)
            stack = watch.stack or [first]
            at_fault = module.get_submodule(stack[-1].path[len(path) :].lstrip("."))
            progress = watch.progress, _line_within(at_fault, error)
            for call in stack:
                fault = Fault(**vars(call), error=said, progress=progress, caller=fault)
            return fault
    if path or is_same(floats_of(outputs), expected.outputs):
        return None
    said = "what the model returns is not what it should be"
    return Fault(**vars(first), error=said, progress=(watch.progress, 0))


class _Differs(Exception):
    pass


@dataclass(frozen=True)
class _Call:
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: Counter[str]
    draws: Tensor | None


@dataclass
class _Watch:
    """Follows a run through hooks, compares what goes into each layer; not frozen: it counts how far."""

    expected: Expected
    calls: Counter[str]
    modules: Mapping[str, nn.Module]
    left: Counter[str] = field(default_factory=Counter)
    entered: Counter[str] = field(default_factory=Counter)
    stack: list[_Call] = field(default_factory=list)
    progress: int = 0

    def enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], own: bool) -> None:
        known = None if own else self.expected.inputs.get(path)
        if known is not None:
            count = self.calls[path]
            while count < len(known) and known[count] is None and self._by_graph():
                count += 1
            self.calls[path] = count + 1
            wanted = known[count] if count < len(known) else ()
            if wanted is not None and not prints_match(prints_of((args, kwargs)), wanted):
                raise _Differs(f"what goes into {path} is not what it should be")
        elif self.stack:
            self._compare_entry(path, prints_of((args, kwargs)))
        args, kwargs = repeatable((args, kwargs))
        self.stack.append(_Call(path, args, kwargs, Counter(self.calls), torch.get_rng_state()))
        self.progress += 1

    def _by_graph(self) -> bool:
        """Does a graph make this call?  It makes none that nothing depends on."""
        caller = self.modules.get(self.stack[-1].path) if self.stack else None
        return caller is not None and (isinstance(caller, fx.GraphModule) or runs_graph(caller))

    def _compare_entry(self, path: str, got: Prints) -> None:
        """Compare what a module is given: if that is wrong, the code around it is, not its own."""
        calls = self.expected.entries.get(path, [])
        count = self.entered[path]
        self.entered[path] += 1
        if count >= len(calls) or (len(calls) > 1 and self.stack[0].path):
            return  # in a run of one module, nobody knows which of the calls this is
        pairs = zip(got, calls[count], strict=False)
        if len(got) == len(calls[count]) and any(b is not None and not a.matches(b) for a, b in pairs):
            raise _Differs(f"what goes into {path} is not what it should be")

    def leave(self, path: str, out: Any, in_part: bool) -> None:
        # A layer in a part of the graph returns what the graph's does, less what its own code adds to that.
        known = None if in_part else self.expected.results.get(path)
        if known is not None:
            count = self.left[path]
            self.left[path] += 1
            if count < len(known) and not prints_match(prints_of(out), known[count]):
                raise _Differs(f"what {path} returns is not what it should be")
        self.stack.pop()
        self.progress += 1


@contextlib.contextmanager
def _watched(root: nn.Module, prefix: str, watch: _Watch) -> Iterator[None]:
    handles = []
    parts = [name for name, module in root.named_modules() if isinstance(module, fx.GraphModule)]
    for name, module in root.named_modules():
        path = f"{prefix}.{name}".strip(".")
        in_part = any(name != part and is_inside(name, [part]) for part in parts)
        # A user's own layer may take the graph's input in another layout.
        own = native(module) is None and bool(module._parameters or module._buffers)

        def enter(m: nn.Module, args: Any, kwargs: Any, path: str = path, own: bool = own) -> None:
            watch.enter(path, args, kwargs, own)

        def leave(
            m: nn.Module, args: Any, kwargs: Any, out: Any, path: str = path, in_part: bool = in_part
        ) -> None:
            watch.leave(path, out, in_part)

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _state_kept(root: nn.Module) -> Iterator[None]:
    """Put attributes and buffers that code assigns back in the end: they were made of other numbers.

    So are hooks that it registers, as it would do once more where an attribute says no longer that it did.
    """
    held = [holder for module in root.modules() for holder in (vars(module), module._buffers)]
    held += [v for holder in held for name, v in holder.items() if "_hooks" in name and isinstance(v, dict)]
    before = [dict(holder) for holder in held]
    try:
        yield
    finally:
        for holder, known in zip(held, before, strict=True):
            if [*map(id, holder.values())] != [*map(id, known.values())] or [*holder] != [*known]:
                holder.clear()
                holder.update(known)


def _line_within(module: nn.Module, error: Exception) -> int:
    """Find the line of a module's `forward` that an error passed through: the later, the more was right."""
    at = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        first = at.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if code.co_name == "forward" and first is module:
            return at.tb_lineno
        at = at.tb_next
    return 0


def _said(error: Exception) -> str:
    where = line_of_error(error)
    kind = "" if isinstance(error, _Differs) else f"{type(error).__name__}: "
    return f"{kind}{first_line(error)}" + (f" at {where}" if where else "")
