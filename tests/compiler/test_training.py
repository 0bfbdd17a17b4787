"""form="module": what train mode alone does on the pruned sizes is proved, edited, or refused."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import UnsupportedModuleError
from fxprune.result.pruned_module import record_of

WIDTH = 32


class Plain(nn.Module):
    """Two layers, of which train mode makes more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.width = nn.Linear(12, WIDTH), nn.Linear(WIDTH, 4), WIDTH

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.fc1(x).relu()
        return self.more(x) if self.training else self.fc2(x)

    def more(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        raise NotImplementedError

    def looks(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.more(self.fc1(x)) if self.training else x


class Scaled(Plain):
    """Has a scale that follows the original's width, in train mode alone."""

    def more(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.fc2(x), self.fc2(x * self.width**-0.5)


class Shaped(Plain):
    """Reads a size that has to be the new one."""

    def more(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.fc2(x), x.sum(-1) + x.reshape(-1, self.width).sum(-1)


class Features(Plain):
    """Returns what the plan shrinks."""

    def more(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.fc2(x), (x * self.width**-0.5).cumsum(0)


class TorchCoin(Plain):
    """Lets chance decide."""

    def more(self, x: Tensor) -> Tensor:
        return self.fc2(x * self.width**-0.5) if torch.rand([]) < 0.5 else self.fc2(x)


class LeavesOut(Plain):
    """Lets chance leave a block out, with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x).relu()
        if not self.training or torch.rand([]) < 0.5:
            x = x + self.down(self.up(x).relu())
        return self.fc2(x * self.width**-0.5 if self.training else x)


def test_a_block_that_chance_leaves_out_is_no_reason_to_refuse() -> None:
    model = randomise(LeavesOut().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=given(), capture="symbolic", form="module")
    assert type(pruned) is LeavesOut and not record_of(pruned).own.untrained
    assert pruned.width == WIDTH and pruned.up.out_features == 24
    found = {round(float(in_training(pruned, seed)[0].detach().sum()), 3) for seed in range(8)}
    assert len(found) == 2  # with the block and without


class PythonCoin(Plain):
    """Lets chance decide that no capture sees."""

    def more(self, x: Tensor) -> Tensor:
        return self.fc2(x * self.width**-0.5) if random.random() < 0.5 else self.fc2(x)


class OwnShape(Plain):
    """Takes the scale from the tensor: on the new sizes that is another number."""

    def more(self, x: Tensor) -> Tensor:
        return self.fc2(x * x.shape[-1] ** -0.5)


class OfValues(Plain):
    """Branches on values: no graph holds that."""

    def more(self, x: Tensor) -> Tensor:
        return self.fc2(x * self.width**-0.5) if x.sum() > 0 else self.fc2(x)


class OfValuesAndShape(Plain):
    """Branches on values, and takes its scale from the tensor."""

    def more(self, x: Tensor) -> Tensor:
        return self.fc2(x * x.shape[-1] ** -0.5) if x.sum() > 0 else self.fc2(x)


class ReadsTwice(Plain):
    """Branches on values, and takes its scale from a number that eval mode views by."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x).relu().reshape(-1, self.width)
        return self.fc2(x * self.width**-0.5 if self.training and x.sum() > 0 else x)


def coin() -> bool:
    return random.random() < 0.5


class FarCoin(PythonCoin):
    """Asks a function that is no method."""

    def more(self, x: Tensor) -> Tensor:
        return self.fc2(x * self.width**-0.5) if coin() else self.fc2(x)


class NoSize(Plain):
    """Branches on values too, but nothing there is a size."""

    def more(self, x: Tensor) -> Tensor:
        return self.fc2(x * 0.5) if x.sum() > 0 else self.fc2(x)


class Attends(Plain):
    """Holds torch's attention, which a capture spells out."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.fc1(x)[None]
        x = self.norm(x + self.attention(x, x, x)[0])[0]
        return (self.fc2(x), x * 0.5) if self.training else self.fc2(x)


def test_torchs_attention_is_spelled_out_in_train_mode_as_well(capture: str) -> None:
    model = randomise(Attends().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=given(), capture=capture, form="module")
    assert record_of(pruned).own.is_whole and not record_of(pruned).own.untrained
    wanted, found = pruned.eval()(given()), pruned.train()(given())
    torch.testing.assert_close(found[0], wanted)
    assert found[1].shape == (3, WIDTH // 2)


class Drops(nn.Module):
    """Draws numbers in train mode, where a size that no code of eval mode reads has to stay the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.heads, self.drop = 80, 2, nn.Dropout(0.1)
        self.fc1, self.qkv, self.fc2 = nn.Linear(12, 80), nn.Linear(80, 240), nn.Linear(80, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.fc1(x))
        n, c = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, self.heads, c // self.heads).permute(1, 2, 0, 3)
        x = x + ((q @ k.mT * 40**-0.5).softmax(-1) @ v).transpose(0, 1).reshape(n, c)
        return self.fc2(x * (self.dim**-0.5 if self.training else 1.0))


def test_what_draws_numbers_trains_as_its_graph_does() -> None:
    model = randomise(Drops().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=given(), form="module")
    graph = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=given())
    assert type(pruned) is Drops and pruned.dim == 80 and pruned.heads == 1
    before = torch.get_rng_state()
    fxprune.prune(model, 0.5, example_inputs=given(), form="module")
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(in_training(pruned, 0), in_training(graph, 0))


class Inside(nn.Module):
    """Has a module inside that trains otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = OwnShape()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_module_inside_refuses_train_mode_when_it_is_called_alone() -> None:
    pruned = fxprune.prune(randomise(Inside().eval()), 0.5, example_inputs=given(), form="module")
    assert pruned.inner(given()).shape == (3, 4)
    with pytest.raises(UnsupportedModuleError, match="other operations in train mode"):
        pruned.train().inner(given())


def masked(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """The dense model with the channels that are gone set to zero."""
    dense = copy.deepcopy(model)
    (kept,) = (k[0] for name, k in fxprune.plan_of(pruned).kept.items() if name == "fc1.weight")
    gone = [i for i in range(WIDTH) if i not in kept.tolist()]
    with torch.no_grad():
        dense.fc1.weight[gone] = 0
        dense.fc1.bias[gone] = 0
    return dense


def given() -> Tensor:
    return torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


def in_training(model: nn.Module, seed: int) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    random.seed(seed)
    found = model.train()(given())
    return (found,) if isinstance(found, Tensor) else found


@pytest.mark.parametrize("build", [Scaled, Shaped, Features, TorchCoin, PythonCoin, FarCoin, NoSize])
def test_it_trains_as_the_masked_original_does(build: type[Plain], capture: str, tmp_path: Path) -> None:
    model = randomise(build().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=given(), capture=capture, form="module")
    assert type(pruned) is build and record_of(pruned).own.is_whole and not record_of(pruned).own.untrained
    assert fxprune.verify(model, pruned) < 1e-8
    fxprune.save(pruned, tmp_path / "saved")
    for same in (pruned, copy.deepcopy(pruned), fxprune.load(tmp_path / "saved", model=model)):
        dense = masked(model, pruned)
        for seed in range(6):
            wanted, got = in_training(dense, seed), in_training(same, seed)
            assert len(wanted) == len(got)
            for a, b in zip(wanted, got, strict=True):
                kept = fxprune.plan_of(pruned).kept["fc1.weight"][0]
                torch.testing.assert_close(b, a[:, kept] if a.shape[-1:] != b.shape[-1:] else a)


@pytest.mark.parametrize("build", [OwnShape, OfValues, OfValuesAndShape, ReadsTwice])
def test_what_cannot_be_right_is_refused_in_train_mode(
    build: type[Plain], capture: str, tmp_path: Path
) -> None:
    model = randomise(build().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=given(), capture=capture, form="module")
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved", model=model)
    for same in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), loaded):
        assert same.eval()(given()).shape == (3, 4)
        assert torch.equal(same.looks(given()), given())
        with pytest.raises(UnsupportedModuleError, match="other operations in train mode"):
            same.train()(given())
        with pytest.raises(UnsupportedModuleError, match="other operations in train mode"):
            same.looks(given())
    assert fxprune.verify(model, pruned) < 1e-8


class OfOne(nn.Module):
    """Takes one sample at a time, of which a norm has no statistics in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.norm = WIDTH, nn.BatchNorm1d(WIDTH)
        self.fc1, self.fc2 = nn.Linear(12, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.fc1(x)).relu().reshape(1, self.width)
        return self.fc2(x * (self.width**-0.5 if self.training else 1.0))


def test_a_batch_of_one_is_no_reason_to_trust_train_mode() -> None:
    options = {"example_inputs": given()[:1], "capture": "export", "form": "module"}
    pruned = fxprune.prune(randomise(OfOne().eval()), 0.5, **options)
    assert type(pruned) is OfOne and not record_of(pruned).dynamic
    pruned.train().norm.eval()
    with pytest.raises(UnsupportedModuleError, match="other operations in train mode"):
        pruned(given()[:1])


def test_what_refuses_train_mode_can_be_pruned_again(tmp_path: Path) -> None:
    model = randomise(OwnShape().eval())
    pruned = fxprune.prune(model, 0.25, example_inputs=given(), form="module")
    again = fxprune.prune(pruned, 0.25, example_inputs=given(), form="module")
    fxprune.save(again, tmp_path / "saved")
    assert fxprune.verify(pruned, again) < 1e-8
    for same in (again, copy.deepcopy(again), fxprune.load(tmp_path / "saved", model=model)):
        assert torch.equal(same.eval()(given()), again.eval()(given()))
        with pytest.raises(UnsupportedModuleError, match="other operations in train mode"):
            same.train()(given())


class Averages(nn.Module):
    """Averages what it sees into a buffer, in train mode, and reads that in the same call."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.fc, self.head, self.way = nn.Linear(12, WIDTH), nn.Linear(WIDTH, 5), way
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.training:
            now = x.detach().mean((0, 1))
            if self.way == "in place":
                self.mean.mul_(0.9).add_(now, alpha=0.1)
            elif self.way == "copied":
                self.mean.copy_(0.9 * self.mean + 0.1 * now)
            else:
                self.mean.lerp_(now, 0.1)
        return self.head((x - self.mean).relu())


@pytest.mark.parametrize("way", ["in place", "copied", "lerp"])
def test_buffers_that_train_mode_writes_in_place_are_as_in_a_narrow_model(way: str) -> None:
    model, x = randomise(Averages(way)).double().eval(), torch.randn(4, 3, 12).double()
    own = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    kept = torch.as_tensor(fxprune.plan_of(own).kept["fc.weight"][0])
    narrow = Averages(way).double()
    narrow.fc, narrow.head = nn.Linear(12, len(kept)).double(), nn.Linear(len(kept), 5).double()
    with torch.no_grad():
        narrow.fc.weight.copy_(model.fc.weight[kept])
        narrow.fc.bias.copy_(model.fc.bias[kept])
        narrow.head.weight.copy_(model.head.weight[:, kept])
        narrow.head.bias.copy_(model.head.bias)
        narrow.mean = model.mean[kept].clone()
    for _ in range(3):
        torch.testing.assert_close(own.train()(x), narrow.train()(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(own.mean, narrow.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(own.eval()(x), narrow.eval()(x), rtol=0, atol=1e-12)
