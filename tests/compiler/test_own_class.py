"""form="module": an instance of the user's own class that computes what the pruned graph does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import small_hf_vit, small_swin, small_torchvision_vit, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.compiler.native import search
from fxprune.compiler.native.watch import fault_in
from fxprune.errors import OptionError
from fxprune.result.forms import graph_form
from fxprune.result.pruned_module import record_of

MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (small_vit, 32),
    "swin": (small_swin, 32),
    "hf_vit": (small_hf_vit, 32),
    "torchvision_vit": (small_torchvision_vit, 224),
}


def image(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    got = module(x)
    return got if isinstance(got, Tensor) else got.logits


@pytest.mark.parametrize(
    "options",
    [{}, {"scope": "global"}, {"attention": "head_dim"}, {"attention": "heads"}],
    ids=["uniform", "global", "head_dim", "heads"],
)
@pytest.mark.parametrize("name", MODELS)
def test_the_class_is_the_users_and_exact(name: str, options: dict[str, Any]) -> None:
    build, size = MODELS[name]
    model = build()
    pruned = fxprune.prune(model, 0.5, example_inputs=image(size), form="module", **options)
    assert type(pruned) is type(model)
    assert record_of(pruned).own.is_whole
    assert fxprune.verify(model, pruned, example_inputs=image(size, 3)) < 1e-8
    assert {*pruned.state_dict()} == {*model.state_dict()}
    graph = graph_form(pruned)
    for batch in (1, 5):
        x = image(size, batch)
        with torch.no_grad():
            assert torch.allclose(outputs(pruned, x), outputs(graph, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_reaches_every_weight(name: str) -> None:
    build, size = MODELS[name]
    model = build()
    pruned = fxprune.prune(model, 0.5, example_inputs=image(size), form="module").train()
    outputs(pruned, image(size)).square().mean().backward()
    model.train()
    outputs(model, image(size)).square().mean().backward()
    with_gradients = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n for n, p in pruned.named_parameters() if p.grad is not None} == with_gradients


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_folders_keep_the_form(name: str, tmp_path: Path) -> None:
    build, size = MODELS[name]
    model, x = build(), image(size)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    fxprune.save(pruned, tmp_path / "saved", build="mine:make")
    loaded = fxprune.load(tmp_path / "saved", model=build())
    with torch.no_grad():
        for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), loaded):
            assert type(other) is type(model)
            assert torch.equal(outputs(other, x), outputs(pruned, x))
            assert fxprune.verify(model, other, example_inputs=x) < 1e-8


def test_a_graph_is_the_default_and_other_forms_are_refused() -> None:
    assert isinstance(fxprune.prune(small_vit(), 0.5, example_inputs=image(32)), torch.fx.GraphModule)
    with pytest.raises(OptionError, match="form='modules'"):
        fxprune.prune(small_vit(), 0.5, example_inputs=image(32), form="modules")


def test_everything_that_takes_a_result_takes_the_form(tmp_path: Path) -> None:
    model, x = small_vit(), image(32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    again = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=x, form="module")
    assert type(again) is type(model) and torch.equal(again(x), pruned(x))
    assert "27%" in str(fxprune.report(model, pruned)) or "%" in str(fxprune.report(model, pruned))
    fxprune.draw(pruned, tmp_path / "x.html")
    assert "embed" in str(fxprune.explain(pruned, "norm", example_inputs=x))
    smaller = fxprune.prune(pruned, 0.25, example_inputs=x, form="module")
    assert type(smaller) is type(model) and fxprune.verify(pruned, smaller) < 1e-8


def test_steps_hand_the_form_on_and_carry_what_was_trained() -> None:
    model, x = small_vit(), image(32)
    seen = []

    def between(pruned: nn.Module, step: int) -> None:
        seen.append(type(pruned))
        with torch.no_grad():
            for p in pruned.parameters():
                p.mul_(1.5)

    options = {"example_inputs": x, "steps": 2, "attention": "head_dim"}
    pruned = fxprune.prune(model, 0.5, between=between, form="module", **options)
    assert seen == [type(model)] and type(pruned) is type(model)
    assert fxprune.verify(model, pruned).function < 1e-8  # of the trained weights
    for p in model.parameters():
        p.data = 1.5 * p.data
    found = fxprune.verify(model, pruned, example_inputs=x)
    assert found.function is None or found.function < 1e-8
    assert all(off < 1e-6 for off in found.changed.values())  # each was trained once


def test_a_smaller_model_lends_its_class() -> None:
    model, small, x = small_vit(), small_vit(embed_dim=24, depth=1), image(32)
    pruned = fxprune.prune(model, like=small, example_inputs=x, form="module")
    assert type(pruned) is type(small) and len(pruned.blocks) == 1
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8


def test_a_trained_instance_names_its_weights() -> None:
    model, x = small_vit(), image(32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    with torch.no_grad():
        pruned.blocks[0].mlp.fc1.weight.mul_(2)
    found = fxprune.verify(model, pruned)
    assert [*found.changed] == ["blocks.0.mlp.fc1.weight"] and found.function < 1e-8


def test_code_that_departs_from_the_graph_is_no_silent_result() -> None:
    model, x = small_vit(), image(32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    pruned.norm.eps = 10.0
    pruned.blocks[0].attn.scale *= 1.1
    found = fxprune.verify(model, pruned)
    assert not found.exact and "own code differs" in found.words


@pytest.fixture(scope="module")
def without_a_branch() -> tuple[nn.Module, nn.Module]:
    """A model and its result of which a branch went.  Copy before you change either."""
    model, runs = small_vit(depth=2), []

    def counted(*args: Any) -> Any:
        runs.append(args[1])
        return fault_in(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "fault_in", counted)
        pruned = fxprune.prune(model, 0.5, depth=0.34, example_inputs=image(32), form="module")
    assert len(runs) < 20  # no number makes code leave a branch out: none are tried
    return model, pruned


def test_a_branch_that_goes_leaves_a_part_of_the_graph(
    without_a_branch: tuple[nn.Module, nn.Module],
) -> None:
    (model, pruned), x = without_a_branch, image(32)
    assert type(pruned) is type(model)
    assert record_of(pruned).own.parts
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    assert "is a part of the graph" in str(fxprune.report(model, pruned))


# ---------------------------------------------------------------- where code keeps its sizes


class Sized(nn.Module):
    """An attention and an FFN whose code reads sizes in every way that this file names."""

    def __init__(self, dim: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.parts = [dim, dim, dim]  # a list
        self.table = {"sizes": (heads, dim // heads)}  # a tuple in a dict
        self.config = SimpleNamespace(hidden=2 * dim, groups=dim)  # an object
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.depthwise = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        heads, head_dim = self.table["sizes"]
        q, k, v = (
            t.reshape(b, n, heads, head_dim).transpose(1, 2) for t in self.qkv(x).split(self.parts, -1)
        )
        y = (q @ k.transpose(-2, -1) * head_dim**-0.5).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, self.dim))
        x = (
            x
            + F.conv1d(
                x.mT, self.depthwise.weight, self.depthwise.bias, padding=1, groups=self.config.groups
            ).mT
        )
        return x + self.fc2(F.gelu(self.fc1(x)).view(b, n, self.config.hidden))


class Whole(nn.Module):
    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.reduction = 16  # no width, though one is as large
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.widen = nn.Linear(16, 48)
        self.blocks = nn.Sequential(Sized(), Sized())
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(F.gelu(self.patches(x)).flatten(2).mT)
        return self.head(self.blocks(x).mean(1))


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_sizes_are_edited_wherever_the_code_reads_them(attention: str) -> None:
    model, x = randomise(Whole().eval()), image(32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention=attention, form="module")
    assert type(pruned) is Whole
    assert fxprune.verify(model, pruned, example_inputs=image(32, 3)) < 1e-8
    own = record_of(pruned).own
    assert own.is_whole, own.parts
    sized = pruned.blocks[0]
    assert sized.parts == [24, 24, 24] and sized.config.groups == 24 and sized.config.hidden == 48
    assert sized.table["sizes"] == ((2, 12) if attention == "heads" else (4, 6))
    assert pruned.reduction == 16
    assert model.blocks[0].parts == [48, 48, 48] and model.blocks[0].config.hidden == 96


def attend(x: Tensor, qkv: nn.Module, heads: int) -> Tensor:
    b, n, c = x.shape
    q, k, v = qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


class Rigid(nn.Module):
    """An attention that takes its head dim from the width of its input, in a function that is no method."""

    def __init__(self, dim: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(x, self.qkv, self.heads))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 8, 8)
        self.norm, self.attention, self.head = nn.LayerNorm(48), Rigid(), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.head((x + self.attention(self.norm(x))).mean(1))


def test_what_the_code_cannot_hold_is_a_part_of_the_graph(tmp_path: Path) -> None:
    model, x = randomise(Outer().eval()), image(32)
    pruned = fxprune.prune(
        model, 0.5, example_inputs=x, ratios={"attention.heads*": 0.25}, attention="heads", form="module"
    )
    assert type(pruned) is Outer and type(pruned.attention) is not Rigid
    (part,) = record_of(pruned).own.parts
    assert part.path == "attention" and "test_own_class.py" in part.why
    assert fxprune.verify(model, pruned, example_inputs=image(32, 3)) < 1e-8
    assert "attention is a part of the graph" in str(fxprune.report(model, pruned))
    calls = []
    pruned.attention.register_forward_hook(lambda *_: calls.append(1))
    pruned(x)
    assert calls
    fxprune.save(pruned, tmp_path / "saved", build="mine:make")
    loaded = fxprune.load(tmp_path / "saved", model=Outer())
    copies = [loaded, copy.deepcopy(pruned)]
    for other in copies:
        assert torch.equal(other(x), pruned(x))


def test_a_replaced_head_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = small_vit(), image(32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    pruned.reset_classifier(7)
    fxprune.save(pruned, tmp_path / "saved", build="mine:make")
    loaded = fxprune.load(tmp_path / "saved", model=small_vit())
    assert loaded(x).shape == (2, 7) and torch.equal(loaded(x), pruned(x))


class SplitInHalves(nn.Module):
    """Each half of its input has a branch; the code's width is of no axis that lies in it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.branches = nn.ModuleList([nn.Sequential(nn.Linear(dim // 2, 64), Normed(64)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        halves = x.split(self.dim // 2, -1)
        return sum(branch(half) for branch, half in zip(self.branches, halves, strict=True))


class Normed(nn.BatchNorm1d):
    """A layer of torch's with code of its own, and a layer inside."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x.mT).mT)


class Counted(nn.Module):
    """A table of one number per pair of channels, whose code asserts the width; read outside of a forward."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.periods = nn.Parameter(torch.rand(dim // 4))

    def table(self) -> Tensor:
        assert self.periods.numel() == self.dim // 4
        return self.periods.repeat_interleave(4).cos()


class Masked(nn.Module):
    """Draws which tokens it leaves out, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(x.shape[0], x.shape[1], device=x.device).argsort(1)[:, : x.shape[1] // 2]
        return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[2]))


class Chain(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 8, 8)
        self.kind = kind
        self.middle = {"halves": SplitInHalves, "counted": Counted}.get(kind, lambda _: Masked())(48)
        width = 64 if kind == "halves" else 48
        self.mlp = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = x * self.middle.table() if self.kind == "counted" else self.middle(x)
        return self.head((x + self.mlp(x)).mean(1))


@pytest.mark.parametrize("kind", ["halves", "counted", "masked"])
def test_numbers_are_mended_in_the_module_that_calls_the_one_at_fault(kind: str) -> None:
    model, x = randomise(Chain(kind).eval()), image(32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    own = record_of(pruned).own
    assert type(pruned) is Chain and own.is_whole, own.parts
    assert fxprune.verify(model, pruned, example_inputs=image(32, 3)) < 1e-8
    torch.manual_seed(3)
    wanted = graph_form(pruned)(x)
    torch.manual_seed(3)
    assert torch.allclose(pruned(x), wanted, rtol=1e-4, atol=1e-5)


RECIPES: dict[str, dict[str, int]] = {}


class Rebuilt(nn.Module):
    """Reads one number, has its copies built of another, and keeps a third in a cache for all of its kind."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.lengths = {"h": heads}
        self._read = (("h", heads),)
        self.recipe = RECIPES.setdefault("h", {"h": heads})

    def __deepcopy__(self, memo: Any) -> Rebuilt:
        return Rebuilt(self.lengths["h"])

    def __reduce__(self) -> Any:
        return Rebuilt, (self.lengths["h"],)

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self._read[0][1], -1)).transpose(1, 2)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 48, 8, 8), nn.Linear(48, 5)
        self.q, self.k, self.v = (nn.Linear(48, 48) for _ in range(3))
        self.split = Rebuilt(4)
        self.proj = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        q, k, v = (self.split(to(x)) for to in (self.q, self.k, self.v))
        y = ((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head((x + self.proj(y)).mean(1))


def test_what_copies_are_built_of_is_edited_and_what_others_share_is_not() -> None:
    model, x = randomise(Heads().eval()), image(32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert type(pruned) is Heads and record_of(pruned).own.is_whole
    assert RECIPES == {"h": {"h": 4}} and model.split.lengths == {"h": 4}
    for other in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert other.split.lengths == {"h": 2}
        assert torch.equal(other(x), pruned(x))
    assert fxprune.verify(model, pruned, example_inputs=image(32, 3)) < 1e-8


class Cells(nn.Module):
    """Counts the cells of a grid."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.count = grid, grid[0] * grid[1]
        self.bias = nn.Parameter(torch.zeros(96))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[:, None, None]


class Staged(nn.Module):
    """Tells whoever asks how wide and how coarse its stages are; its own code reads neither."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 96)) -> None:
        super().__init__()
        self.info = [{"width": w, "reduction": (16, 32, 64, 64)[i]} for i, w in enumerate(widths)]
        self.width, self.window = widths[-1], (8, 8)  # as many cells as the second stage is wide
        ins = (3, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 2, 2), nn.GELU(), nn.Conv2d(b, b, 1))
            for a, b in zip(ins, widths, strict=False)
        )
        self.extra = nn.Linear(widths[-1], 16)  # 16 and 32 are widths, and reductions
        self.cells = Cells((8, 12))  # as many as the last stage is wide
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        x = self.cells(x)
        return self.head(F.gelu(self.extra(x.flatten(2).mT)).mean(1))


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (64, 128)], ids=str)
def test_what_a_model_tells_of_itself_is_right_whatever_the_image(size: tuple[int, int]) -> None:
    model, x = randomise(Staged().eval()), torch.randn(2, 3, *size)  # widths as well
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert [stage["width"] for stage in pruned.info] == [s[2].out_channels for s in pruned.stages]
    assert [stage["reduction"] for stage in pruned.info] == [16, 32, 64, 64]
    assert pruned.width == pruned.extra.in_features == 48 and pruned.window == (8, 8)
    assert pruned.cells.grid == (8, 12) and pruned.cells.count == 96


# ---------------------------------------------------------------- branches that go, heads that merge


def test_what_a_branch_that_went_had_is_gone(without_a_branch: tuple[nn.Module, nn.Module]) -> None:
    model, pruned = without_a_branch
    pruned, x = copy.deepcopy(pruned), image(32)
    graph = fxprune.prune(model, 0.5, depth=0.34, example_inputs=x)
    assert {*pruned.state_dict()} == {*graph.state_dict()} < {*model.state_dict()}
    pruned.train()(x).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    assert len(pruned.blocks) == 2 and len(pruned.forward_intermediates(x, intermediates_only=True)) == 2


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_merged_heads_are_counted_by_the_users_code(ratio: float) -> None:
    model, x = small_vit(depth=2, num_heads=8), image(32)
    pruned = fxprune.prune(model, ratio, attention="merge", example_inputs=x, form="module")
    assert record_of(pruned).own.is_whole, record_of(pruned).own.replaced
    assert fxprune.verify(model, pruned, example_inputs=image(32)) < 1e-8
    assert pruned.blocks[0].attn.num_heads == 8 * (1 - ratio)


def test_one_trace_says_the_numbers_of_a_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running the code beside the graph takes several times as long: nothing asks for it here."""
    from fxprune.compiler.native import own_class

    def run(*args: Any, **options: Any) -> None:
        raise AssertionError("the code was run")

    monkeypatch.setattr(own_class, "own_code_of", run)
    model = small_vit(embed_dim=384, num_heads=6)
    pruned = fxprune.prune(model, 0.5, example_inputs=image(32), form="module")
    assert record_of(pruned).own.is_whole
