"""Code that asks for a device: what it makes alike elsewhere is followed, another way is refused there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputArgumentError
from fxprune.graph.own_nodes import guard_device

CPU = torch.device("cpu")
X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer, what code does that asks for a device, a head."""

    def __init__(self, ask: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.ask, self.home = ask, torch.device("cpu")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def device_of_one(self) -> torch.device:
        return next(p.device for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ask(self, self.a(x)))


def by_flag(m: Net, x: Tensor) -> Tensor:
    return x * 3 if x.is_cuda else x


def by_word(m: Net, x: Tensor) -> Tensor:
    return x if x.device.type == "cpu" else x * 3


def by_text(m: Net, x: Tensor) -> Tensor:
    return x * 3 if str(x.device).startswith("cuda") else x


def of_the_weight(m: Net, x: Tensor) -> Tensor:
    return x * 3 if m.head.weight.is_cuda else x


def by_what_is_there(m: Net, x: Tensor) -> Tensor:
    return torch.cuda.FloatTensor(x.shape).copy_(x) if x.is_cuda else x


def without_autocast(m: Net, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return x.float().softmax(-1)


def made_there(m: Net, x: Tensor) -> Tensor:
    where = x.device
    return x + torch.arange(16, device=where) + torch.ones(16, device=where.type if where.index else where)


def kernel_of_choice(m: Net, x: Tensor) -> Tensor:
    fast = x.is_cuda and hasattr(torch, "a_kernel_that_nobody_has")
    return x if fast else x.relu()


def autocast_by_a_word(m: Net, x: Tensor) -> Tensor:
    kind = x.device.type if isinstance(x.device.type, str) and x.device.type != "mps" else "cpu"
    with torch.autocast(device_type=kind, enabled=False):
        return x.float().softmax(-1)


def moved_where_apart(m: Net, x: Tensor) -> Tensor:
    table, where = torch.arange(16.0), x.device
    if table.device != where:
        table = table.to(where)
    return x * table


def by_device(m: Net, x: Tensor) -> Tensor:
    return x if x.device == torch.device("cpu") else x * 3


def by_another_device(m: Net, x: Tensor) -> Tensor:
    return x * 3 if torch.device("cpu") != m.a.weight.device else x


def among_devices(m: Net, x: Tensor) -> Tensor:
    return x if x.device in (torch.device("cpu"), torch.device("mps")) else x * 3


def by_number(m: Net, x: Tensor) -> Tensor:
    return x if x.device.index is None else x * 3


def by_kind_of_the_weight(m: Net, x: Tensor) -> Tensor:
    return x if m.head.weight.device.type == "cpu" else x * 3


def by_any_weight(m: Net, x: Tensor) -> Tensor:
    return x if next(m.parameters()).device.type == "cpu" else x * 3


def by_device_of_any_weight(m: Net, x: Tensor) -> Tensor:
    return x * 3 if next(m.parameters()).device != torch.device("cpu") else x


def within_a_text(m: Net, x: Tensor) -> Tensor:
    return x * 3 if "cuda" in str(x.device) else x


def formatted(m: Net, x: Tensor) -> Tensor:
    return x if f"{x.device}" == "cpu" else x * 3


def of_two(m: Net, x: Tensor) -> Tensor:
    return x * 3 if x.device != m.head.weight.device else x


def of_two_anywhere(m: Net, x: Tensor) -> Tensor:
    return x if x.device == next(m.parameters()).device else x * 3


def moved(m: Net, x: Tensor) -> Tensor:
    where = next(m.parameters()).device
    return x.to(where) + torch.arange(16, device=m.head.weight.device)


def alike_anywhere(m: Net, x: Tensor) -> Tensor:
    return x.relu() if x.device == torch.device("cpu") else torch.relu(x) if x is None else x.relu()


def by_a_device_read_before(m: Net, x: Tensor) -> Tensor:
    device = x.device
    return x if device == torch.device("cpu") else x * 3


def made_on_the_kind(m: Net, x: Tensor) -> Tensor:
    return x + torch.ones(1, device=x.device.type)


def made_on_the_word(m: Net, x: Tensor) -> Tensor:
    return x + torch.arange(16, device=str(x.device))


def by_a_kind_read_before(m: Net, x: Tensor) -> Tensor:
    device = x.device
    if device.type == "mps":
        return x - 1
    return x if device.type == "cpu" else x * 3


def made_on_a_device_read_before(m: Net, x: Tensor) -> Tensor:
    device = x.device
    return x + torch.arange(16, device=device)


def by_a_constant(m: Net, x: Tensor) -> Tensor:
    return x if x.device == CPU else x * 3


def by_an_attribute(m: Net, x: Tensor) -> Tensor:
    return x * 3 if m.home != x.device else x


def by_a_property(m: Net, x: Tensor) -> Tensor:
    return x if m.device.type == "cpu" else x * 3


def by_a_property_beside_a_constant(m: Net, x: Tensor) -> Tensor:
    return x if m.device_of_one == CPU else x * 3


def by_a_weights_device_read_before(m: Net, x: Tensor) -> Tensor:
    where = next(m.parameters()).device
    return x if where.type == "cpu" else x * 3


def by_a_method(m: Net, x: Tensor) -> Tensor:
    return x * 3 if x.get_device() >= 0 else x


def handed_back(x: Tensor) -> torch.device:
    return x.device


def by_a_function(m: Net, x: Tensor) -> Tensor:
    return x if handed_back(x).type == "cpu" else x * 3


def by_a_function_read_before(m: Net, x: Tensor) -> Tensor:
    where = handed_back(x)
    return x if where.type == "cpu" else x * 3


def by_a_local_constant(m: Net, x: Tensor) -> Tensor:
    home = torch.device("cpu")
    return x if x.device == home else x * 3


def beside_a_local_of_a_tensor(m: Net, x: Tensor) -> Tensor:
    where = m.head.weight.device
    return x if x.device == where else x * 3


def in_a_set(m: Net, x: Tensor) -> Tensor:
    return x if x.device in {CPU, torch.device("mps")} else x * 3


def by_several(m: Net, x: Tensor) -> Tensor:
    return x if len({x.device, m.head.weight.device}) == 1 else x * 3


def beside_a_property(m: Net, x: Tensor) -> Tensor:
    where = m.device_of_one
    return x.to(where) * (1 if x.device == m.device else 3)


OTHERS = [by_flag, by_word, by_text, of_the_weight, by_what_is_there]
OTHERS_IN_BOTH = [
    *(by_flag, by_word, of_the_weight, by_device, by_another_device, among_devices, by_number),
    *(by_a_device_read_before, by_a_kind_read_before),
    *(by_a_constant, by_an_attribute, by_a_property, by_a_property_beside_a_constant, by_a_method),
    *(by_a_weights_device_read_before, by_a_function, by_a_function_read_before),
    by_a_local_constant,
    *(by_kind_of_the_weight, by_any_weight, by_device_of_any_weight, within_a_text, formatted),
]
IN_SYMBOLIC = [in_a_set]
ALIKE = [without_autocast, made_there, kernel_of_choice]
ALIKE_IN_BOTH = [
    *(made_on_a_device_read_before, beside_a_property, by_several, beside_a_local_of_a_tensor),
    *(made_there, autocast_by_a_word, moved_where_apart, of_two, of_two_anywhere, moved, alike_anywhere),
]


def guards(ask: Callable[[Net, Tensor], Tensor]) -> list[torch.fx.Node]:
    model = randomise(Net(ask).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert_same(whole(X), model(X), 1e-5)
    return [n for n in whole.graph.nodes if n.target is guard_device]


@pytest.mark.parametrize("ask", [*OTHERS, *IN_SYMBOLIC])
def test_another_way_is_guarded(ask: Callable[[Net, Tensor], Tensor]) -> None:
    (guard,) = guards(ask)
    with pytest.raises(
        InputArgumentError, match=r"inputs on cuda: .*test_devices.py:\d+ asks .*on cpu, where"
    ):
        guard.target("cuda", *guard.args[1:], **guard.kwargs)


@pytest.mark.parametrize("ask", ALIKE)
def test_the_same_way_is_not(ask: Callable[[Net, Tensor], Tensor]) -> None:
    assert not guards(ask)


@pytest.mark.parametrize("ask", [made_on_the_kind, made_on_the_word])
def test_a_word_that_says_where_something_is_made_moves(ask: Callable[[Net, Tensor], Tensor]) -> None:
    model = randomise(Net(ask)).eval()
    graph = fxprune.trace(model, X, capture="export")
    assert_same(graph(X[:1]), model(X[:1]), 1e-5)
    assert graph.to("meta")(X.to("meta")).shape == (2, 5, 3)


@pytest.mark.parametrize("ask", ALIKE_IN_BOTH)
def test_what_is_alike_elsewhere_moves(ask: Callable[[Net, Tensor], Tensor], capture: str) -> None:
    model = randomise(Net(ask)).eval()
    graph = fxprune.trace(model, X, capture=capture)
    assert_same(graph(X[:1]), model(X[:1]), 1e-5)
    assert not [node for node in graph.graph.nodes if node.target is guard_device]
    if ask is not autocast_by_a_word:  # torch has none on the meta device
        assert graph.to("meta")(X.to("meta")).shape == (2, 5, 3)


def test_tools_see_no_guard() -> None:
    model = randomise(Net(by_flag).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture="symbolic")
    assert fxprune.verify(model, pruned) < 1e-8
    wanted = pruned(X)
    assert_same(torch.jit.trace(pruned, X)(X), wanted, 1e-5)
    assert_same(torch.export.export(pruned, (X,)).module()(X), wanted, 1e-5)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("ask", OTHERS_IN_BOTH)
def test_each_way_to_ask_is_heard(ask: Callable[[Net, Tensor], Tensor], capture: str) -> None:
    """The model computes something else on another kind of device, and the result refuses that."""
    model = randomise(Net(ask)).double().eval()
    graph = fxprune.trace(model, numbers(2, 5, 8), capture=capture)
    x = numbers(3, 5, 8)
    assert torch.allclose(graph(x), model(x), rtol=0, atol=1e-12)
    with pytest.raises(
        InputArgumentError, match=r"inputs on meta: .*test_devices.py:\d+ asks .*on cpu, where"
    ):
        graph.to("meta")(x.to("meta"))
