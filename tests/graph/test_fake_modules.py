"""A model's modules with fake tensors: as they were, each tensor once, made when asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxprune.graph.fake_modules import FakeModules
from fxprune.graph.tensors import is_inside, named_tensors


class Tied(nn.Module):
    """Two layers with one weight, a table that the code keeps, and a part without layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.plain = torch.ones(2)
        self.nothing = nn.Sequential()


def test_tensors_of_a_fake_are_fake_and_a_tied_one_is_one() -> None:
    model = Tied()
    fake = FakeModules(model, FakeTensorMode()).fake(model)
    assert all(isinstance(t, FakeTensor) for _, t in named_tensors(fake))
    assert fake.first.weight is fake.second.weight is not model.first.weight
    assert [*fake.state_dict()] == [*model.state_dict()]
    assert isinstance(fake.nothing, nn.Sequential)


def test_what_the_code_changes_later_is_not_seen() -> None:
    model = Tied()
    modules = FakeModules(model, FakeTensorMode())
    model._buffers["table"] = None
    model.second = nn.Linear(3, 5)
    model.new = nn.Linear(3, 3)
    assert modules.attribute("", "table").shape == (3,)
    assert modules.attribute("second", "weight").shape == (3, 3)
    assert modules.original("new") is None
    with pytest.raises(AttributeError, match="new"):
        modules.attribute("new", "weight")


def test_attributes_that_are_no_state_are_the_models_own() -> None:
    model = Tied()
    modules = FakeModules(model, FakeTensorMode())
    assert modules.attribute("", "plain") is model.plain
    assert modules.original("first") is model.first
    assert isinstance(modules.attribute("", "first").weight, FakeTensor)


@pytest.mark.parametrize(
    ("path", "modules", "inside"),
    [
        ("blocks.0.mlp.weight", {"blocks.0"}, True),
        ("blocks.0", {"blocks.0": 1}, True),
        ("blocks.01.mlp", ["blocks.0"], False),
        ("blocks", ["blocks.0"], False),
        ("blocks.1", [""], True),
        ("", ["blocks"], False),
        ("", [""], True),
        ("blocks.1", [], False),
    ],
)
def test_paths_that_lie_in_modules(path: str, modules: list[str], inside: bool) -> None:
    assert is_inside(path, modules) is inside
