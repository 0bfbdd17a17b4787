"""Axis inference: one walk over the graph, asking each op's rule how axes flow through it."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor, fx

from fxprune.analysis.batch import flag_batch
from fxprune.analysis.outputs import Outputs, frozen_outputs
from fxprune.analysis.solver import AxisError, Reason, Solver
from fxprune.errors import RuleError
from fxprune.graph.captured import Captured
from fxprune.graph.guards import only_checked
from fxprune.graph.nests import Value, leaves, outline
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import makes_output, object_of, output_in_order
from fxprune.graph.tensors import tensor_at
from fxprune.rules.axes import atom, batch, frozen
from fxprune.rules.calls import Call, Weight, call_of
from fxprune.rules.registry import Axes, Flow, NotCovered, Out, Rule, RuleSet, Typed, results_of

__all__ = ["Inference", "infer"]

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One call of the graph, as its rule understood it."""

    call: Call
    rule: Rule | None
    flow: Flow

    @functools.cached_property
    def bound(self) -> dict[str, object]:
        """The call's arguments by the names of its rule's signature; none where it has no rule."""
        return self.call.bind(self.rule) if self.rule else {}

    @property
    def is_statistic(self) -> bool:
        """Is it a mean or a norm of what the graph computes, with a form for kept elements alone?"""
        return self.rule is not None and self.rule.masked is not None and self.source is not None

    @property
    def source(self) -> fx.Node | None:
        """The first tensor that the op is given, if the graph computes it."""
        nodes = (v for v in self.bound.values() if isinstance(v, fx.Node))
        return next((n for n in nodes if isinstance(n.meta.get("val"), Tensor)), None)


@dataclass(frozen=True)
class Inference:
    """What a walk has found, before all is resolved: axes of values and weights, and each call."""

    solver: Solver
    values: dict[fx.Node, Value] = field(default_factory=dict)  # node -> nest of `Typed`
    weights: dict[str, Axes] = field(default_factory=dict)  # state name -> axes, for names in use
    steps: dict[fx.Node, Step] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)  # op that no rule covers -> nodes

    def axes_of(self, node: fx.Node) -> list[Axes]:
        """Return the axes of every tensor that a node returns, as far as they are known now."""
        return [tuple(map(self.solver.resolve, t.axes)) for t in leaves(self.values.get(node), Typed)]


def reads_layout(node: fx.Node) -> bool:
    """Does a node read how a tensor lies in memory, where what shrinks lies otherwise?"""
    name = op_name(node.target)
    return (node.args[1] if name == "getattr" and len(node.args) > 1 else name) in _OF_LAYOUT


_OF_LAYOUT = {"stride", "sym_stride", "storage_offset", "sym_storage_offset", "nbytes", "untyped_storage"}


def infer(captured: Captured, rules: RuleSet, *, outputs: Outputs = "keep") -> Inference:
    """Walk a canonical graph (with `meta["val"]`) and unify what its ops couple.

    What no rule understands is frozen, with the reason; nothing is guessed.
    """
    found = _Walk(captured, rules, outputs).run()
    flag_batch(captured, found)
    return found


class _Walk:
    """Visits a graph's nodes in order, and gathers what their rules say into an `Inference`."""

    def __init__(self, captured: Captured, rules: RuleSet, outputs: Outputs) -> None:
        self.module, self.rules, self.outputs = captured.module, rules, outputs
        self.samples, self.checks = captured.samples, only_checked(captured.module.graph)
        self.found = Inference(Solver())
        self._tensors: dict[int, Axes] = {}  # one tensor under two names has one set of axes

    def run(self) -> Inference:
        for node in self.module.graph.nodes:
            self._visit(node)
        return self.found

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._put(node, outline(node.meta["val"], Tensor, self._input))
        elif node.op == "get_attr":
            self._put(node, self._weight(str(node.target)))
        elif node.op == "output":
            self._output(node)
        else:
            self._call(node)

    def _output(self, node: fx.Node) -> None:
        reason = Reason("reaches the output", node.name, kind="output")
        if self.outputs == "keep":
            return self._freeze_all(node.args, reason)
        for returned, stay in frozen_outputs(node, self.outputs):
            for typed, stays in zip(leaves(self._argument(returned), Typed), stay, strict=True):
                for axis in typed.axes if stays else ():
                    self.found.solver.freeze(axis, reason)

    def _call(self, node: fx.Node) -> None:
        """Ask the rule, check what it says against the value, and only then believe it."""
        value = node.meta.get("val")
        if makes_output(node):  # its fields in order; or all that an object holds, however deep
            named = node.target in (object_of, output_in_order)
            fields = node.all_input_nodes if named else [*node.args, *node.kwargs.values()]
            return self._put(node, self._argument(fields))
        if next(leaves(value, Tensor), None) is None:
            if reads_layout(node):
                self._freeze_all(node.args, Reason("its layout is read", node.name, node.meta.get("where")))
            self._put(node, None)
            return
        call = call_of(node, self.module, self.rules)
        reason = Reason(call.op, node.name, node.meta.get("where"))
        if call.op in ("getitem", "getattr") and self._from_container(node, call):
            return
        rule = self.rules.get(call.op)
        if rule is None:
            self.found.missing.setdefault(call.op, []).append(node.name)
            self._give_up(node, call, Reason(f"{call.op} has no rule", node.name, reason.where))
            return
        try:
            flow = self._ask(rule, call, value)
            _check_shape(flow.out, value)
            for a, b in flow.same:
                self.found.solver.unify(a, b, reason)
        except Exception as error:  # a rule that meets what it was not written for knows nothing of it
            if rule.taught and not isinstance(error, NotCovered):
                raise RuleError(_mistake(rule, reason, error)) from error
            text = f"the rule of {call.op} does not cover this call ({error})"
            self.found.missing.setdefault(call.op, []).append(node.name)
            self._give_up(node, call, Reason(text, node.name, reason.where))
            return
        for axis, why in flow.frozen:
            if node in self.checks and isinstance(why, Reason) and why.kind == "extremum":
                continue  # what the code asserts of all channels, it asserts of those that are left
            why = why if isinstance(why, Reason) else Reason(why)
            self.found.solver.freeze(axis, replace(why, node=node.name, where=reason.where))
        self.found.steps[node] = Step(call, rule, flow)
        self._put(node, _typed(flow.out, value))

    def _ask(self, rule: Rule, call: Call, value: object) -> Flow:
        # A rule's parameter `result` is not an argument of the call, but the shape of its value.
        bound = {name: self._argument(arg) for name, arg in call.bind(rule).items()}
        args: list[object] = []
        kwargs: dict[str, object] = {}
        for name, parameter in rule.signature.parameters.items():
            if name == "result":
                kwargs[name] = outline(value, Tensor, lambda t: Typed(_frozen(t, Reason("result"))))
            elif name not in bound:
                continue
            elif parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(bound[name])
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(bound[name])
            elif parameter.kind is parameter.KEYWORD_ONLY or len(args) < rule.positions[name]:
                kwargs[name] = bound[name]
            else:
                args.append(bound[name])
        if isinstance(flow := rule.function(*args, **kwargs), Flow):
            return flow
        raise TypeError(f"it returned {type(flow).__name__}, not a Flow")

    def _argument(self, value: object) -> Value:
        """Return an argument as a rule sees it: tensors typed, sizes as numbers."""
        if isinstance(value, fx.Node):
            known = self.found.values[value]
            return self._resolved(known) if known is not None else value.meta.get("val")
        if isinstance(value, Weight):
            return self._resolved(self._weight(value.name))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._argument, value))
        if isinstance(value, dict):
            return {k: self._argument(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._argument, (value.start, value.stop, value.step)))
        return value

    def _resolved(self, value: object) -> object:
        if isinstance(value, Typed):
            return Typed(tuple(map(self.found.solver.resolve, value.axes)))
        if isinstance(value, (list, tuple)):
            return [self._resolved(v) for v in value]
        return value

    def _input(self, t: Tensor) -> Typed:
        """Type an input: its dimensions are frozen; the first counts samples if as long as the batch."""
        axes = _frozen(t, Reason("input", kind="input"))
        if t.ndim and t.shape[0] == self.samples:
            axes = (batch(t.shape[0]), *axes[1:])
        return Typed(axes)

    def _weight(self, name: str) -> Typed:
        """Type a parameter or buffer: fresh axes, once per tensor."""
        tensor = tensor_at(self.module, name)
        axes = self._tensors.get(id(tensor))
        if axes is None:
            axes = self._tensors[id(tensor)] = tuple(atom(size) for size in tensor.shape)
        self.found.weights[name] = axes
        return Typed(axes)

    def _from_container(self, node: fx.Node, call: Call) -> bool:
        """Take a value out of a tuple or dict of tensors by place or name: that is no indexing."""
        source, index = call.args[:2]
        known = self.found.values.get(source) if isinstance(source, fx.Node) else None
        if not isinstance(source, fx.Node) or known is None or isinstance(known, Typed):
            return False
        place = _place_of(source.meta["val"], str(index)) if call.op == "getattr" else self._argument(index)
        self._put(node, known[place])
        return True

    def _give_up(self, node: fx.Node, call: Call, reason: Reason) -> None:
        """Freeze all that goes into and comes out of an op that is not understood."""
        self._freeze_all((call.args, call.kwargs), reason)
        if node.op == "call_module":
            owner = self.module.get_submodule(path := str(node.target))
            for name, _ in (*owner.named_parameters(), *owner.named_buffers()):
                self._freeze_all(Weight(f"{path}.{name}"), reason)
        value = node.meta.get("val")
        self._put(node, outline(value, Tensor, lambda t: Typed(_frozen(t, Reason(reason.text)))))

    def _freeze_all(self, value: object, reason: Reason) -> None:
        for typed in leaves(self._argument(value), Typed):
            for axis in typed.axes:
                self.found.solver.freeze(axis, reason)

    def _put(self, node: fx.Node, value: object) -> None:
        self.found.values[node] = value


def _mistake(rule: Rule, reason: Reason, error: Exception) -> str:
    """Describe what is wrong with a rule that a user taught, where, and at which call of the model."""
    code = inspect.unwrap(rule.function).__code__
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == code.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"{code.co_filename}:{line or code.co_firstlineno}"
    at = f" ({reason.where})" if reason.where else ""
    return (
        f"the rule that you taught for {rule.op!r} fails at {reason.node}{at}: "
        f"{type(error).__name__}: {error}; the rule is {rule.function.__name__} at {where}.  Mend it, or "
        f"raise fxprune.NotCovered in it for "
        f"calls that it has nothing to say about: what they touch is frozen"
    )


def _frozen(t: Tensor, why: Reason) -> Axes:
    return tuple(frozen(size, why) for size in t.shape)


def _place_of(fields: tuple[object, ...], name: str) -> int:
    """Return the index of a named tuple's field."""
    field = getattr(fields, name)
    return next(i for i, value in enumerate(fields) if value is field)


def _typed(out: Out, value: Value) -> Typed | list[object]:
    """Return a rule's result, shaped like the value: axes for a tensor, lists for several."""
    if isinstance(value, Tensor):
        return Typed(Flow(out).axes)
    return [_typed(o, v) for o, v in zip(results_of(out), value, strict=True)]


def _check_shape(out: Out, value: Value) -> None:
    """Raise an error for a rule that claims another shape than the op returns."""
    if isinstance(value, Tensor):
        claimed = tuple(axis.size for axis in Flow(out).axes)
        if claimed != tuple(value.shape):
            raise AxisError(f"it claims {claimed}, the value has {tuple(value.shape)}")
        return
    if not isinstance(value, (list, tuple)) or len(out) != len(value):
        raise AxisError("it claims another number of results")
    for o, v in zip(results_of(out), value, strict=True):
        _check_shape(o, v)
