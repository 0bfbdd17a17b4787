"""form="module": a table that eval mode keeps and train mode makes anew trains on the pruned sizes."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.result.pruned_module import record_of

SIDE = 3


class Cached(nn.Module):
    """Attention whose `train` deletes the looked up biases, or makes them."""

    def __init__(self, dim: int, heads: int, key: int) -> None:
        super().__init__()
        self.heads, self.key, self.value, self.side, self.scale = heads, key, 2 * key, SIDE, key**-0.5
        self.qkv, self.proj = nn.Linear(dim, 4 * key * heads), nn.Linear(2 * key * heads, dim)
        self.biases = nn.Parameter(torch.zeros(heads, 5))
        self.register_buffer("places", torch.arange(SIDE**4).reshape(SIDE**2, -1) % 5)

    @torch.no_grad()
    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        if mode and hasattr(self, "looked_up"):
            del self.looked_up
        else:
            self.looked_up = self.biases[:, self.places]
        return self

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).view(len(x), self.side**2, self.heads, -1)
        q, k, v = (t.transpose(1, 2) for t in torch.split(qkv, [self.key, self.key, self.value], dim=3))
        bias = self.biases[:, self.places] if self.training else self.looked_up
        mixed = (q @ k.transpose(-2, -1) * self.scale + bias).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(len(x), self.side**2, -1))


class Net(nn.Module):
    def __init__(self, heads: int, key: int, depth: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 24), nn.Linear(24, 5)
        self.blocks = nn.ModuleList(Cached(24, heads, key) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize(("heads", "key"), [(4, 8), (8, 8), (4, 4)])  # a head dim as large as the heads
@pytest.mark.parametrize("attention", ["auto", "head_dim"])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_eval_mode_keeps_is_made_anew_to_train(heads: int, key: int, attention: str, depth: int) -> None:
    model = randomise(Net(heads, key, depth).eval()).double()
    model.train().eval()
    x = torch.randn(3, SIDE**2, 6, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.5, example_inputs=x[:2], attention=attention, form="module")
    own = record_of(pruned).own
    assert own.is_whole and not own.untrained
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    before = pruned.eval()(x)
    trained = pruned.train()(x)
    trained.sum().backward()
    assert torch.allclose(before, trained) and pruned.blocks[0].biases.grad.abs().sum() > 0
    with torch.no_grad():
        pruned.blocks[0].biases.add_(torch.arange(5.0))
    trained = pruned(x)
    assert not torch.allclose(before, trained) and torch.allclose(pruned.eval()(x), trained)
