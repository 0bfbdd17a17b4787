"""One walker for nests of lists, tuples and dicts."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import fx

from fxprune.graph.nests import leaves, map_leaves, outline
from fxprune.rules.axes import atom
from fxprune.rules.calls import Weight
from fxprune.rules.registry import Typed

Pair = namedtuple("Pair", "first second")
NEST = [1, ("a", {"x": 2, "y": [3, None]}), Pair(4, "b"), OrderedDict(z=5)]


def test_leaves_are_found_in_order() -> None:
    assert list(leaves(NEST, int)) == [1, 2, 3, 4, 5]
    assert list(leaves(NEST, (int, str))) == [1, "a", 2, 3, 4, "b", 5]
    assert list(leaves(7, int)) == [7]
    assert list(leaves(None, int)) == []


def test_a_leaf_is_not_walked_into() -> None:
    assert list(leaves([(1, 2), [3]], tuple)) == [(1, 2)]
    assert len(list(leaves([torch.zeros(3, 2)], torch.Tensor))) == 1
    typed = Typed((atom(3),))
    assert list(leaves({"a": [typed]}, Typed)) == [typed]


def test_what_graphs_hold_is_walked() -> None:
    """torch.fx's own lists and dicts, and the sources of a call."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.cat, ([x, {"a": x}],))  # type: ignore[dict-item]
    assert list(leaves(node.args, fx.Node)) == [x, x]
    assert list(leaves([Weight("w"), x], (fx.Node, Weight))) == [Weight("w"), x]


def test_an_outline_keeps_shape_and_nothing_else() -> None:
    assert outline(NEST, int, float) == [
        1.0,
        [None, {"x": 2.0, "y": [3.0, None]}],
        [4.0, None],
        {"z": 5.0},
    ]
    assert outline("a", int, float) is None


@pytest.mark.parametrize(
    "nest",
    [1, [1, "a"], (1, (2,)), {"a": 1, "b": [2]}, Pair(1, "a"), torch.Size([2, 3]), None, [slice(1, 2)]],
    ids=str,
)
def test_mapping_keeps_the_containers(nest: object) -> None:
    same = map_leaves(nest, int, lambda n: n)
    assert same == nest and type(same) is type(nest)


def test_mapping_replaces_in_order() -> None:
    seen: list[int] = []
    mapped = map_leaves((1, {"a": 2}, Pair(3, "x")), int, lambda n: seen.append(n) or -n)
    assert seen == [1, 2, 3]
    assert mapped == (-1, {"a": -2}, Pair(-3, "x"))
    assert isinstance(mapped[2], Pair)


def test_a_shape_is_no_nest() -> None:
    shape = torch.Size([2, 3])
    assert map_leaves([shape], int, lambda n: n + 1)[0] is shape
