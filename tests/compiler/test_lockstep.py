"""Lockstep: batches that wait before each layer see what one run sees, and what was changed before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.choose.importance.data import Batch
from fxprune.compiler.refit import lockstep
from fxprune.compiler.refit.lockstep import Lockstep
from fxprune.zoo import randomise


class Deep(nn.Module):
    """Residual blocks, a tensor of its own that a layer reads, and a value that is read much later."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.query = nn.Parameter(torch.randn(1, 6))
        self.ask = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for layer in self.layers:
            x = x + layer(x).relu()
        return x + first + self.ask(self.query)


@pytest.fixture
def traced() -> fx.GraphModule:
    model = Deep().double()
    randomise(model, 0)
    return fx.symbolic_trace(model)


def batches() -> list[Batch]:
    torch.manual_seed(0)
    return [Batch((torch.randn(n, 6, dtype=torch.float64),), n) for n in (2, 3, 1)]


def calls(module: fx.GraphModule) -> list[str]:
    return [n.name for n in module.graph.nodes if n.op == "call_module"]


def expected(module: fx.GraphModule, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            given = super().run_node(n)
            if n.op == "call_module":
                seen[n.name] = self.env[n.args[0]], given
            return given

    Run(module, garbage_collect_values=False).run(*batch.args)
    return seen


@pytest.mark.parametrize("room", [1 << 20, 100, 0], ids=["memory", "both", "files"])
def test_it_sees_what_one_run_sees(
    traced: fx.GraphModule, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "IN_MEMORY", room)
    running, wanted = Lockstep(traced, batches()), [expected(traced, b) for b in batches()]
    for name in calls(traced):
        for (read, given), alone in zip(running.given(name), wanted, strict=True):
            assert torch.equal(read, alone[name][0])
            assert torch.equal(given, alone[name][1])


@pytest.mark.parametrize("room", [1 << 20, 0], ids=["memory", "files"])
def test_later_layers_read_what_changed_ones_give(
    traced: fx.GraphModule, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "IN_MEMORY", room)
    running = Lockstep(traced, batches())
    for name in calls(traced):
        read = list(running.read(name))  # all before this one are changed, this one is not
        for was, batch in zip(read, batches(), strict=True):
            assert torch.equal(was, expected(traced, batch)[name][0])
        layer = traced.get_submodule(next(n.target for n in traced.graph.nodes if n.name == name))
        with torch.no_grad():
            layer.weight.mul_(0.5)


def test_a_deep_stream_is_solved_to_its_end() -> None:
    """Readers of a narrowed stream, more than any number of passes: each of them is solved."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 8)
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(6))
            self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(6))
            self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
                x = x + 0.3 * down(nn.functional.gelu(up(norm(x))))
            return self.head(x.mean(1))

    model = Stream()
    randomise(model, 0)
    torch.manual_seed(0)
    mixing = torch.randn(4, 12)
    data = [torch.randn(20, 5, 4) @ mixing + 0.05 * torch.randn(20, 5, 12) for _ in range(8)]
    quiet = {"progress": False}
    options = {"data": data[:6], "importance_options": quiet, "basis": "given"}
    plain = fxprune.prune(model.eval(), 0.25, refit=False, **options)
    solved = fxprune.prune(model, 0.25, **options)
    assert fxprune.verify(model, solved) < 1e-8
    readers = {f"up.{i}.weight" for i in range(6)}
    assert readers <= {*fxprune.plan_of(solved).refit}
    with torch.no_grad():
        wanted = [model(x) for x in data[6:]]
        off = [
            sum(float((m(x) - y).square().sum()) for x, y in zip(data[6:], wanted, strict=True))
            for m in (solved, plain)
        ]
    assert off[0] < 0.5 * off[1], off
