"""Residual branches, found in the graph: an addition `x + f(x)` of which f(x) can be left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, fx

from fxprune.graph.guards import is_guard, only_checked
from fxprune.graph.tensors import modules_around, named_tensors, tensor_at
from fxprune.rules.calls import call_of
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["Branch", "Removal", "addition_at", "find_branches", "is_value", "nodes_after_input", "pairs"]


@dataclass(eq=False, frozen=True)
class Branch:
    """One residual branch: `add = source + result`, where `result` is computed from `source`.

    name: the module with most weights that lies in it whole, e.g. `blocks.3.attn`; else the addition's node.
    nodes: what only the addition needs, in order: the branch, its constants, stochastic depth and all.
    weights: the names of the tensors that only these nodes use.
    follows: the branch before it on the same residual stream, if there is one.
    """

    name: str
    add: fx.Node
    source: fx.Node
    result: fx.Node
    nodes: tuple[fx.Node, ...]
    weights: tuple[str, ...] = ()
    follows: Branch | None = None

    def __repr__(self) -> str:
        return f"Branch({self.name!r}, nodes={len(self.nodes)})"


def find_branches(module: fx.GraphModule, rules: RuleSet = DEFAULT_RULES) -> list[Branch]:
    """Return every branch of a canonical graph (with `meta["val"]`) that can be removed, in order.

    An addition of two tensors of one shape is residual if all that one operand takes from the model's
    inputs goes through the other, and if nothing but the addition needs it.  Of nested branches, one
    that holds two or more others is a stage, not a branch; one that holds a single other takes it along.

    Example:
        >>> find_branches(fxprune.trace(timm.create_model("deit_tiny_patch16_224")))[0]
        Branch('blocks.0.attn', nodes=13)
    """
    found: list[Branch] = []
    follows_input, checks = nodes_after_input(module.graph), _checks(module.graph)
    for node in module.graph.nodes:
        found.extend(_branch_at(node, module, rules, follows_input, checks))
    branches = _without_nested(found)
    return _chained(_named(branches, module), module)


def pairs(branches: list[Branch]) -> list[tuple[Branch, Branch]]:
    """Pair adjacent branches of one stream: attention and FFN, FFN and the next attention, and so on.

    In the order of each stream: a pair shares a branch with the pairs next to it only.
    """
    after = {b.follows: b for b in branches if b.follows is not None}
    found = []
    for branch in (b for b in branches if b.follows is None):
        while branch in after:
            found.append((branch, after[branch]))
            branch = after[branch]
    return found


# ---------------------------------------------------------------- which additions


def nodes_after_input(graph: fx.Graph) -> set[fx.Node]:
    """Return nodes whose value (not merely whose size) depends on the model's inputs."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (is_value(node) and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def is_value(node: fx.Node) -> bool:
    """Is it a tensor, a list or tuple with one, or a dict?  (A size, a shape, a dtype, a device is not.)"""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return any(isinstance(v, Tensor) for v in value)
    return isinstance(value, (Tensor, dict))


def addition_at(node: fx.Node, module: fx.GraphModule, rules: RuleSet) -> tuple[fx.Node, fx.Node] | None:
    """Return the operands, if the node is a plain sum of two tensors of one shape."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    a, b = node.args
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    shapes = [v.shape if isinstance(v, Tensor) else None for v in (a.meta.get("val"), b.meta.get("val"))]
    if shapes[0] is None or shapes[0] != shapes[1] or call_of(node, module, rules).op != "add":
        return None
    return a, b


def _branch_at(
    node: fx.Node,
    module: fx.GraphModule,
    rules: RuleSet,
    follows_input: set[fx.Node],
    checks: dict[fx.Node, None],
) -> Iterator[Branch]:
    operands = addition_at(node, module, rules)
    for source, result in (operands, operands[::-1]) if operands else ():
        if source is result or result not in follows_input:
            continue
        nodes = _only_for(node, source, result, checks)
        # What merely reads a size or a device follows no input.
        taken = {n for inner in nodes if inner in follows_input for n in inner.all_input_nodes} - {*nodes}
        if nodes and taken & follows_input == {source}:
            yield Branch("", node, source, result, tuple(nodes))
            return


def _checks(graph: fx.Graph) -> dict[fx.Node, None]:
    """Return the nodes that only check an input against the capture, and what they alone need."""
    found = only_checked(graph)
    for node in reversed(graph.nodes):
        alone = node.users and not is_value(node) and found.keys() >= node.users.keys()
        if is_guard(node) or (alone and node.op != "placeholder"):
            found[node] = None
    return {node: None for node in graph.nodes if node in found}


def _only_for(add: fx.Node, source: fx.Node, result: fx.Node, checks: dict[fx.Node, None]) -> list[fx.Node]:
    """Return the nodes that this operand of the addition alone needs, in order; empty if others use it."""
    found: set[fx.Node] = set()
    if result.users.keys() - checks.keys() != {add}:
        return []
    node = result
    while node.op != "root":
        users = node.users.keys() - checks.keys()
        wanted = node is result or (users and found >= users)
        if wanted and node is not source and node.op != "placeholder":
            found.add(node)
        node = node.prev
    for check in checks:  # checks of what is in the branch go with it
        if not found.isdisjoint(check.all_input_nodes):
            found.add(check)
    return [n for n in add.graph.nodes if n in found]


def _without_nested(found: list[Branch]) -> list[Branch]:
    kept: list[Branch] = []
    for branch in sorted(found, key=lambda b: len(b.nodes)):
        own = set(branch.nodes)
        inner = [b for b in kept if b.add in own]
        if len(inner) < 2:
            kept = [b for b in kept if b not in inner] + [branch]
    return [b for b in found if b in kept]


# ---------------------------------------------------------------- names and order


def _named(branches: list[Branch], module: fx.GraphModule) -> list[Branch]:
    """Name a branch by the module with most weights that lies in it whole; of several, the innermost."""
    tensors = dict(named_tensors(module))
    used = {node: [n for n in _weights_of(node, module) if n in tensors] for node in module.graph.nodes}
    users: dict[int, set[fx.Node]] = {}  # by tensor: it may have several names
    for node, own in used.items():
        for name in own:
            users.setdefault(id(tensors[name]), set()).add(node)
    below: dict[str, list[str]] = {}
    for name in dict.fromkeys(n for own in used.values() for n in own):
        for path in modules_around(name):
            below.setdefault(path, []).append(name)
    taken: dict[str, int] = {}
    named: list[Branch] = []
    for branch in branches:
        nodes = set(branch.nodes)
        every = dict.fromkeys(n for node in branch.nodes for n in used[node])
        names = tuple(n for n in every if users[id(tensors[n])] <= nodes)
        whole = [p for n in names for p in modules_around(n) if all(w in names for w in below[p])]
        weight = {p: sum(tensors[w].numel() for w in below[p]) for p in dict.fromkeys(whole)}
        name = max(weight, key=lambda p: (weight[p], len(p)), default=branch.add.name)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name += f"#{taken[name]}"
        named.append(replace(branch, name=name, weights=names))
    return named


def _weights_of(node: fx.Node, module: fx.GraphModule) -> list[str]:
    if node.op == "get_attr":
        return [str(node.target)]
    if node.op != "call_module":
        return []
    owner = module.get_submodule(str(node.target))
    return [f"{node.target}.{name}" for name, _ in (*owner.named_parameters(), *owner.named_buffers())]


def _chained(branches: list[Branch], module: fx.GraphModule) -> list[Branch]:
    """Link each branch to the one before it: back from its source over layouts, norms and dropouts.

    What mixes channels (a weight of two dimensions, a second value) ends the walk.
    """
    ends: dict[fx.Node, Branch] = {}  # of those before, in the order of the graph
    followed: set[Branch] = set()
    for branch in branches:
        node = branch.source
        while node not in ends:
            values = [n for n in node.all_input_nodes if is_value(n)]
            mixes = any(_ndim(module, name) > 1 for name in _weights_of(node, module))
            if len(values) != 1 or mixes:
                break
            node = values[0]
        before = ends.get(node)
        if before is not None and before not in followed:  # where a stream forks, the first goes on
            followed.add(before)
            branch = replace(branch, follows=before)
        ends[branch.add] = branch
    return list(ends.values())


def _ndim(module: fx.GraphModule, name: str) -> int:
    return tensor_at(module, name).ndim


# ---------------------------------------------------------------- what was removed


@dataclass(frozen=True)
class Removal:
    """What was left out of a graph, for those who need to know what it computes.

    whole: the graph with the branches; it is not changed.
    module: the graph without them.
    branches: what was removed, as nodes of `whole`.
    """

    whole: fx.GraphModule
    module: fx.GraphModule
    branches: tuple[Branch, ...]

    @cached_property
    def counterparts(self) -> Mapping[fx.Node, fx.Node]:
        """For each node of `whole`, the node of `module` that has its value where the branches are zero."""
        sources = {branch.add: branch.source for branch in self.branches}
        gone = {node for branch in self.branches for node in branch.nodes} - sources.keys()
        left = {node.name: node for node in self.module.graph.nodes}
        found: dict[fx.Node, fx.Node] = {}
        for node in self.whole.graph.nodes:
            if node in sources and node.name not in left:
                found[node] = found[sources[node]]
            elif node not in gone:
                found[node] = left[node.name]
        return found
