"""Cut a module's part out of the rewritten graph, to stand in its place and under its name."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.compiler.native.boundaries import Boundary, Unknown
from fxprune.compiler.native.part_arguments import PartError, inputs_of, plain_arguments, read_off
from fxprune.compiler.native.traits import Traits
from fxprune.graph.nests import PLAIN
from fxprune.graph.own_nodes import (
    autocast_back,
    autocast_off,
    guard_given,
    is_guard,
    layout_of_argument,
)
from fxprune.graph.tensors import get_or_create_submodule, is_inside, module_of, named_tensors
from fxprune.result.own_code import Keys, Part, Read, Ref
from fxprune.result.pruned_module import PrunedModule

__all__ = ["PartError", "cut", "part_at"]


def part_at(
    model: nn.Module, calls: list[Boundary], why: str, traits: Traits, pruned: fx.GraphModule
) -> Part:
    """Find what can stand in the place of a module, and try it.

    Args:
        model: of the structure that the module lies in.
        calls: where its calls begin and end.
        traits: what the nodes of the pruned graph give, on the examples that the calls are of.

    Raises:
        PartError: it is never called, or its part needs what the module is not given.
    """
    if not calls:
        raise PartError("it is never called")
    call = calls[0]  # that it does as well for the others, the search has to see
    if not any(isinstance(leaf, (Ref, Unknown)) for leaf in pytree.tree_leaves(call.result)):
        raise PartError("it returns no tensor")
    # What nobody uses, a graph does not compute (an attention's weights, a head): None stands for that.
    result = pytree.tree_map(lambda leaf: None if isinstance(leaf, Unknown) else leaf, call.result)
    if not _is_plain(result):
        raise PartError(f"it returns a {type(result).__name__}")
    module = model.get_submodule(call.path)
    inputs = tuple(inputs_of(module, call, traits))
    given, layouts = plain_arguments(module, call)
    part = Part(call.path, why, inputs, (), result, given, layouts)
    found: list[Read] = []

    def read(node: str) -> Read | None:
        known = read_off(node, inputs, traits)
        found.extend([known] if known else [])
        return known

    _Cutter(part, model, pruned, read).cut()
    return replace(part, reads=tuple(found))


def cut(part: Part, root: nn.Module, pruned: fx.GraphModule) -> PrunedModule:
    """Cut out a module that is called as the one at `part.path` is and computes what the graph does there."""
    known = {read.node: read for read in part.reads}
    return _Cutter(part, root, pruned, known.get).cut()


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return isinstance(value, (Ref, *PLAIN))


def _refuses(node: fx.Node) -> bool:
    """Does a node refuse calls?  Those that switch autocast have to stand where they stood."""
    return is_guard(node) and node.target not in (autocast_off, autocast_back)


class _Cutter:
    """Copies what a module's results need from the pruned graph, back to the module's own inputs.

    read: what stands for a node that is a fact of the model's input (its size) alone.
    """

    def __init__(
        self, part: Part, root: nn.Module, pruned: fx.GraphModule, read: Callable[[str], Read | None]
    ) -> None:
        self.part, self.owner, self.pruned, self.read = part, root, pruned, read
        self.module = root.get_submodule(part.path)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in pruned.graph.nodes}
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.env: dict[fx.Node, fx.Node] = {}
        record = getattr(pruned, "record", None)
        self.made_by_code = {*record.constants} if record else set()
        self.constants: list[str] = []

    def cut(self) -> PrunedModule:
        self._placeholders()
        for node in self.nodes.values():  # what the part refuses reads nothing that it is not given
            if _refuses(node) and is_inside(module_of(node), [self.part.path]):
                self._copied(node)
        self.graph.output(pytree.tree_map(self._computed, self.part.result))
        self.graph.lint()
        part = PrunedModule(self.root, self.graph, type(self.module).__name__)
        self._keep_names(part)
        self._keep_facts(part)
        part.constants = tuple(self.constants)
        part.restore({}, dict.fromkeys(["", *(p for p, _ in part.named_modules())], self.module.training))
        return part

    def _computed(self, value: Any) -> Any:
        return self._copied(self._node(value.node)) if isinstance(value, Ref) else value

    def _node(self, name: str) -> fx.Node:
        if name not in self.nodes:
            raise PartError(f"{name} is not in the pruned graph")
        return self.nodes[name]

    def _placeholders(self) -> None:
        """Make an input for each argument of the call, under the name that the module's own code gives it."""
        made = {}
        parameters = [*inspect.signature(type(self.module).forward).parameters.values()][1:]
        for parameter in parameters:
            stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
            made[parameter.name] = self.graph.placeholder(
                stars + parameter.name,
                default_value=inspect.Parameter.empty if stars else parameter.default,
            )
        words = {"part": self.part.path}
        for name, layout in self.part.layouts:
            spelled = self.graph.call_function(layout_of_argument, (made[name],))
            self.graph.call_function(guard_given, (spelled, layout), {**words, "name": name})
        for name, keys, value in self.part.given:
            here = self._item(made[name], keys)
            self.graph.call_function(guard_given, (here, value), {**words, "name": name})
        for name, keys, node in self.part.inputs:
            here = self._item(made[name], keys)
            if node in self.nodes:  # else a size that became a number
                self.env.setdefault(self.nodes[node], here)

    def _item(self, here: fx.Node, keys: Keys) -> fx.Node:
        for key in keys:
            here = self.graph.call_function(operator.getitem, (here, key))
        return here

    def _copied(self, wanted: fx.Node) -> fx.Node:
        """Copy a node and all that it needs, back to the module's inputs."""
        stack = [wanted]
        while stack:
            node = stack[-1]
            if node in self.env:
                stack.pop()
                continue
            read = self._read(node) if self._needs_models_input(node) else None
            missing = [n for n in node.all_input_nodes if n not in self.env]
            if read is None and missing:
                stack += missing
                continue
            stack.pop()
            self.env[node] = self._copy(node) if read is None else read
        return self.env[wanted]

    def _needs_models_input(self, node: fx.Node) -> bool:
        """Is it computed from an input of the model that the module is not given?"""
        seen, front = {node}, [node]
        while front:
            at = front.pop()
            if at in self.env:
                continue
            if at.op == "placeholder":
                return True
            front += [n for n in at.all_input_nodes if n not in seen]
            seen.update(at.all_input_nodes)
        return False

    def _read(self, node: fx.Node) -> fx.Node | None:
        found = self.read(node.name)
        if found is None or found.of not in self.nodes:
            return None
        ours = self.env[self.nodes[found.of]]
        if found.what == "size":
            return self.graph.call_method("size", (ours, found.dim))
        return self.graph.call_function(getattr, (ours, found.what))

    def _copy(self, node: fx.Node) -> fx.Node:
        if node.op == "placeholder":
            raise PartError(f"it needs the model's input {node.target!r} itself")
        new = self.graph.node_copy(node, lambda n: self.env[n])
        new.meta = {k: v for k, v in node.meta.items() if k in ("where", "module")}
        if node.op in ("call_module", "get_attr"):
            new.target = self._placed(node)
        return new

    def _placed(self, node: fx.Node) -> str:
        """Put what the node refers to into the part, under its name inside the module."""
        full = str(node.target)
        inner = self._inside(full, is_module=node.op == "call_module")
        parent, _, leaf = inner.rpartition(".")
        place = get_or_create_submodule(self.root, parent)
        if node.op == "call_module":
            place._modules[leaf] = self.pruned.get_submodule(full)
            return inner
        if full in self.made_by_code:
            self.constants.append(inner)
        owner = self.pruned.get_submodule(full.rpartition(".")[0])
        name = full.rpartition(".")[2]
        if name in owner._parameters:
            place.register_parameter(leaf, owner._parameters[name])
        else:
            persistent = name not in owner._non_persistent_buffers_set
            place.register_buffer(leaf, owner._buffers[name], persistent=persistent)
        return inner

    def _inside(self, full: str, *, is_module: bool) -> str:
        """Find the name that a layer or a tensor has inside the module, which may hold it under another."""
        prefix = f"{self.part.path}."
        if full.startswith(prefix):
            return full.removeprefix(prefix)
        owner, _, leaf = full.rpartition(".")
        try:
            held = self.owner.get_submodule(full if is_module else owner)
        except AttributeError:  # a module or a constant that capture made
            return full.replace(".", "_")
        for name, inner in self.module.named_modules(remove_duplicate=False):
            if inner is held:
                return name if is_module else f"{name}.{leaf}".lstrip(".")
        if not is_module and not owner and not hasattr(self.owner, leaf):
            return leaf  # a constant that capture made
        raise PartError(f"it uses {full}, which lies outside of it")

    def _keep_facts(self, part: nn.Module) -> None:
        """Keep switches and words that code around the module asks it for; its numbers may be stale."""
        places = dict(part.named_modules())
        for path, module in self.module.named_modules():
            place = places.get(path)
            if place is None or type(place) not in (type(part), nn.Module):
                continue
            for name, value in vars(module).items():
                if isinstance(value, (bool, str)) and not name.startswith("_") and not hasattr(place, name):
                    setattr(place, name, value)

    def _keep_names(self, part: nn.Module) -> None:
        """Keep weights that the graph does not use, under their names; not those of branches that went."""
        if isinstance(self.pruned, PrunedModule) and self.pruned.record.plan.removed:
            return
        for name, own in named_tensors(self.module):
            parent, _, leaf = name.rpartition(".")
            try:
                place = get_or_create_submodule(part, parent)
            except TypeError:
                continue
            if leaf in place._parameters or leaf in place._buffers:
                continue
            if isinstance(own, nn.Parameter):
                place.register_parameter(leaf, own)
            else:
                owner = self.module.get_submodule(parent)
                place.register_buffer(leaf, own, persistent=leaf not in owner._non_persistent_buffers_set)
