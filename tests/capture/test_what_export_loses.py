"""What only torch.export's way lost, and what both lost of devices, modes and plain numbers."""

from __future__ import annotations

import ast
import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.exported.sizes import _all_of
from fxprune.capture.modes.merge import merge_modes
from fxprune.errors import CaptureError, InputArgumentError, InputSizeError
from fxprune.graph.own_nodes import autocast_off, guard_device

CAPTURES = pytest.mark.parametrize("capture", ["symbolic", "export"])


class Drop(nn.Module):
    def forward(self, x: Tensor, p: float = 0.1) -> Tensor:
        return nn.functional.dropout(x, p, self.training)


class Net(nn.Module):
    """Two layers, and what a test puts around them."""

    def __init__(self, around: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.drop, self.alpha = nn.Linear(8, 16), nn.Linear(16, 4), Drop(), 1.0
        self.around = around

    def core(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))

    def forward(self, x: Any, n: Any = 1) -> Any:
        return self.around(self, x, n)


class Switched(Net):
    """Its own `train` sets what `forward` reads."""

    def train(self, mode: bool = True) -> Switched:
        self.alpha = 2.0 if mode else 1.0
        super().train(mode)
        return self


def pruned(net: nn.Module, capture: str, *given: Any) -> Any:
    return fxprune.prune(net.double().eval(), 0.0, example_inputs=given, capture=capture)


def vectors(batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, dtype=torch.float64)


@CAPTURES
def test_another_kind_of_device(capture: str) -> None:
    made = pruned(Net(lambda self, x, n: self.core(x) * (3 if x.is_cuda else 1)), capture, vectors())
    assert [n.args[1] for n in made.graph.nodes if n.target is guard_device] == ["cpu"]
    same = pruned(Net(lambda self, x, n: self.core(x) * (1 + 0 * x.is_cuda)), capture, vectors())
    assert not any(n.target is guard_device for n in same.graph.nodes)


def region(enabled: bool) -> Callable[..., Any]:
    def around(self: Net, x: Tensor, n: Any) -> Tensor:
        with torch.autocast("cuda", enabled=enabled):
            return self.core(x)

    return around


@CAPTURES
@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_autocast_of_another_kind_of_device(capture: str) -> None:
    off = pruned(Net(region(False)), capture, vectors())
    assert [n.args for n in off.graph.nodes if n.target is autocast_off] == [(torch.device("cuda"),)]
    on = pruned(Net(region(True)), capture, vectors())
    assert any(n.target is guard_device for n in on.graph.nodes)
    assert copy.deepcopy(off)(vectors(1)).shape == on(vectors(1)).shape


def test_an_error_in_a_part_without_autocast_leaves_it_on() -> None:
    def around(self: Net, x: Tensor, n: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.core(x.double())

    made = pruned(Net(around), "symbolic", vectors())
    with torch.autocast("cpu"):
        with pytest.raises(RuntimeError):
            made(torch.randn(3, 9, dtype=torch.float64))
        assert torch.is_autocast_enabled("cpu")


@CAPTURES
def test_a_dropout_that_is_given_more(capture: str) -> None:
    net = Net(lambda self, x, n: self.b(self.drop(torch.relu(self.a(x)), 0.6))).double()
    made, x = pruned(net, capture, vectors()).train(), vectors(32)
    net.train()
    torch.manual_seed(0)
    wanted = net(x)
    torch.manual_seed(0)
    assert torch.allclose(made(x), wanted)
    assert torch.allclose(made.eval()(x), net.eval()(x))


@CAPTURES
def test_what_a_models_own_train_sets(capture: str) -> None:
    net = Switched(lambda self, x, n: self.core(x) * self.alpha)
    made, x = pruned(net, capture, vectors()), vectors(1)
    for mode in (True, False):
        assert torch.allclose(made.train(mode)(x), net.train(mode)(x))


def test_a_number_of_another_type() -> None:
    made = pruned(Net(lambda self, x, n: (self.core(x), torch.arange(n))), "export", vectors(), 2)
    assert made(vectors(), 2)[1].dtype == torch.int64
    for other in (2.0, True):
        with pytest.raises(InputArgumentError, match="n="):
            made(vectors(), other)


def test_modes_that_differ_in_the_type_of_a_number_alone() -> None:
    graphs = []
    for numbers in ((1, 1.0), (2, 2.0)):
        graph = torch.fx.Graph()
        x = graph.placeholder("x")
        graph.output([graph.call_function(torch.add, (x, number)) for number in numbers])
        graphs.append(graph)
    root = nn.Module()
    merge_modes(graphs[0], graphs[1], root)
    assert [type(m.eval()()) for m in root.children()] == [int, float]


Pair = collections.namedtuple("Pair", "ids mask")


def test_sizes_of_named_fields_are_guarded() -> None:
    net = Net(lambda self, x, n: self.core(x.ids) * (2 if x.mask.shape[1] > 5 else 1))
    made = pruned(net, "export", Pair(vectors(), torch.randn(3, 7)))
    for given in (Pair(vectors(2), torch.randn(2, 7)), Pair(vectors(1), torch.randn(1, 9))):
        assert torch.allclose(made(given), net(given))
    with pytest.raises(InputSizeError, match=r"x\.mask > 5"):
        made(Pair(vectors(), torch.randn(3, 4)))


def test_a_dict_with_an_order() -> None:
    net = Net(lambda self, x, n: self.core(x["x"]) + x["y"])
    made = pruned(net, "export", collections.OrderedDict(x=vectors(), y=torch.randn(3, 4).double()))
    given = collections.OrderedDict(x=vectors(2), y=torch.randn(2, 4).double())
    assert torch.allclose(made(given), net(given))


def test_an_operator_of_several_graphs_is_named() -> None:
    net = Net(lambda self, x, n: torch.cond(x.sum() > 0, self.core, lambda t: t[:, :4] + 1, (x,)))
    with pytest.raises(CaptureError, match="it calls cond"):
        pruned(net, "export", vectors())


def test_one_of_two_conditions_is_kept_apart() -> None:
    """`a or b` and `c` are not `a or b and c`."""
    either, third = (ast.parse(code, mode="eval").body for code in ("x == 1 or x == 9", "y == 2"))
    both = ast.parse(_all_of([either, third]), mode="eval").body
    assert isinstance(both, ast.BoolOp) and isinstance(both.op, ast.And)
