"""What libraries' code does beside layers, and what symbolic tracing can't open."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hard_modules.case import EMBED, alone, case, only


@case(block__fc1__weight=(20, 12), block__none=(1, 0, 12))
class NoRegisterTokens(nn.Module):
    """A parameter with an empty dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1, 0, EMBED))
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.none.expand(x.shape[0], -1, -1), x], dim=1)
        return self.fc2(self.fc1(x).relu())


@case(block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class MaxByName(nn.Module):
    """`.values` of a max over tokens, whose channels go on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).max(dim=1, keepdim=True).values)


class Square(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class TwoLayers(nn.Module):
    """fc1, what is between, fc2."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(x)))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@case(block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class CustomAutograd(TwoLayers):
    def between(self, x: Tensor) -> Tensor:
        return Square.apply(x)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.7 * x)


@case(captures=only("export"), block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class Scripted(TwoLayers):
    """A function that TorchScript compiled."""

    def between(self, x: Tensor) -> Tensor:
        return scripted(x)


@case(block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class Checkpointed(TwoLayers):
    """Gradient checkpointing, as timm and Hugging Face offer it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(checkpoint(self.between, x, use_reentrant=False))

    def between(self, x: Tensor) -> Tensor:
        return self.fc1(x).relu()


@case(block__fc1__weight=(20, 24), embed__weight=(24, 5), head__weight=(7, 24))
class FourierMixing(TwoLayers):
    """FNet's: the transform over tokens and channels; the channels that it mixes are frozen."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(torch.fft.fft2(x).real).relu())


@case(block__fc1__weight=(20, 12), block__filter=(5, 20, 2), block__fc2__weight=(12, 20))
class GlobalFilter(TwoLayers):
    """GFNet's: complex weights over the frequencies of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, 40, 2))

    def between(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        return torch.fft.irfft(spectrum, n=9, dim=1, norm="ortho")


@case(block__fc1__weight=(20, 12), block__weights=(10, 10), block__fc2__weight=(12, 20))
class ComplexWeights(TwoLayers):
    """Channels in pairs are complex numbers, mixed by a complex matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(20, 20, dtype=torch.cfloat))
        self.bias = nn.Parameter(torch.randn(20, dtype=torch.cfloat))

    def between(self, x: Tensor) -> Tensor:
        x = torch.view_as_complex(x.unflatten(-1, (-1, 2))) @ self.weights + self.bias
        return torch.view_as_real(x).flatten(-2).relu()


@case(block__fc1__weight=(20, 12), block__recurrent__weight_ih_l0=(120, 20), block__fc2__weight=(12, 40))
class Gru(TwoLayers):
    """What it reads shrinks, what it remembers is frozen, like an LSTM's."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(40, 40, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0]


@case(alone, inputs=(torch.randn(2, 9, 5),), layers__layers__0__linear1__weight=(20, 12))
class FastPath(nn.Module):
    """What nn.TransformerEncoder's fused path asks for in eval mode: ReLU, post-norm, no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, EMBED)
        layer = nn.TransformerEncoderLayer(EMBED, 4, 40, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
        self.head = nn.Linear(EMBED, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


@case(block__decoder__linear1__weight=(20, 12), block__decoder__multihead_attn__in_proj_weight=(36, 12))
class Decoder(nn.Module):
    """nn.TransformerDecoderLayer: self-attention, cross-attention, feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(EMBED, 4, 40, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, x.flip(1))


@case(block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class NoGradInside(TwoLayers):
    """A region that records no gradients."""

    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = x.sigmoid()
        return x * gate


@case(block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class RandomMasking(TwoLayers):
    """A masked autoencoder's: tokens are dropped at random in eval mode too."""

    def between(self, x: Tensor) -> Tensor:
        order = torch.rand(x.shape[0], 9, device=x.device).argsort(dim=1)
        kept = x.gather(1, order[:, :4].unsqueeze(-1).repeat(1, 1, x.shape[-1]))
        return kept.mean(1, keepdim=True)


@case(block__fc1__weight=(20, 12), block__token__weight=(1, 20))
class RepeatedAcrossChannels(TwoLayers):
    """One gate per token, repeated as often as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Linear(40, 1)

    def between(self, x: Tensor) -> Tensor:
        gate = self.token(x).sigmoid()
        return x * gate.repeat(1, 1, x.shape[-1]) + gate.expand(-1, -1, x.shape[-1]) + gate.tile(40)


@case(block__fc1__weight=(20, 12), embed__weight=(12, 5))
class SinesByNumber(TwoLayers):
    """A sine embedding that `forward` makes: one frequency per channel, numbered."""

    def forward(self, x: Tensor) -> Tensor:
        n = torch.arange(9, device=x.device, dtype=x.dtype)
        frequencies = 100 ** -(torch.arange(12, device=x.device, dtype=x.dtype) / 11)
        angles = n[:, None] * frequencies[None, :]
        x = x + torch.cat((angles.sin(), angles.cos()), dim=1)
        return self.fc2(self.fc1(x).relu())


@case(
    alone,
    inputs=([torch.randn(2, 5), torch.randn(2, 4)],),
    fc1__weight=(12, 5),
    head__weight=(7, 12),
)
class ListOfInputs(nn.Module):
    """One argument that is a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, EMBED), nn.Linear(4, EMBED)
        self.head = nn.Linear(EMBED, 7)

    def forward(self, xs: list[Tensor]) -> Tensor:
        first, *rest = xs
        return self.head(self.fc1(first) + sum(self.fc2(x) for x in rest))


@case(block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class ShapeFromValues(TwoLayers):
    """How many of each is a tensor, but a constant one."""

    def between(self, x: Tensor) -> Tensor:
        counts = torch.tensor([4, 5], device=x.device)
        group = torch.arange(2, device=x.device).repeat_interleave(counts)
        return x * (1 + group[:, None])
