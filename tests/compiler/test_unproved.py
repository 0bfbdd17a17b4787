"""form="module": numbers that only other calls read are no wrong numbers: such calls are refused."""

from __future__ import annotations

import copy
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

DIM, HEADS = 48, 6


class Maps(nn.Module):
    """Counts its heads where it spells its attention out: for an argument, or by a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim, self.spelled = HEADS, DIM // HEADS, False
        self.qkv, self.proj = nn.Linear(8, 3 * DIM), nn.Linear(DIM, 8)

    def forward(self, x: Tensor, maps: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        y = self.qkv(x)
        if maps or self.spelled:
            q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            attention = (q @ k.mT * self.head_dim**-0.5).softmax(-1)
            y = x + self.proj((attention @ v).transpose(1, 2).flatten(2))
            return (y, attention) if maps else y
        q, k, v = y.unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Scaled(nn.Module):
    """Takes a scale from its width, for an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.fc1, self.fc2 = 96, nn.Linear(8, 96), nn.Linear(96, 8)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.fc1(x).relu()
        return self.fc2(x if scale is None else x * (scale / self.width))


class Levelled(nn.Module):
    """Takes a scale from its width, from a level on."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.fc1, self.fc2 = 96, nn.Linear(8, 96), nn.Linear(96, 8)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        x = self.fc1(x).relu()
        return self.fc2(x / self.width if level > 0 else x)


NUMBERS = [(Scaled, {"scale": 2.0}), (Levelled, {"level": 1})]


class Holds(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("build", "other", "inside"),
    [
        (Maps, {"maps": True}, True),  # no call of the whole model leads there
        *((build, other, inside) for build, other in NUMBERS for inside in (False, True)),
    ],
)
def test_other_calls_are_refused(
    build: type[nn.Module], other: dict[str, object], inside: bool, capture: str, tmp_path: Path
) -> None:
    inner = randomise(build().eval())
    model = Holds(inner) if inside else inner
    options = {"example_inputs": tokens(), "attention": "heads", "capture": capture, "form": "module"}
    pruned = fxprune.prune(model, 0.5, **options)
    assert type(pruned) is type(model) and record_of(pruned).own.is_whole
    assert fxprune.verify(model, pruned, example_inputs=tokens(3)) < 1e-8
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved", model=model)
    for same in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), loaded):
        one = same.inner if inside else same
        torch.testing.assert_close(
            one(tokens(4), *[type(v)() for v in other.values() if v is True]), same(tokens(4))
        )
        with pytest.raises(UnsupportedModuleError, match="only the captured call is proved"):
            one(tokens(), **other)


def test_the_heads_that_no_call_counts_are_those_that_are_left() -> None:
    model = randomise(Maps().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), attention="heads", form="module")
    wanted = pruned(tokens(3))
    assert pruned.heads == HEADS // 2
    pruned.spelled = True  # makes no difference in the original, nor here
    torch.testing.assert_close(pruned(tokens(3)), wanted)


class Sampled(nn.Module):
    """Also gives every sixth hidden state, for an argument: as many as a sibling has heads."""

    def __init__(self) -> None:
        super().__init__()
        self.every, self.attention = HEADS, Maps()
        self.fc1, self.fc2 = nn.Linear(8, 96), nn.Linear(96, 8)

    def forward(self, x: Tensor, states: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        x = self.attention(x)
        hidden = self.fc1(x).relu()
        y = x + self.fc2(hidden)
        return (y, hidden[:, :: self.every]) if states else y


@pytest.mark.parametrize("inside", [False, True])
def test_a_call_with_a_switch_on_that_is_proved_is_taken(inside: bool, capture: str) -> None:
    """The heads that it alone counts are those that are left; a stride as long stays."""
    model = randomise((Sampled if inside else Maps)().eval())
    options = {"example_inputs": tokens(), "attention": "heads", "capture": capture, "form": "module"}
    pruned = fxprune.prune(model, 0.5, **options)
    assert {way.path for way in record_of(pruned).own.ways} <= {"attention"}
    assert fxprune.verify(model, pruned, example_inputs=tokens(3)) < 1e-8
    x = torch.randn(3, 8, 8)
    if inside:
        y, states = pruned(x, states=True)
        assert pruned.every == HEADS and pruned.attention.heads == HEADS // 2
        torch.testing.assert_close(states, pruned.fc1(pruned.attention(x)).relu()[:, ::HEADS])
    else:
        y, maps = pruned(x, maps=True)
        assert maps.shape == (3, HEADS // 2, 8, 8)
    torch.testing.assert_close(y, pruned(x))


def test_what_the_captured_call_reads_may_be_read_by_others() -> None:
    model, options = randomise(Maps().eval()), {"attention": "head_dim", "form": "module"}
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), example_kwargs={"maps": True}, **options)
    assert not record_of(pruned).own.ways
    torch.testing.assert_close(pruned(tokens(3)), pruned(tokens(3), maps=True)[0])
