"""Objects of the model's own among its outputs: a cache of keys and values, a distribution, a nest."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

import fxprune

WIDTH = 16


class Layer:
    """What one layer remembers."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.seen = 0
        self.ready = False

    def update(self, keys: Tensor) -> Tensor:
        self.device, self.ready = keys.device, True
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], 1)
        return self.keys


class Cache:
    """Holds layers, and the class that it makes them of."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.layer_class = Layer

    def update(self, keys: Tensor) -> Tensor:
        self.layers.append(self.layer_class())
        return self.layers[-1].update(keys)


class Both:
    """A cache beside another, as encoders with decoders have."""

    def __init__(self, own: Cache, other: Cache) -> None:
        self.own, self.other = own, other
        self.updated = {0: True}


class Gaussian:
    """A distribution by its parameters; one of them computed."""

    def __init__(self, mean: Tensor, log: Tensor) -> None:
        self.mean, self.std = mean, log.exp()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        keys = cache.update(self.key(x))
        x = x + (self.query(x) @ keys.transpose(1, 2)).softmax(-1) @ x
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    """Logits beside an object of `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        cache, other = Cache(), Cache()
        for block in self.blocks:
            x = block(x, cache)
        other.update(x)
        logits = self.head(x)
        if self.kind == "gaussian":
            return Gaussian(logits, self.head(x.tanh()))
        if self.kind == "both":
            return logits, Both(cache, other)
        return {"logits": logits, "cache": cache}


KINDS = ("cache", "both", "gaussian")
X = torch.zeros(2, 6, 5)


def made(kind: str) -> tuple[nn.Module, Any]:
    model = randomise(Model(kind).eval())
    return model, fxprune.prune(model, 0.5, example_inputs=X)


def tensors(value: Any) -> list[Tensor]:
    """Those that an output holds, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (Layer, Cache, Both, Gaussian)):
        value = list(vars(value).values())
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("kind", KINDS)
def test_the_object_comes_back_exact(kind: str) -> None:
    model, pruned = made(kind)
    assert fxprune.verify(model, pruned) < 1e-8
    hidden = pruned.get_submodule("blocks.0.up")
    assert hidden.out_features == 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 9, 5)])
def test_at_ratio_0_it_holds_what_the_models_own_does(kind: str, shape: tuple[int, ...]) -> None:
    model = randomise(Model(kind).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X)
    x = torch.randn(shape)
    wanted, got = tensors(model(x)), tensors(whole(x))
    assert len(wanted) == len(got) >= 2
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a, b)


def test_it_is_of_the_models_classes_with_all_their_attributes() -> None:
    _, pruned = made("both")
    _, both = pruned(X)
    assert type(both) is Both and both.updated == {0: True}
    assert type(both.own) is Cache and both.own.layer_class is Layer
    first = both.own.layers[0]
    assert type(both.own.layers) is list and type(first) is Layer
    assert (first.seen, first.ready, first.device) == (0, True, torch.device("cpu"))
    assert both.own.update(X).shape == X.shape  # its own code works on


def test_what_the_object_holds_stays_whole() -> None:
    """It reaches the output: people read it, and give it to the next call."""
    _, pruned = made("cache")
    assert pruned(X)["cache"].layers[0].keys.shape == (2, 6, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_it_survives_copies_and_files(kind: str, tmp_path: Path) -> None:
    _, pruned = made(kind)
    x = torch.randn(3, 6, 5)
    wanted = tensors(pruned(x))
    fxprune.save(pruned, tmp_path / "saved")
    copies = [copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))]
    copies.append(fxprune.load(tmp_path / "saved", Model(kind)))
    for clone in copies:
        for a, b in zip(wanted, tensors(clone(x)), strict=True):
            torch.testing.assert_close(a, b)


def test_gradients_pass_through_it() -> None:
    _, pruned = made("cache")
    pruned.train()
    pruned(torch.randn(2, 6, 5))["cache"].layers[1].keys.square().sum().backward()
    assert pruned.get_submodule("blocks.1.key").weight.grad is not None
    assert pruned.get_submodule("blocks.0.up").weight.grad is not None


class Named(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


class Listed(list[Any]):
    @property
    def last(self) -> Any:
        return self[-1]


class Maps(nn.Module):
    """Feature maps by names that are no words of Python, and one more by a word, in an OrderedDict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        return {"maps": OrderedDict([("0", self.b(x)), ("pool", self.b(x.mean(1)))]), "n": 2}


class DefaultMaps(Maps):
    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        maps = defaultdict(list, {"0": self.b(x)})
        maps["pool"].append(self.b(x.mean(1)))
        return {"maps": maps, "more": defaultdict(lambda: None, {1: x.mean(1)})}


class OwnMaps(Maps):
    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        return Named(maps=Listed([self.b(x), {"0": self.b(x.mean(1))}]), n=2)


def test_a_dict_and_a_list_of_the_models_classes_stay_such(tmp_path: Path) -> None:
    model = randomise(OwnMaps().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture="symbolic")
    assert fxprune.verify(model, pruned) < 1e-8
    fxprune.save(pruned, tmp_path / "saved")
    copies = [copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))]
    for clone in (pruned, *copies, fxprune.load(tmp_path / "saved", OwnMaps())):
        found = clone(X)
        assert type(found) is Named and type(found.maps) is Listed and found.n == 2
        torch.testing.assert_close(found.maps.last["0"], pruned(X).maps.last["0"])
    named = fxprune.prune(model, 0.5, example_inputs=X, capture="symbolic", outputs=["maps.0"])
    assert named(X).maps[0].shape == (2, 6, 7)


def test_a_default_dict_stays_one(capture: str, tmp_path: Path) -> None:
    model = randomise(DefaultMaps().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture=capture, outputs=["maps"])
    assert fxprune.verify(model, pruned) < 1e-8
    fxprune.save(pruned, tmp_path / "saved")
    for clone in (
        pruned,
        pickle.loads(pickle.dumps(pruned)),
        fxprune.load(tmp_path / "saved", DefaultMaps()),
    ):
        maps, more = clone(X).values()
        assert type(maps) is type(more) is defaultdict
        assert maps.default_factory is list and more.default_factory is None  # which has no name
        assert list(maps) == ["0", "pool"] and more[1].shape == (2, WIDTH // 2)


def test_an_ordered_dict_stays_one(capture: str, tmp_path: Path) -> None:
    model = randomise(Maps().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
    assert pruned.a.out_features == WIDTH // 2
    fxprune.save(pruned, tmp_path / "saved")
    copies = [copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))]
    for clone in (pruned, *copies, fxprune.load(tmp_path / "saved", Maps())):
        found = clone(X)
        assert type(found) is dict and type(found["maps"]) is OrderedDict
        assert list(found["maps"]) == ["0", "pool"] and found["n"] == 2
    named = fxprune.prune(model, 0.5, example_inputs=X, capture=capture, outputs=["maps.0"])
    assert named(X)["maps"]["0"].shape == (2, 6, 7)


@dataclasses.dataclass
class Fields(OrderedDict):  # type: ignore[type-arg]
    """An output as Hugging Face's: a dict of the fields that are set, which may be set later."""

    last: Tensor | None = None
    pooled: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class SetsLater(nn.Module):
    def __init__(self, pooled_last: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.pooled_last = pooled_last

    def forward(self, x: Tensor) -> Fields:
        h = self.a(x).relu()
        out = Fields(last=self.b(h), hidden=self.c(h) if self.pooled_last else None)
        out["pooled"] = out.pooled = self.c(h) + 1
        if not self.pooled_last:
            out["hidden"] = out.hidden = self.b(h) - 1
        return out


torch.utils._pytree.register_pytree_node(
    Fields,
    torch.utils._pytree._dict_flatten,
    lambda values, keys: Fields(**dict(zip(keys, values, strict=True))),
    serialized_type_name="test_returned_objects.Fields",
)


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("pooled_last", [True, False])
def test_fields_keep_the_order_in_which_code_sets_them(
    pooled_last: bool, form: str, capture: str, tmp_path: Path
) -> None:
    model = randomise(SetsLater(pooled_last).eval()).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    wanted = model(x)
    whole = fxprune.prune(model, 0.0, example_inputs=x[:2], form=form, capture=capture)
    for result in (whole, pickle.loads(pickle.dumps(whole)) if form == "graph" else copy.deepcopy(whole)):
        found = result(x)
        assert type(found) is Fields and [*found] == [*wanted]
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-12)
    half = fxprune.prune(model, 0.5, example_inputs=x[:2], form=form, capture=capture, outputs=["pooled"])
    assert fxprune.verify(model, half) < 1e-8
    assert half(x).pooled.shape == (3, 4) and [*half(x)] == [*wanted]
    if form == "graph":
        fxprune.save(half, tmp_path)
        assert [*fxprune.load(tmp_path, model=model)(x)] == [*wanted]


class LeavesOut(SetsLater):
    def forward(self, x: Tensor) -> Fields:
        h = self.a(x).relu()
        out = Fields(last=self.b(h), hidden=self.c(h))
        out["pooled"] = None
        return out


def test_a_field_that_code_sets_to_none_is_one(capture: str) -> None:
    model = randomise(LeavesOut(True).eval()).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.5, example_inputs=x[:2], capture=capture)
    assert [*pruned(x)] == [*model(x)] and pruned(x)["pooled"] is None
    assert fxprune.verify(model, pruned) < 1e-8


class PoolsFirst(nn.Module):
    """Sets a field of Hugging Face's output later, which stands before those that are set."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> BaseModelOutputWithPooling:
        h = self.b(self.a(x))
        out = BaseModelOutputWithPooling(pooler_output=h.mean(1))
        out.last_hidden_state = h
        return out


def test_an_order_of_fields_is_compiled_whole(capture: str) -> None:
    model, x = randomise(PoolsFirst().eval()), torch.randn(3, 5, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    found = torch.compile(pruned, fullgraph=True, backend="eager")(x)
    assert [*found] == [*pruned(x)] == ["pooler_output", "last_hidden_state"]
    torch.testing.assert_close(found[0], pruned(x)[0])
