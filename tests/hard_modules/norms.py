"""Norms written by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hard_modules.case import CLASSES, EMBED, case

# ---------------------------------------------------------------- norms by hand


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(EMBED)), nn.Parameter(torch.ones(EMBED))


NORMED = {"block__scale": (12,), "head__weight": (CLASSES, 12)}


@case(**NORMED)
class LayerNormByVar(Norm):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * self.scale + self.shift


@case(**NORMED)
class LayerNormByVarMean(Norm):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-5) * self.scale + self.shift


@case(**NORMED)
class LayerNormByStd(Norm):
    """The Annotated Transformer's."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.scale * (x - mean) / (std + 1e-6) + self.shift


@case(**NORMED)
class LayerNormByKeywords(Norm):
    def forward(self, x: Tensor) -> Tensor:
        mean = torch.mean(input=x, dim=-1, keepdim=True)
        x = F.layer_norm(input=x - mean, normalized_shape=(EMBED,), weight=self.scale)
        return x + self.shift


@case(**NORMED)
class LayerNormByNumpyKeywords(Norm):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(axis=-1, keepdims=True)
        var = (x * x).mean(axis=-1, keepdims=True) - mean**2
        return (x - mean) / (var + 1e-5) ** 0.5 * self.scale + self.shift


@case(**NORMED)
class RmsNormByPow(Norm):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.scale * (x * torch.rsqrt(variance + 1e-6)).to(x.dtype) + self.shift


@case(**NORMED)
class RmsNormBySum(Norm):
    def forward(self, x: Tensor) -> Tensor:
        square = (x * x).sum(dim=-1, keepdim=True) / x.shape[-1]
        return self.scale * x / (square + 1e-6).sqrt() + self.shift


@case(**NORMED)
class RmsNormBySumTimes(Norm):
    def forward(self, x: Tensor) -> Tensor:
        square = (1 / EMBED) * torch.sum(x * x, -1, keepdim=True)
        return self.scale * x / (square + 1e-6).sqrt() + self.shift


@case(**NORMED)
class RmsNormModule(nn.RMSNorm):
    def __init__(self) -> None:
        super().__init__(EMBED)
        self.scale = nn.Parameter(torch.ones(EMBED))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (EMBED,), self.weight) * self.scale


@case(**NORMED)
class RmsNormByNormalize(Norm):
    """lucidrains': a unit vector, times the root of the width."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * EMBED**0.5 * self.scale + self.shift


@case(**NORMED)
class RmsNormByNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        length = x.norm(2, dim=-1, keepdim=True) + torch.linalg.vector_norm(x, dim=-1).unsqueeze(-1)
        return x / (length + 1e-6) * self.scale + self.shift
