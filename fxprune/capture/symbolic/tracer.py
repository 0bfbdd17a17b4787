"""Trace a model's code with values that answer what Python asks.  One file: a tracer is one class."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import operator
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import Attribute

from fxprune.capture.arguments import followed_parts, guard_layouts
from fxprune.capture.attention import DECOMPOSED_FUNCTIONS
from fxprune.capture.devices import DeviceQuestions
from fxprune.capture.reached import called
from fxprune.capture.settings import Settings
from fxprune.capture.symbolic.counted_parts import guard_count, is_given
from fxprune.capture.symbolic.decisions import Decisions
from fxprune.capture.symbolic.given_guards import guard_kinds, guard_ranks, guard_types
from fxprune.capture.symbolic.identity import any_compares_dtypes, compares_dtypes, compares_nearby
from fxprune.capture.symbolic.objects import holds_traced, is_made_of_items, object_node
from fxprune.capture.symbolic.picked_rows import drop_picked, is_picked, mark_picked
from fxprune.capture.symbolic.proxies import TracedValue
from fxprune.capture.symbolic.raising_branches import truth_that_goes_on
from fxprune.capture.symbolic.tried_calls import Place, may_be_tried
from fxprune.capture.symbolic.weights_read import COMPUTES, WeightsRead
from fxprune.graph.example import Example
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import (
    AutogradFunction,
    ForwardOnly,
    default_dict,
    guard_values,
    in_other_order,
    name_of_class,
    output_in_order,
    written,
)
from fxprune.graph.process_lock import this_thread_only
from fxprune.graph.source_files import users_frame
from fxprune.graph.tensors import holds_attributes
from fxprune.graph.values import DependsOnValues, NodeError
from fxprune.graph.writes import FILLS, is_view_of_input, shares_memory, value_of_write
from fxprune.rules.modules import native

__all__ = ["Tracer"]


FRESH = {"empty", "zeros", "ones", "full"}  # makers of tensors that have no gradient to pass on
_ASSIGNED = torch.ops.aten.copy_.default


# The stand-in batch (PRIME_BATCH) is larger: a sequence that is longer than this has items for each sample.
MOST_ITEMS = 500

_PLAIN = frozenset({type(None), type(...), bool, int, float, str, torch.dtype, torch.device})


class Tracer(fx.Tracer):
    """A tracer that keeps calls of some modules, the leaves (by their ids), and traces through all others."""

    proxy_buffer_attributes = True
    reads_generated_code = True  # of a result that is pruned again

    def __init__(self, leaves: frozenset[int], example: Example, copies: dict[int, nn.Module]) -> None:
        super().__init__(autowrap_functions=())
        self._leaves, self._example = leaves, example
        self._helpers: dict[str, nn.Module] = {}
        self.copies = copies
        # Identity, not equality: `==` of proxies is a node of the graph.
        self._types_asked: dict[fx.Node, type] = {}  # of numbers that are given
        self._ranks_asked: dict[fx.Node, str | None] = {}  # the node, and the line that asked first
        self._part_of: dict[fx.Proxy, tuple[fx.Proxy, Any]] = {}
        self._constants: list[tuple[torch.Tensor, int]] = []  # with their versions as they were used
        self._to_assign: dict[fx.Node, str] = {}  # what `self.mean += ..` gave, and the name of the tensor
        self.grad_enabled: Callable[[], bool] = torch.is_grad_enabled
        self.gradients_of_inputs = False
        self.gradient_questions: dict[str, None] = {}  # the lines that ask values for their gradients
        self.proxy_questions: dict[str, None] = {}  # and those that ask whether they are stand-ins
        self._tracing_here = this_thread_only()
        self._untraced = False
        self.unanswered: Exception | None = None  # what the code was told in place of a truth
        self.devices = DeviceQuestions(elsewhere=False)
        self.code: Callable[[], Iterable[types.FunctionType]] = tuple  # what may run in a call
        self.told_dtypes: set[Place] = set()  # where code is told a dtype, not a stand-in
        self.tries: dict[fx.Node, list[Place]] = {}  # where errors of a call are handled
        self._dtypes_read: list[tuple[Place, Attribute]] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return TracedValue(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._leaves

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        tensors = [*root.named_parameters(), *root.named_buffers()]
        self.tensors: dict[Any, torch.Tensor] = dict(tensors)
        self._tensor_names = {id(tensor): name for name, tensor in reversed(tensors)}
        self._weights_read = WeightsRead(self._tensor_names, self.tensors, self.devices.told)
        self._settings = Settings(m for m in root.modules() if id(m) in self._leaves)
        try:
            with self._without_helpers(root), self._weights_read:
                graph = super().trace(root, concrete_args)
        except Exception as error:
            error.module_path, _ = self._innermost()  # type: ignore[attr-defined]
            raise
        if self.unanswered is not None:  # and the model's code went on, on a way of its own
            raise self.unanswered
        if any(constant._version != version for constant, version in self._constants):
            raise NotImplementedError("a tensor that the code made is written to after it was used")
        drop_picked(graph)
        guard_ranks(self, graph, self._ranks_asked)
        guard_kinds(self, graph, self.decisions.kinds_asked)
        guard_types(self, graph, self._types_asked)
        guard_layouts(graph, self.decisions.layouts_asked)
        self._show_assigned(root, graph)
        self._show_written_inputs(graph)
        return graph

    def _show_assigned(self, root: nn.Module, graph: fx.Graph) -> None:
        """Record `self.mean = ..` on a buffer as a write at the end, whatever Python did in between.

        A buffer that is not saved is a table for the next call: each call of the result makes its own.
        """
        output = next(reversed(graph.nodes))
        known = set(self._tensor_names.values())
        for path, module in root.named_modules():
            for name, value in module._buffers.items():
                target = f"{path}.{name}".lstrip(".")
                saved = target in known and name not in module._non_persistent_buffers_set
                if isinstance(value, fx.Proxy) and self._to_assign.get(value.node) == target:
                    del self._to_assign[value.node]
                if saved and isinstance(value, fx.Proxy):
                    self._refuse_other_shape(target, value)
                    with graph.inserting_before(output):
                        buffer = graph.get_attr(target)
                        self.create_node("call_function", _ASSIGNED, (buffer, value.node), {})
        for node, target in self._to_assign.items():
            raise NotImplementedError(f"{target} is written to in place at {node.meta.get('where')}")

    def _refuse_other_shape(self, target: str, value: fx.Proxy) -> None:
        was, now = self.tensors[target].shape, self.value_or_self(value)
        if isinstance(now, torch.Tensor) and was != now.shape:
            raise NotImplementedError(
                f"a call leaves the buffer {target} in another shape, {tuple(was)} before it: register it "
                f"with persistent=False, and each call of the result makes its own"
            )

    def _show_written_inputs(self, graph: fx.Graph) -> None:
        """Record what the code writes to an input as a write at the end: whoever gave it sees it.

        Raises:
            NotImplementedError: it writes to a view of one, which torch.export follows.
        """
        latest: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            before = node
            while "written" in before.meta:
                before = before.meta["written"]
            if before is node:
                continue
            if before.op == "placeholder":
                latest[before] = node
            elif before.op == "call_method" and is_view_of_input(before):
                raise NotImplementedError(f"a view of an input is written to at {node.meta.get('where')}")
        with graph.inserting_before(next(reversed(graph.nodes))):
            for given, value in latest.items():
                if value.op == "call_module":  # a layer that writes to it itself
                    continue
                self.create_node("call_function", _ASSIGNED, (given, value), {})

    def path_of_module(self, mod: nn.Module) -> str:
        """Name a layer that the code makes as it runs."""
        try:
            return super().path_of_module(mod)
        except NameError:
            if any(True for _ in mod.parameters()):
                raise
            return self.add_helper_module(mod)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make an input for each argument of the example; the others have their defaults, as in it.

        The base class looks through decorators, and calls what it finds behind them.
        """
        if type(self.root).__call__ is not nn.Module.__call__ and not isinstance(self.root, fx.GraphModule):
            raise NotImplementedError(f"{type(self.root).__name__} has a __call__ of its own")
        names = list(inspect.signature(self.root.forward).parameters)
        names = [names[i] if i < len(names) else f"input_{i}" for i in range(len(self._example.args))]
        args = [self._input(*given) for given in zip(names, self._example.args, strict=True)]
        kwargs = {name: self._input(name, value) for name, value in self._example.kwargs.items()}
        own = vars(self.root).get("forward")  # `model.forward = model.forward_features`
        return lambda root: (own or partial(root_fn, root))(*args, **kwargs), [self.root]

    def _input(self, name: str, value: Any) -> Any:
        """Return what the model's code gets for an argument: itself, where a graph can't follow another."""
        proxy = self.create_proxy("placeholder", name, (), {})
        if holds_attributes(value) and not isinstance(value, (torch.Tensor, nn.Module)):
            proxy.__dict__["_held"] = value  # flags among its attributes are looked at by Python itself
        return followed_parts(value, proxy)

    def create_arg(self, a: Any) -> Any:
        """Make an argument of a node; an output class of the model's, even a dict, is called in the graph."""
        if type(a) in _PLAIN:  # most are: torch.fx asks thirty questions of each
            return a
        if isinstance(a, TracedValue):
            return a.node
        if isinstance(a, np.generic):  # `2 * np.sqrt(8)`, which code made of a graph can't name
            return a.item()
        if isinstance(a, type) and issubclass(
            a, np.generic
        ):  # nor its types: `np.arange(n, dtype=np.float32)`
            return np.dtype(a).name
        if type(a) in (tuple, list):
            return type(a)([self.create_arg(item) for item in a])
        if type(a) is defaultdict:
            items = {key: self.create_arg(value) for key, value in a.items()}
            return default_dict(
                lambda *node: self.create_node("call_function", *node, {}), a.default_factory, items
            )
        if is_made_of_items(a):  # which torch.fx makes a plain dict or list
            held = dict(a) if isinstance(a, dict) else list(a)
            return self.create_node("call_function", type(a), (self.create_arg(held),), {})
        if dataclasses.is_dataclass(a) and not isinstance(a, type):
            held = [(f, getattr(a, f.name)) for f in dataclasses.fields(a)]
            if not all(f.init for f, _ in held):
                raise NotImplementedError(
                    f"{type(a).__name__} has fields that its constructor does not take (init=False)"
                )
            left_out = [f.name for f, value in held if value is None and f.default is None]
            fields = {f.name: self.create_arg(value) for f, value in held if f.name not in left_out}
            if isinstance(a, dict) and in_other_order(type(a), [*a]):
                items = {name: fields.pop(name, None) for name in a} | fields
                return self.create_node("call_function", output_in_order, (name_of_class(type(a)), items), {})
            return self.create_node("call_function", type(a), (), fields)
        if isinstance(a, torch.Tensor) and id(a) not in self._tensor_names:
            if not a.is_inference():  # those keep no version
                self._constants.append((a, a._version))
            weight = self._weights_read.name_of(a)
            if weight is not None:  # as state_dict() gives it
                return self.create_node(
                    "call_method", "detach", (self.create_node("get_attr", weight, (), {}),), {}
                )
            self._recognise(a)
        if holds_attributes(a) and not isinstance(a, (fx.Proxy, fx.Node)) and holds_traced(a):
            return object_node(self, a)
        return super().create_arg(a)

    def _recognise(self, constant: torch.Tensor) -> None:
        """Give a tensor that the code makes anew in every trace the same name in each.

        Raises:
            NotImplementedError: it is made of weights, as numbers (`for p in m.parameters()`).
        """
        if constant.grad_fn is not None:
            raise NotImplementedError(COMPUTES)
        for i in itertools.count():
            name = f"_tensor_constant{i}"
            known = getattr(self.root, name, None)
            if known is None:
                return
            if _equal(known, constant):
                self.tensor_attrs.setdefault(constant, name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a call of a module; torch.fx patches those of all threads: another thread's just runs.

        A module that a function of the model holds is the original's: its copy is traced.
        """
        if self._untraced or not self._tracing_here():
            return forward(*args, **kwargs)
        copy = self.copies.get(id(m))
        if copy is not None:
            return copy(*args, **kwargs)
        if id(m) in self._leaves and native(m) is not None and (m._forward_hooks or m._forward_pre_hooks):
            raise NotImplementedError(f"the code registers a hook on a {type(m).__name__} while it runs")
        if id(m) in self._leaves and (setting := self._settings.changed(m)):
            raise NotImplementedError(f"the code sets {setting} of a {type(m).__name__} while it runs")
        made = super().call_module(m, forward, args, kwargs)
        if id(m) in self._leaves:
            self._refuse_other_weights(m)
            made.node.meta["maybe_itself"] = _may_pass_on(m)
        if self._acts_in_place(m, made) and args and isinstance(args[0], fx.Proxy):
            self.write(args[0], made)  # what the code reads of its input from here on is the result
        return made

    def _refuse_other_weights(self, leaf: nn.Module) -> None:
        """Refuse a layer whose weights the code replaced (`functional_call`): a graph calls its own."""
        for name in ("weight", "bias", *leaf._parameters, *leaf._buffers):
            held = leaf._parameters.get(name, leaf._buffers.get(name, vars(leaf).get(name)))
            replaced = isinstance(held, fx.Proxy)
            if replaced or (isinstance(held, torch.Tensor) and id(held) not in self._tensor_names):
                raise NotImplementedError(f"the code gives a {type(leaf).__name__} another {name}")

    def _acts_in_place(self, m: nn.Module, made: Any) -> bool:
        """Is it a call of a layer such as `nn.SiLU(inplace=True)`?"""
        called = isinstance(made, fx.Proxy) and made.node.op == "call_module"
        return called and getattr(m, "inplace", False) is True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Look a tensor up by its id: the base class searches all names, which is quadratic in depth."""
        name = self._tensor_names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None or self._untraced or not self._tracing_here():
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    @functools.cached_property
    def decisions(self) -> Decisions:
        return Decisions(self.root, self.graph, self._example, self._helpers, self._running_untraced)

    @functools.cached_property
    def compares_dtypes(self) -> bool:
        """May a dtype be handed to code that compares it by `is`?"""
        return any_compares_dtypes(called(self.root, self.code()))

    def dtype_read(self, dtype: Attribute, reader: types.FrameType) -> Any:
        """Return a dtype, which the graph checks, to code that may compare it by `is`; else a stand-in."""
        place = reader.f_code, reader.f_lasti
        if compares_dtypes(reader.f_code) or self.compares_dtypes or place in self.told_dtypes:
            return self.decisions.value(dtype)
        self._dtypes_read.append((place, dtype))
        return dtype

    def dtypes_for_nothing(self) -> set[Place]:
        """Find where code read a dtype of which nothing came, if what stands near may have compared it."""
        places = {place for place, dtype in self._dtypes_read if dtype._node is None}
        return places if places and compares_nearby(self.code()) else set()

    @contextlib.contextmanager
    def _running_untraced(self) -> Iterator[None]:
        """Run modules as they do outside of tracing.

        A flag, since a method of nn.Module that is set anew costs milliseconds where many classes inherit it.
        """
        before, self._untraced = self._untraced, True
        try:
            yield
        finally:
            self._untraced = before

    def to_bool(self, obj: fx.Proxy) -> bool:
        try:
            value = self.decisions.structure(obj)
            if isinstance(value, (int, float)) and not isinstance(value, bool):  # is it zero: `if n % 7`
                obj = self.create_proxy("call_function", operator.ne, (obj, 0), {})
            elif isinstance(value, (tuple, list)):
                self.rank_is_asked(obj)
            return bool(self.decisions.value(obj))
        except DependsOnValues as error:
            truth = truth_that_goes_on(sys._getframe(2), Tracer.trace.__code__)
            if truth is None or not self._is_tensor(obj):
                self.unanswered = error
                raise
            self.hold_values(obj, truth)
            return truth
        except Exception as error:
            self.unanswered = error
            raise

    def hold_values(self, condition: fx.Proxy, truth: bool) -> None:
        """Check a condition on values, which the code asserts, in each call of the result."""
        where = _users_line() or condition.node.name
        self.create_proxy("call_function", guard_values, (condition, truth), {"where": where})

    def type_of(self, x: Any) -> type | None:
        """Return the type of what a proxy stands for, as the model's code would find it."""
        if not isinstance(x, fx.Proxy):
            return None
        held = self.tensors.get(x.node.target) if x.node.op == "get_attr" else None
        value = self.value_or_self(x) if held is None else held
        if isinstance(value, torch.Tensor) and held is None:
            return torch.Tensor
        return None if value is x else type(value)

    def value_or_self(self, proxy: fx.Proxy) -> Any:
        """Return a proxy's value for the example; the proxy itself where that can't tell."""
        try:
            return self.decisions.structure(proxy)
        except (NodeError, fx.proxy.TraceError):
            return proxy

    def asks_gradient(self, proxy: fx.Proxy, name: str) -> Any:
        """Answer `x.requires_grad`, `x.is_leaf` or `x.grad_fn is None` as the call that is traced would."""
        node = proxy.node
        if node.op == "get_attr":
            return getattr(self.tensors.get(node.target), name)
        self.gradient_questions[_users_line() or node.name] = None
        if node.op == "placeholder":
            recorded = self.gradients_of_inputs
        else:
            weights = any(t.requires_grad for t in self.tensors.values())
            recorded = self.grad_enabled() and (weights or self.gradients_of_inputs)
        leaf = not recorded or node.op == "placeholder"
        return {"requires_grad": recorded, "is_leaf": leaf, "grad_fn": None if leaf else object()}[name]

    def kind_of_device(self, proxy: fx.Proxy) -> str:
        """Return the kind of the device that code asks a value for."""
        device = self.decisions.structure(proxy)
        return self.devices.kind(device, _users_line() or str(proxy.node))

    def index_of_device(self, proxy: fx.Proxy) -> int | None:
        """Return the number of a value's device, for code that asks."""
        return self.devices.index(self.decisions.structure(proxy), _users_line() or str(proxy.node))

    def hash_of_device(self, proxy: fx.Proxy) -> int:
        """Return the hash of a device that code looks up in a set or a table, as it is told it."""
        return hash(self.devices.told(self.decisions.structure(proxy), _users_line() or str(proxy.node)))

    def lies_on(self, proxy: fx.Proxy, named: torch.device) -> bool:
        """Return whether a value lies on a device that the code names."""
        return self.devices.told(self.decisions.structure(proxy), _users_line() or str(proxy.node)) == named

    def is_of_tensor(self, device: torch.device) -> bool:
        """Is it a device that code read of a tensor, not one that it names?"""
        return any(device is read for read in self._weights_read.devices)

    def device_word(self, word: Any) -> Any:
        """Return a node for the word of the input's kind of device, if the code was told; else the word."""
        device = self.device_node() if isinstance(word, str) and self.devices.lines else None
        if device is None or word != self.devices.kind(self.decisions.structure(device)):
            return word
        return self.create_proxy("call_function", getattr, (device, "type"), {})

    def device_node(self) -> fx.Proxy | None:
        """Return the device of the first input that is a tensor, as a node."""
        inputs = (n for n in self.graph.nodes if n.op == "placeholder")
        tensors = (n for n in inputs if isinstance(self.decisions.structure_of(n), torch.Tensor))
        first = next(tensors, None)
        return (
            None
            if first is None
            else self.create_proxy("call_function", getattr, (self.proxy(first), "device"), {})
        )

    def asks_weights_dtype(self) -> bool:
        """Did the code ask weights for their dtype that it found by going through all of them?"""
        return self._weights_read.dtype_asked

    def rank(self, tensor: Any) -> int | None:
        """Return how many dimensions a tensor has: a number, the same for every input that is not refused."""
        value = self.value_or_self(tensor)
        if not isinstance(value, torch.Tensor):
            return None
        self.rank_is_asked(tensor)
        return value.ndim

    def rank_is_asked(self, proxy: fx.Proxy) -> None:
        self._ranks_asked.setdefault(proxy.node, _users_line())

    def type_is_asked(self, x: fx.Proxy) -> None:
        """Note that the code looks at the type of a number that is given."""
        number = self.value_or_self(x)
        if type(number) in (int, float) and is_given(x.node, self.decisions.structure_of):
            self._types_asked[x.node] = type(number)

    def iter(self, obj: Any) -> Iterator[Any]:
        """Iterate over a proxy: a shape has as many sizes as the example's, a tensor as many rows."""
        value = self.decisions.structure(obj)
        if isinstance(value, torch.Tensor) and value.ndim:
            self.rank_is_asked(obj)
            count = self.decisions.value(obj.shape[0])
        elif isinstance(value, (tuple, list)):
            count = len(value)
            self.rank_is_asked(obj)
            guard_count(self, obj, count)
        else:
            return super().iter(obj)
        if count > MOST_ITEMS:
            raise fx.proxy.TraceError("how many there are depends on the batch size")
        return (obj[i] for i in range(count))

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Make a node; a method that writes in place gives a value, which its tensor stands for from now on.

        A function that is decomposed runs its plain code.
        """
        if kind == "call_method" and isinstance(args[0], fx.Proxy) and args[0].node.op != "get_attr":
            if target in FILLS:
                value = next(iter((*args[1:], *kwargs.values())), 0)
                filled = self.create_proxy("call_function", written, (args[0], ..., value), {})
                return self.write(args[0], filled)
            name = value_of_write(target)
            if name is not None:
                value = super().create_proxy(kind, name, args, kwargs, *rest, **more)
                return self.write(args[0], self._in_dtype_of(args[0], args[-1], value))
        asks_rank = kind == "call_method" and target in ("dim", "ndimension")
        if asks_rank and (rank := self.rank(args[0])) is not None:
            return rank
        if kind == "call_method" and target == "new" and not kwargs and self._are_sizes(args[1:]):
            return self.create_proxy(
                kind, "new_empty", (args[0], args[1:] or (0,)), {}
            )  # `x.new(2, 3)`, of old
        if kind == "call_method" and target == "get_device":
            number = self.index_of_device(args[0].device)
            return -1 if number is None else number  # as a tensor on the CPU says
        if kind == "call_method" and target == "numel":
            shape = self.value_or_self(args[0])
            if isinstance(shape, tuple):  # of some of the sizes, which may be numbers in the result
                self.rank_is_asked(args[0])
                return functools.reduce(operator.mul, (args[0][i] for i in range(len(shape))), 1)
        if kind == "call_function" and kwargs.get("out") is not None:
            if not isinstance(kwargs["out"], fx.Proxy):
                raise NotImplementedError("it writes to several tensors by out=")
            given = {name: value for name, value in kwargs.items() if name != "out"}
            return self.write(kwargs["out"], self.create_proxy(kind, target, args, given))
        if kind == "call_function" and target in DECOMPOSED_FUNCTIONS:
            decomposed: fx.Proxy = DECOMPOSED_FUNCTIONS[target](*args, **kwargs)
            next(reversed(self.graph.nodes)).meta["decomposed"] = True
            return decomposed
        made = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if target is operator.getitem and isinstance(args[0], fx.Proxy) and shares_memory(args[1]):
            self._part_of[made] = args
        if kind != "placeholder":
            mark_picked(self, made.node)
        return made

    def write(self, proxy: fx.Proxy, value: fx.Proxy) -> fx.Proxy:
        """Let `proxy` stand for `value` from here on, in what it is a part of as well (`x[i]` of `x`)."""
        if proxy.node.op == "get_attr":
            raise NotImplementedError("a weight is written to")
        if isinstance(proxy, Attribute):
            return self._write_data(proxy, value)
        mark_picked(self, value.node)
        value.node.meta["written"] = proxy.node
        proxy.node = value.node
        whole, index = self._part_of.get(proxy, (None, None))
        if whole is not None and isinstance(self.decisions.structure(whole), torch.Tensor):
            self.write(whole, self.create_proxy("call_function", written, (whole, index, value), {}))
        return proxy

    def augmented(self, operation: Callable[[Any, Any], Any], proxy: fx.Proxy, other: Any) -> Any:
        """Compute `proxy += other`: of a tensor a write, of a number another number."""
        value = self._in_dtype_of(proxy, other, operation(proxy, other))
        if isinstance(value, fx.Proxy) and is_picked(proxy.node):
            return self.write(proxy, value)
        if not isinstance(value, fx.Proxy) or not self._is_tensor(proxy):
            return value
        if proxy.node.op == "get_attr":  # `self.mean += ..` assigns it
            self._to_assign[value.node] = str(proxy.node.target)
            return value
        return self.write(proxy, value)

    def _in_dtype_of(self, written: fx.Proxy, other: Any, value: Any) -> Any:
        """Return what is written into a tensor in that tensor's dtype, where the operation may change it."""
        made = isinstance(other, torch.Tensor)  # by the code, whatever the weights' dtype: `torch.arange(8.)`
        if (
            not isinstance(value, fx.Proxy)
            or not (made or isinstance(other, fx.Proxy))
            or is_picked(value.node)
        ):
            return value
        before, now = self.value_or_self(written), self.value_or_self(value)
        both = isinstance(before, torch.Tensor) and isinstance(now, torch.Tensor)
        return value.type_as(written) if both and (made or before.dtype != now.dtype) else value

    def _are_sizes(self, values: Iterable[Any]) -> bool:
        known = [self.value_or_self(v) if isinstance(v, fx.Proxy) else v for v in values]
        return all(type(value) is int for value in known)

    def _is_tensor(self, proxy: fx.Proxy) -> bool:
        if not isinstance(proxy, Attribute) and proxy.node.op in ("call_module", "get_attr"):
            return True
        return isinstance(self.value_or_self(proxy), torch.Tensor)

    def is_part(self, value: Any, whole: fx.Proxy, index: Any) -> bool:
        """Return whether a value is what `whole[index]` gave, by the same index."""
        held, at = self._part_of.get(value, (None, None)) if isinstance(value, fx.Proxy) else (None, None)
        return held is whole and at is index

    def _write_data(self, data: Attribute, value: fx.Proxy) -> fx.Proxy:
        """Let a tensor stand for what was written to its `.data`, which no gradient passes through.

        Its own gradient would pass on: there is none where it was just made.
        """
        made = op_name(data.root.node.target).removeprefix("new_").removesuffix("_like")
        if data.attr != "data" or not (made in FRESH or "data_written" in data.root.node.meta):
            raise NotImplementedError(f"it writes to .{data.attr} of a tensor")
        kept = super().create_proxy("call_method", "detach", (value,), {})
        kept.node.meta["data_written"] = True
        data._node = None
        return self.write(data.root, kept)

    def add_helper_module(self, module: nn.Module) -> str:
        """Add to the root a module that its code does not name.

        The n-th of every trace has the same name, if it is alike: the traces of two modes share a root.
        """
        name = f"_traced_{len(self._helpers)}"
        while name in self._helpers_before and not _alike(self._helpers_before[name], module):
            name += "_"
        self._helpers[name] = module
        return name

    @contextlib.contextmanager
    def _without_helpers(self, root: nn.Module) -> Iterator[None]:
        """Keep helpers out of a root while its code runs, which may go through its children one by one."""
        before = {n: m for n, m in root._modules.items() if n.startswith("_traced_") and m is not None}
        self._helpers_before = before
        for name in before:
            del root._modules[name]
        try:
            yield
        finally:
            root._modules.update({**self._helpers, **before})

    @contextlib.contextmanager
    def within_function(self) -> Iterator[None]:
        """Trace an autograd function's forward with its caller's gradient mode: it never records itself."""
        before, enabled = self.grad_enabled, self.grad_enabled()
        self.grad_enabled = lambda: enabled
        try:
            yield
        finally:
            self.grad_enabled = before

    def _innermost(self) -> tuple[str, Any]:
        """Return the path and the class of the module whose code runs."""
        return next(reversed(self.module_stack.values()), ("", None))

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["where"] = _users_line()
        node.meta["module"], _ = self._innermost()
        if not self.grad_enabled():
            node.meta["no_grad"] = True
        if tries := [*may_be_tried(sys._getframe(1), Tracer.trace.__code__)]:
            self.tries[node] = tries
        return node


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Do two modules without weights do the same?"""
    functions = [m.function if isinstance(m, (AutogradFunction, ForwardOnly)) else None for m in (a, b)]
    return type(a) is type(b) and repr(a) == repr(b) and functions[0] == functions[1]


def _may_pass_on(leaf: nn.Module) -> bool:
    """Return whether a layer may return the very tensor that it is given, or a view of it: a dropout does."""
    if isinstance(leaf, (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)):
        return True
    return not leaf._parameters and not leaf._buffers and native(leaf) is None


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Are two tensors equal?  (On the meta device shapes are all there is.)"""
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and (a.device.type == "meta" or torch.equal(a, b))


def _users_line() -> str | None:
    """Return the innermost line of the call stack that is the model's own."""
    frame = users_frame(sys._getframe(2))
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
