"""Names of layers and weights that a graph module can't have are refused by name; all others are kept."""

from __future__ import annotations

import pickle

import pytest
import torch
from exactness import assert_exact, assert_runs, assert_slices, certified_at
from helpers import randomise
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import UnsupportedModuleError
from fxprune.result.pruned_module import PrunedModule

KINDS = ("parameter", "buffer", "module")


class Named(nn.Module):
    """Two linear layers, between them a layer or weight of some name."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 16), nn.Linear(16, 4)
        if kind == "parameter":
            self.register_parameter(name, nn.Parameter(torch.ones(16)))
        elif kind == "buffer":
            self.register_buffer(name, torch.ones(16))
        else:
            self.add_module(name, nn.Linear(16, 16))
        self.between, self.kind = name, kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.kind == "module":
            return self.b(self.get_submodule(self.between)(y))
        return self.b(y * (self._parameters | self._buffers)[self.between])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["code", "graph", "meta", "_code", "recompile", "print_readable", "record", "self"]
)
def test_a_name_of_the_graph_module_is_refused(name: str, kind: str, capture: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=f"named '{name}', .*rename it, or prune .*Sequential"):
        fxprune.prune(Named(name, kind).eval(), 0.5, example_inputs=torch.zeros(2, 3), capture=capture)
    model = randomise(nn.Sequential(Named(name, kind)).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3), capture=capture)
    assert_exact(model, pruned, 1, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["class", "lambda", "None"])
def test_a_keyword_is_refused(name: str, kind: str, capture: str) -> None:
    model = nn.Sequential(Named(name, kind)).eval()
    with pytest.raises(UnsupportedModuleError, match=f"0.{name} of Sequential is named by a keyword"):
        fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3), capture=capture)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["output", "input", "x", "args", "1x", "torch", "config", "plan"])
def test_any_other_name_is_kept(name: str, kind: str, capture: str) -> None:
    model = randomise(Named(name, kind).eval())
    (pruned,) = certified_at((0.5,), model, torch.zeros(2, 3), capture)
    assert_slices(model, pruned)
    for batch in (1, 3):
        assert_runs(pruned, batch)
    x = torch.randn(3, 3)
    assert torch.equal(pickle.loads(pickle.dumps(pruned))(x), pruned(x))


@pytest.mark.parametrize("name", sorted({*dir(PrunedModule)} - {*dir(fx.GraphModule)} | {"ties", "record"}))
def test_a_name_of_a_result_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=repr(name)):
        fxprune.prune(Named(name, "module"), 0.5, example_inputs=torch.randn(2, 3))
