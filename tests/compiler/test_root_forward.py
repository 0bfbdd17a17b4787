"""form="module": where only the root's own code can't hold the sizes, its forward alone is a graph's."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.result.pruned_module import record_of

DIM, HEADS = 48, 4


def waves(n: int, dim: int) -> Tensor:
    """Sines and cosines of places, of frequencies that follow from the width."""
    angles = torch.arange(n)[:, None] * torch.exp(torch.arange(dim // 2) * (-math.log(100.0) / (dim // 2)))
    return torch.cat([angles.sin(), angles.cos()], -1)


def with_waves(x: Tensor) -> Tensor:
    """Adds them in a function that is no method: its sizes stand where no attribute can say others."""
    return x + waves(x.shape[1], x.shape[2]).to(x)


class Block(nn.Module):
    def __init__(self, dim: int = DIM, drop: float = 0.0) -> None:
        super().__init__()
        self.heads = HEADS
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2, self.drop = nn.Linear(dim, 96), nn.Linear(96, dim), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.drop(
            self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
        )
        return x + self.drop(self.fc2(F.gelu(self.fc1(x))))


class Waves(nn.Module):
    """Adds waves to its tokens; other methods run that code too, or do not."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.patches, self.drop = nn.Conv2d(3, DIM, 8, 8), nn.Dropout(drop)
        self.blocks = nn.ModuleList([Block(drop=drop), Block(drop=drop)])
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 5)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.drop(with_waves(x))

    def features(self, x: Tensor) -> list[Tensor]:
        x, found = self.tokens(x), []
        for block in self.blocks:
            found.append(x := block(x))
        return found

    def places(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return x + (torch.arange(x.shape[1])[:, None] / x.shape[2]).sin()

    def classifier(self) -> nn.Module:
        return self.head

    def depth(self) -> int:
        return len(self.blocks)

    def half(self) -> Waves:
        with_waves(torch.zeros(1, 1, 2))
        return super().half()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Encoder(nn.Module):
    """Returns what no part of a graph can: an object."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Encoded:
        x = with_waves(x)
        for block in self.blocks:
            x = block(x)
        return Encoded(x)


class Encoded:
    def __init__(self, last: Tensor) -> None:
        self.last = last


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.encoder = nn.Conv2d(3, DIM, 8, 8), Encoder()
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 96), nn.GELU(), nn.Linear(96, DIM))
        self.head = nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.patches(x).flatten(2).mT).last
        return self.head(self.mlp(x).mean(1))


class Scaled(nn.Module):
    """Has an attention in its own code, with a scale that follows the width of a head, before a block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.proj = (
            nn.Conv2d(3, DIM, 8, 8),
            nn.Linear(DIM, 3 * DIM),
            nn.Linear(DIM, DIM),
        )
        self.heads, self.block, self.head = HEADS, Block(), nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.head(self.block(x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


def image(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [Waves, Nested])
def test_its_modules_run_their_own_code(build: type[nn.Module], capture: str) -> None:
    model = randomise(build().eval())
    graph = fxprune.prune(model, 0.5, example_inputs=image(), capture=capture)
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), capture=capture, form="module")
    assert isinstance(pruned, build)
    own = record_of(pruned).own
    assert not own.parts and not own.is_whole and not own.is_graph
    assert own.forward is not None and own.forward.opened == (("", "encoder") if build is Nested else ("",))
    assert fxprune.verify(model, pruned, example_inputs=image()) < 1e-8
    for sizes in ((32, 32, 1), (32, 32, 5), (64, 32, 3)):
        assert torch.allclose(pruned(image(*sizes)), graph(image(*sizes)), rtol=1e-4, atol=1e-5)
    assert {*pruned.state_dict()} == {*model.state_dict()}
    blocks = [m for m in pruned.modules() if isinstance(m, Block)]
    seen: list[nn.Module] = []
    for block in blocks:
        block.register_forward_hook(lambda m, args, out: seen.append(m))
    pruned(image())
    assert seen == blocks and len(seen) == 2


def test_methods_that_would_run_its_code_are_refused() -> None:
    model = randomise(Waves().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), form="module")
    assert pruned.depth() == 2 and pruned.classifier() is pruned.head
    assert next(copy.deepcopy(pruned).half().parameters()).dtype == torch.float16
    for method in (pruned.tokens, pruned.features, pruned.places):
        with pytest.raises(UnsupportedModuleError, match="can't hold the pruned sizes"):
            method(image())
    nested = fxprune.prune(randomise(Nested().eval()), 0.5, example_inputs=image(), form="module")
    with pytest.raises(UnsupportedModuleError, match="can't hold"):
        nested.encoder(torch.randn(2, 16, DIM // 2))


def test_the_report_says_what_was_replaced() -> None:
    model = randomise(Waves().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), form="module")
    ((path, why),) = fxprune.report(model, pruned, example_inputs=image()).replaced
    assert path == "forward" and "what goes into drop" in why and f"{Path(__file__).name}:" in why


def test_it_is_copied_pickled_saved_and_traced(tmp_path: Path) -> None:
    model, x = randomise(Waves().eval()), image()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    wanted = pruned(x)
    fxprune.save(pruned, tmp_path / "half")
    others = [
        copy.deepcopy(pruned),
        pickle.loads(pickle.dumps(pruned)),
        fxprune.load(tmp_path / "half", model),
        torch.fx.symbolic_trace(pruned),
        torch.jit.trace(pruned, (x,)),
        torch.export.export(pruned, (x,)).module(),
        torch.compile(pruned, backend="eager", fullgraph=True),
    ]
    for other in others:
        assert torch.allclose(other(x), wanted, rtol=1e-5, atol=1e-6)
    for other in others[:3]:
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        assert float(other(x).abs().max()) == 0.0
    assert torch.equal(pruned(x), wanted)
    again = fxprune.prune(pruned, 0.5, example_inputs=x, form="module")
    assert isinstance(again, Waves) and fxprune.verify(pruned, again, example_inputs=x) < 1e-8


def test_it_trains_as_the_graph_does() -> None:
    model, x = randomise(Waves(drop=0.3).eval()), image()
    graph = fxprune.prune(model, 0.5, example_inputs=x).train()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module").train()
    losses = []
    for result in (graph, pruned):
        torch.manual_seed(1)
        losses.append(result(x).square().mean())
        losses[-1].backward()
    assert torch.allclose(*losses)
    wanted = dict(graph.named_parameters())
    for name, parameter in pruned.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("build", [Waves, Nested])
def test_everything_that_takes_a_result_takes_it(build: type[nn.Module], tmp_path: Path) -> None:
    model, x = randomise(build().eval()), image()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    plan, replaced = fxprune.plan_of(pruned), record_of(pruned).own.replaced
    applied = fxprune.apply(model, plan, example_inputs=x, form="module")
    assert isinstance(applied, build) and torch.equal(applied(x), pruned(x))
    assert record_of(applied).own.replaced == replaced
    assert torch.allclose(fxprune.apply(model, plan, example_inputs=x)(x), pruned(x), rtol=1e-5, atol=1e-6)
    fxprune.draw(pruned, tmp_path / "x.html")
    assert "may shrink" in str(fxprune.explain(pruned, "head", example_inputs=x))
    assert all(why in str(fxprune.report(model, pruned, example_inputs=x).replaced) for _, why in replaced)
    again = fxprune.prune(pruned, 0.5, example_inputs=x, form="module")
    fxprune.save(again, tmp_path / "again")
    loaded = fxprune.load(tmp_path / "again", model=build())
    assert isinstance(loaded, build) and torch.equal(loaded(x), again(x))
    assert again.head.in_features == DIM // 4 and type(again).__name__ == build.__name__
    as_graph = fxprune.prune(pruned, 0.5, example_inputs=x)
    assert isinstance(as_graph, torch.fx.GraphModule) and fxprune.verify(pruned, as_graph) < 1e-8


@pytest.mark.slow
def test_steps_hand_it_on() -> None:
    model, x, seen = randomise(Waves().eval()), image(), []

    def between(pruned: nn.Module, step: int) -> None:
        seen.append(isinstance(pruned, Waves))
        with torch.no_grad():
            for parameter in pruned.parameters():
                parameter.mul_(1.5)

    pruned = fxprune.prune(model, 0.5, example_inputs=x, steps=2, between=between, form="module")
    assert seen == [True] and isinstance(pruned, Waves) and record_of(pruned).own.forward
    assert fxprune.verify(model, pruned).function < 1e-8


def small_waves() -> nn.Module:
    """What the command line imports."""
    torch.manual_seed(0)
    return Waves().eval()


@pytest.mark.slow
def test_the_command_line_writes_and_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxprune.cli.app import run

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    spec, folder = "test_root_forward:small_waves", str(tmp_path / "half")
    options = ["--input-size", "3,32,32", "--form", "module", "--certify"]
    assert run(["prune", spec, "--out", folder, *options]) == 0
    assert "forward is a part of the graph" in capsys.readouterr().out
    loaded = fxprune.load(folder, model=small_waves())
    assert isinstance(loaded, Waves) and loaded(image()).shape == (2, 5)
    assert run(["report", folder, "--model", spec]) in (0, 2)


def test_a_scale_of_the_roots_own_code_is_folded_before_its_forward_is_replaced() -> None:
    model, x = randomise(Scaled().eval()), image()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="head_dim", form="module")
    assert fxprune.verify(model, pruned, example_inputs=image(batch=3)) < 1e-8
    assert record_of(pruned).own.is_whole, record_of(pruned).own.replaced
    assert type(pruned) is Scaled and fxprune.plan_of(pruned).scales


class Clamped(Waves):
    """Makes a number that half precision can't hold."""

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(x).float().clamp_min(torch.tensor(-1e9)).to(x.dtype)


def test_what_its_code_makes_keeps_its_precision() -> None:
    model, x = randomise(Clamped().eval()), torch.randn(2, 3, 32, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert [name for name, _ in record_of(pruned).own.replaced] == ["forward"]
    for same in (pruned, pickle.loads(pickle.dumps(pruned))):
        same.to(torch.float16)
        held = [t for t in same.buffers() if t.is_floating_point()]
        assert [(t.dtype, float(t)) for t in held] == [(torch.float32, -1e9)]
        assert next(same.parameters()).dtype == torch.float16
