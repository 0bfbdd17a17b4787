"""The GraphModule that `prune` returns: its record, tied names and modes survive deepcopy and pickle.

`fx.GraphModule` traces its own generated code when it is unpickled, and drops what the graph does not name.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from fxprune.errors import ExampleInputError, InputArgumentError, InputSizeError, PlanError
from fxprune.graph.as_data import NodeData, graph_as_data, graph_from_data
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.guards import guard_layout, guard_values
from fxprune.graph.nests import Value
from fxprune.graph.tensors import get_or_create_submodule, tensor_at
from fxprune.result.plan import Plan
from fxprune.result.record import Record
from fxprune.result.retrace import traced_as_graph

__all__ = [
    *(
        "FORM",
        "PrunedModule",
        "constants_kept",
        "forward_of_data",
        "noise_for",
        "on_least_noise",
        "plan_of",
        "record_of",
    ),
]

Counted = TypeVar("Counted")

FORM = "_fxprune"  # where an instance of the user's own class carries its record


class PrunedModule(fx.GraphModule):
    """A rewritten model.

    record: how it was made; the rewrite attaches it when all else stands.
    ties: second names of shared tensors -> the name that the graph uses.
    folded: weight -> its rows that a factor was folded into, and the factor.
    constants: of a part, which has no record: the tensors that the original's code makes.
    """

    record: Record
    ties: Mapping[str, str]
    folded: Mapping[str, tuple[Tensor, float]] = MappingProxyType({})
    constants: tuple[str, ...] = ()

    def recompile(self) -> fx.graph.PythonCode:
        """Make the class's code of the graph; a tracer of torch's gets the graph itself."""
        code = super().recompile()
        type(self).forward = traced_as_graph(type(self).forward)
        return code

    def restore(self, ties: Mapping[str, str], modes: Mapping[str, bool]) -> None:
        """Put back second names, and each module's own train or eval flag."""
        self.ties = ties
        for second, first in ties.items():
            _tie(self, second, first)
        for path, module in self.named_modules():
            while path not in modes:  # a module that capture made is in the mode of what holds it
                path = path.rpartition(".")[0]
            module.training = modes[path]

    def __getattr__(self, name: str) -> Value:
        """Raise an AttributeError that tells how to get what the original's class has and a graph has not."""
        try:
            return super().__getattr__(name)
        except AttributeError as missing:
            record = self.__dict__.get("record")
            kind = record.origin.get("class", "") if isinstance(record, Record) else ""
            held = record.origin.get("attributes", ()) if isinstance(record, Record) else ()
            if name not in held and not hasattr(_class_in_use(kind), name):
                raise
            raise AttributeError(
                f"{missing}: a pruned model is a graph, with no code of {kind}; form='module' of "
                f"fxprune.prune gives an instance of it, with {name}"
            ) from None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PrunedModule:
        """Move, cast or lay out what the original's modules hold; what its code makes is moved alone.

        Raises:
            InputArgumentError: in another layout of weights, the code that asks for layouts goes another way.
        """
        asking = next((n for n in self.graph.nodes if n.target is guard_layout), None)
        if asking is not None and not _keeps_layouts(fn):
            raise InputArgumentError(
                f"the model's code at {asking.kwargs['where']} looks how tensors lie in memory, which "
                f"follows the layout of weights: prune the model in that memory format"
            )
        record = self.__dict__.get("record")
        with constants_kept(self, record.constants if isinstance(record, Record) else self.constants):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that the original tells optimisers to leave undecayed (timm's convention)."""
        record = self.__dict__.get("record")
        return {*record.undecayed} if isinstance(record, Record) else set()

    @property
    def modes(self) -> dict[str, bool]:
        return {path: module.training for path, module in self.named_modules()}

    def __deepcopy__(self, memo: dict[int, object]) -> PrunedModule:
        copied = _rebuilt(*self._parts(), {})
        memo[id(self)] = copied
        _take_state(copied, copy.deepcopy(self._state(), memo))
        return copied

    def __reduce__(self) -> tuple[Callable[..., PrunedModule], tuple[object, ...]]:
        """Return the graph as data and what it calls: nothing is traced when it is read again."""
        return _rebuilt, (*self._parts(), self._state())

    def _parts(self) -> tuple[str, list[NodeData]]:
        return type(self).__name__, graph_as_data(self.graph)

    def _state(self) -> dict[str, object]:
        """Return modules, tensors, record, modes, and attributes that users set; not what the graph says."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THE_GRAPH}


@contextlib.contextmanager
def constants_kept(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Leave what code makes in the precision that it makes it in, while all that a module holds is cast."""
    before = {name: tensor_at(module, name) for name in names}
    yield
    for name, constant in before.items():
        path, _, leaf = name.rpartition(".")
        now = tensor_at(module, name)
        if not now.is_meta and not constant.is_meta:  # a cast is none of it, `to_empty()` neither
            module.get_submodule(path)._buffers[leaf] = constant.to(now.device)


def _keeps_layouts(fn: Callable[[Tensor], Tensor]) -> bool:
    """Does what is applied to tensors leave those of images and videos in the order of their dimensions?"""
    return all(fn(torch.empty(*[2] * rank)).is_contiguous() for rank in (4, 5))


def _class_in_use(kind: str) -> type | None:
    """Find a class by its full name among the modules that are imported; nothing is imported for it."""
    module, _, name = kind.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and not issubclass(found, fx.GraphModule) else None


def record_of(pruned: nn.Module) -> Record:
    """Read how a model was made.

    Raises:
        PlanError: it was not made by fxprune.
    """
    # In the form of the user's own class, the record is out of the way of the class's own attributes.
    form = vars(pruned).get(FORM) if isinstance(pruned, nn.Module) else None
    record = getattr(pruned if form is None else form, "record", None)
    if not isinstance(record, Record):
        made = "it was not made by fxprune.prune or fxprune.apply"
        raise PlanError(f"{type(pruned).__name__} carries no plan: {made}")
    return record


def plan_of(pruned: nn.Module) -> Plan:
    """Return the plan that a pruned model was made by.

    Raises:
        PlanError: the module was not made by `fxprune.prune` or `fxprune.apply`.
    """
    return record_of(pruned).plan


def noise_for(pruned: nn.Module, model: nn.Module, batch: int | None) -> Example:
    """Draw noise of the shape that the model was pruned with, in another batch where any number will do.

    Raises:
        ExampleInputError: the model's own checks of values refuse it.
    """
    record = record_of(pruned)
    shapes = record.example.with_batch(batch if record.dynamic else None)
    noise = seeded_noise(shapes, model)
    if not _checks_values(pruned) or _takes(pruned, noise):
        return noise
    noise = seeded_noise(shapes, model, as_images=True)
    if _takes(pruned, noise):
        return noise
    raise ExampleInputError(
        "the model checks the values of its inputs, and noise does not pass: give example_inputs= that do"
    )


def _checks_values(pruned: nn.Module) -> bool:
    graph = pruned if isinstance(pruned, PrunedModule) else vars(pruned)[FORM].graph
    return any(node.target is guard_values for node in graph.graph.nodes)


def _takes(pruned: nn.Module, noise: Example) -> bool:
    """Does a result take this noise, its size apart?"""
    try:
        with torch.no_grad():
            pruned(*noise.args, **noise.kwargs)
    except InputSizeError:
        return True
    except Exception:  # whatever the model's own checks raise
        return False
    return True


def on_least_noise(
    pruned: nn.Module, model: nn.Module, count: Callable[[Example], Counted]
) -> tuple[Example, Counted]:
    """Count something on noise of one sample; of as many as the example has, where the result refuses one.

    Code that drops dimensions of one element (`squeeze()`) takes another way there.
    """
    example = noise_for(pruned, model, 1)
    try:
        return example, count(example)
    except InputSizeError:
        example = seeded_noise(record_of(pruned).example, model)
        return example, count(example)


# What fx.GraphModule makes of a graph by itself.
_OF_THE_GRAPH = {
    *("_graph", "_code", "_lineno_map", "_prologue_start", "_tracer_cls", "_tracer_extras", "_replace_hooks"),
    *("_create_node_hooks", "_erase_node_hooks", "_deepcopy_hooks", "shape_env", "_graphmodule_cls_name"),
}


def _rebuilt(name: str, data: list[NodeData], state: dict[str, object]) -> PrunedModule:
    """Return a module of this graph; `state` is its `__dict__` beside that."""
    module = PrunedModule(_Anything(), graph_from_data(data), name)
    _take_state(module, state)
    return module


def forward_of_data(name: str, data: list[NodeData]) -> Callable[..., Value]:
    """Make a method of a graph, for a class whose instances hold the modules and tensors that it names."""
    module = _rebuilt(name, data, {})
    return traced_as_graph(type(module).forward.__wrapped__, module.graph)  # type: ignore[attr-defined]


def _take_state(module: PrunedModule, state: dict[str, object]) -> None:
    for name, value in state.items():
        module.__dict__[name] = value


class _Anything(dict[str, object]):
    """A root that has a place holder for whatever a graph names: the real state comes right after."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> nn.Module:
        return nn.Module()


def _unpickled(
    rebuild: Callable[..., fx.GraphModule],
    arguments: tuple[object, ...],
    meta: dict[str, Value],
    modes: dict[str, bool],
) -> PrunedModule:
    """Return what pickles of format 1 call: their graph is traced out of its code."""
    plain = rebuild(*arguments)
    module = PrunedModule(plain, plain.graph, type(plain).__name__)
    module.meta = {name: value for name, value in meta.items() if name != "fxprune"}
    module.record = Record.of_format_1(meta["fxprune"])
    module.restore(module.record.ties, modes)
    return module


def _tie(root: nn.Module, second: str, first: str) -> None:
    path, _, leaf = first.rpartition(".")
    owner = root.get_submodule(path)
    new_path, _, new_leaf = second.rpartition(".")
    place = get_or_create_submodule(root, new_path)
    if leaf in owner._parameters:
        place.register_parameter(new_leaf, owner._parameters[leaf])
    else:
        persistent = leaf not in owner._non_persistent_buffers_set
        place.register_buffer(new_leaf, owner._buffers[leaf], persistent=persistent)
