"""Chosen bases: less is lost than by selection, nothing is added, and the certificate holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import OptionError
from fxprune.zoo import randomise

QUIET = {"progress": False}


class Attending(nn.Module):
    """A transformer block: a stream that norms read, heads of queries, keys and values, an FFN."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 24)
        self.norm, self.other, self.last = norm(24), norm(24), norm(24)
        self.qkv, self.proj = nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.head = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        shared = ((q @ k.transpose(-2, -1)) * 12**-0.5).softmax(-1)
        x = x + self.proj((shared @ v).transpose(1, 2).reshape(b, n, c))
        x = x + self.down(nn.functional.gelu(self.up(self.other(x))))
        return self.head(self.last(x)[:, 0])


def made(model: nn.Module) -> nn.Module:
    randomise(model, 0)
    return model.eval()


def tokens(samples: int = 60, seed: int = 0) -> list[Tensor]:
    """Tokens that lie near few directions, as those of a trained model do."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(5, 12, generator=torch.Generator().manual_seed(99))
    return list((torch.randn(samples, 6, 5, generator=generator) @ mix).split(20))


def lost(model: nn.Module, pruned: nn.Module) -> float:
    data = tokens(seed=5)
    with torch.no_grad():
        return float(sum((model(x) - pruned(x)).square().sum() for x in data))


WHAT = {
    "width": {"ratio": 0.0, "ratios": {"embed": 0.5}},
    "inner": {"ratio": 0.5, "ratios": {"embed": 0.0}, "attention": "head_dim"},
    "all": {"ratio": 0.4, "attention": "head_dim"},
}


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("what", WHAT)
def test_less_is_lost_in_chosen_coordinates(what: str, norm: type[nn.Module]) -> None:
    model = made(Attending(norm))
    before = [t.clone() for t in model.state_dict().values()]
    options = {"data": tokens(), "importance_options": QUIET, **WHAT[what]}
    given = fxprune.prune(model, basis="given", refit=False, **options)
    chosen = fxprune.prune(model, refit=False, **options)
    both = fxprune.prune(model, **options)
    assert lost(model, chosen) < 0.8 * lost(model, given)
    assert lost(model, both) < lost(model, chosen)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    for pruned in (chosen, both):
        assert fxprune.verify(model, pruned).exact
        shapes = [t.shape for t in pruned.state_dict().values()]
        assert shapes == [t.shape for t in given.state_dict().values()]
    assert fxprune.plan_of(chosen).bases and not fxprune.plan_of(given).bases


def test_nothing_is_lost_where_nothing_was_there() -> None:
    """A stream of few directions keeps its function exactly at their number, its LayerNorms kept."""
    model = made(Attending())
    with torch.no_grad():
        for norm in (model.norm, model.other, model.last):
            norm.bias.zero_()  # (a constant that lies in no direction of the stream)
        frame = torch.randn(24, 6)
        for layer in (model.embed, model.proj, model.down):
            layer.weight.copy_(frame @ torch.linalg.lstsq(frame, layer.weight)[0])
            layer.bias.copy_(frame @ torch.linalg.lstsq(frame, layer.bias[:, None])[0][:, 0])
    model, data = model.double(), [t.double() for t in tokens()]
    pruned = fxprune.prune(
        model, 0.0, ratios={"embed": 0.5}, data=data, refit=False, importance_options=QUIET
    )
    x = tokens(seed=5)[0].double()
    with torch.no_grad():
        assert (model(x) - pruned(x)).abs().max() < 1e-3 * model(x).abs().max()


def test_the_plan_in_other_coordinates_is_saved(tmp_path: Path) -> None:
    model = made(Attending())
    pruned = fxprune.prune(model, 0.4, data=tokens(), importance_options=QUIET)
    fxprune.save(pruned, tmp_path / "folder", build="tests.compiler.test_coordinates:Attending")
    loaded = fxprune.load(tmp_path / "folder", model=Attending())
    assert fxprune.verify(model, loaded).exact
    x = tokens(seed=3)[0]
    assert torch.equal(pruned(x), loaded(x))


def test_the_own_class_holds_it() -> None:
    model = made(Attending(nn.RMSNorm))
    pruned = fxprune.prune(model, 0.4, data=tokens(), importance_options=QUIET, form="module")
    assert fxprune.verify(model, pruned).exact


@pytest.mark.parametrize("options", [{"importance": "magnitude"}, {"steps": 2}, {"data": None}])
def test_it_is_refused_where_it_has_no_meaning(options: dict[str, object]) -> None:
    asked = {"data": tokens(), "example_inputs": tokens()[0][:2], **options}
    with pytest.raises(OptionError, match="basis"):
        fxprune.prune(made(Attending()), 0.4, basis="principal", **asked)
