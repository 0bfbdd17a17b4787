"""Modules are copied as copy.deepcopy does, whatever they hold and however their classes are copied."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import small_conv, small_hf_vit, small_swin, small_vit
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import UnsupportedModuleError
from fxprune.graph.copies import deep_copy, structural_copy


class Holds(nn.Module):
    """A tied layer, its own root, what two modules share, containers in containers, a method, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1))
        self.tied = self.one
        self.two[0].weight = self.one.weight
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.plain = torch.ones(2)
        self.root, self.call = [self], self.forward
        self.shared = self.two.shared = {"sizes": [1, (2, {3})], 4: slice(1, None)}
        self.shared["itself"] = self.shared

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)) + self.table


class CopiesItself(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesItself:
        made = CopiesItself(3, 3)
        made.times = getattr(self, "times", 0) + 1
        return made


class ForgetsItsCache(nn.Linear):
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "cache"}


def holding(layer: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return nn.Sequential(nn.Sequential(layer), nn.ReLU())


def facts(model: Any) -> Any:
    """What a copy must have in common with the original; by paths, where it is the same thing twice."""
    first: dict[int, str] = {}

    def of(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return first.setdefault(id(value), path), value.tolist(), type(value), value.requires_grad
        if isinstance(value, (dict, list, tuple, nn.Module)):
            if id(value) in first:
                return first[id(value)]
            first[id(value)] = path
        if isinstance(value, nn.Module):
            return type(value), of(value.__dict__, path)
        if isinstance(value, dict):
            return type(value), [(str(k), of(v, f"{path}.{k}")) for k, v in value.items()]
        if isinstance(value, (list, tuple)):
            return type(value), [of(v, f"{path}.{i}") for i, v in enumerate(value)]
        owner = getattr(value, "__self__", None)
        return (
            (value.__name__, of(owner, path))
            if isinstance(owner, nn.Module)
            else re.sub("0x[0-9a-f]+", "", repr(value))
        )

    return of(model, "")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "holds": Holds,
    "vit": small_vit,
    "swin": small_swin,
    "convolutions": small_conv,
    "hugging face": small_hf_vit,
    "copies itself": lambda: holding(CopiesItself(3, 3)),
    "forgets its cache": lambda: holding(ForgetsItsCache(3, 3), cache=[1]),
}


@pytest.mark.parametrize("name", MODELS)
def test_as_deepcopy_does(name: str) -> None:
    model = MODELS[name]()
    if name == "copies itself":  # with other weights each time
        assert deep_copy(model, {})[0][0].times == copy.deepcopy(model)[0][0].times == 1
        return
    made, wanted = deep_copy(model, {}), copy.deepcopy(model)
    assert facts(made) == facts(wanted)
    own = {id(m) for m in model.modules()} | {id(t) for t in model.state_dict(keep_vars=True).values()}
    assert own.isdisjoint(id(m) for m in (*made.modules(), *made.state_dict(keep_vars=True).values()))


def test_a_copy_holds_itself() -> None:
    model = Holds()
    made = deep_copy(model, {})
    assert made.root[0] is made.call.__self__ is made
    assert made.shared is made.two.shared is made.shared["itself"] is not model.shared
    assert made.tied is made.one
    assert made.two[0].weight is made.one.weight


def test_what_stands_for_a_thing_is_in_the_copy() -> None:
    model, stand_in, table = Holds(), nn.Identity(), torch.ones(5)
    made = deep_copy(model, {id(model.two): stand_in, id(model.table): table})
    assert made.two is stand_in
    assert made.table is table


def test_what_cannot_be_copied_is_shared() -> None:
    model = small_vit()
    model.blocks[0].lock = threading.Lock()
    made = structural_copy(model)
    assert made.blocks[0].lock is model.blocks[0].lock
    assert made.blocks[0].attn is not model.blocks[0].attn
    assert made.norm.weight is model.norm.weight


def test_graph_modules_within_others() -> None:
    """One that two hold, in either order, with a layer that is used outside of it as well."""
    x, inner = torch.randn(2, 3), nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    graph = fx.symbolic_trace(inner)
    outer = fx.symbolic_trace(nn.Sequential(graph, nn.Linear(3, 2)))
    for model in (
        nn.Sequential(graph),
        nn.Sequential(outer, graph),
        nn.Sequential(nn.Sequential(graph), graph, graph.get_submodule("1")),
    ):
        made = structural_copy(model)
        assert torch.equal(made[0](x), model[0](x))
        assert set(map(id, made.modules())).isdisjoint(map(id, model.modules()))
        assert facts_of_weights(made) == facts_of_weights(model)


def facts_of_weights(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(tensor)) for name, tensor in model.named_parameters()]


class Dotted(dict[str, int]):
    """A common way to write an attribute for each key: it has no attribute that a copy may ask for."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("wrapped", [lambda held: held, lambda held: [held], lambda held: {"a": (held,)}])
@pytest.mark.parametrize("form", ["graph", "module"])
def test_what_no_copy_can_be_made_of_is_named(wrapped: Callable[[Any], Any], form: str) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    model[0].sizes = wrapped(Dotted(width=8))
    with pytest.raises(
        UnsupportedModuleError, match=r"^0\.sizes of Sequential .*__getattr__, that must raise"
    ):
        fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 3), form=form)
    with pytest.raises(UnsupportedModuleError, match=r"^0\.sizes of Sequential .*KeyError: '__deepcopy__'"):
        structural_copy(model)
