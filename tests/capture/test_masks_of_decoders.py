"""torch.nn's decoders with masks: what their code asks of a mask's values is no question of the graph."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune


class Decodes(nn.Module):
    """A decoder, or a whole transformer, that sees no later tokens."""

    def __init__(self, whole: bool, made: str) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(16, 5)
        layer = nn.TransformerDecoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.whole = nn.Transformer(16, 4, 1, 1, 32, 0.0, batch_first=True) if whole else None
        self.layers = None if whole else nn.TransformerDecoder(layer, 1, nn.LayerNorm(16))
        self.made = made

    def mask(self, n: int, x: Tensor) -> Tensor:
        if self.made == "torch":
            return nn.Transformer.generate_square_subsequent_mask(n).to(x)
        later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        return later if self.made == "bool" else torch.zeros(n, n).to(x).masked_fill(later, float("-inf"))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.a(x), self.b(y)
        mask = self.mask(x.shape[1], x)
        if self.whole is not None:
            return self.head(self.whole(y, x, tgt_mask=mask))
        return self.head(self.layers(x, y, tgt_mask=mask))


@pytest.mark.parametrize("made", ["torch", "bool", "filled"])
@pytest.mark.parametrize("whole", [False, True])
def test_they_are_captured(whole: bool, made: str) -> None:
    model = randomise(Decodes(whole, made)).double().eval()
    x, y = torch.randn(2, 5, 8).double(), torch.randn(2, 7, 6).double()
    for form in ("graph", "module"):
        pruned = fxprune.prune(model, 0.5, example_inputs=(x, y), form=form)
        assert fxprune.verify(model, pruned) < 1e-8
    graph = fxprune.trace(model, (x, y), capture="symbolic")
    for n in (5, 9):
        longer = torch.randn(3, n, 8).double(), torch.randn(3, 4, 6).double()
        assert_same(graph(*longer), model(*longer), 1e-12)
