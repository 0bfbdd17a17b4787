"""What succeeds prints nothing and warns of nothing, whatever a model's code makes torch say."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune


class Talkative(nn.Module):
    """Checkpoints, attention as one op, and complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv = nn.Linear(8, 16), nn.Linear(16, 48)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def block(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.block, self.first(x), use_reentrant=False)
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        turned = turned * torch.polar(torch.ones(1), torch.ones(1))
        return self.head(torch.view_as_real(turned).flatten(-2)).sum(1)


def test_nothing_is_printed(capture: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, x = Talkative().eval(), torch.randn(2, 6, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Ours, and for whoever saves: what load() will need.
        warnings.filterwarnings("ignore", message=".*is of no library known here")
        pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
        assert fxprune.verify(model, pruned) < 1e-8
        fxprune.report(model, pruned)
        fxprune.save(pruned, tmp_path / "saved")
        loaded = fxprune.load(tmp_path / "saved", model=Talkative())
    assert torch.equal(loaded(x), pruned(x))
    assert capfd.readouterr() == ("", "")
