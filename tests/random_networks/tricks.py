"""Token blocks that real networks rarely have, each with a coupling of its own (b n c -> b n c)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_networks.projections import heads_first


class MemoryTokens(nn.Module):
    """Learned keys and values beside those of the tokens."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 6 * hidden), nn.Linear(2 * hidden, width)
        self.memory = nn.Parameter(torch.empty(2, 2, 3, hidden))  # keys and values, heads, tokens

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = heads_first(q, 2), heads_first(k, 2), heads_first(v, 2)
        mk, mv = (self.memory[i].unsqueeze(0).expand(x.shape[0], -1, -1, -1) for i in range(2))
        k, v = torch.cat((mk, k), dim=-2), torch.cat((mv, v), dim=-2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ExternalAttention(nn.Module):
    """Two linear memories, normalised over tokens, then over the memory's slots, which stay whole."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.enter, self.keys = nn.Linear(width, hidden), nn.Linear(hidden, 4, bias=False)
        self.values = nn.Linear(4, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.keys(self.enter(x)).softmax(dim=1)
        return self.values(weights / (1e-6 + weights.sum(dim=2, keepdim=True)))


class SoftExperts(nn.Module):
    """Every expert's MLP at once, weighed by a softmax over experts."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 3)
        self.first = nn.Parameter(torch.empty(3, width, hidden))
        self.bias = nn.Parameter(torch.empty(3, hidden))
        self.second = nn.Parameter(torch.empty(3, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bnc,ech->benh", x, self.first) + self.bias[:, None, :]
        y = F.gelu(y) @ self.second
        return (y * self.gate(x).softmax(-1).permute(0, 2, 1)[..., None]).sum(dim=1)


class Experts(nn.Module):
    """The experts' hidden layer seen as one: b n (e h)."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.hidden, self.gate = hidden, nn.Linear(width, 3)
        self.first, self.second = nn.Linear(width, 3 * hidden), nn.Linear(3 * hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu().unflatten(-1, (3, self.hidden)) * self.gate(x).sigmoid().unsqueeze(-1)
        return self.second(y.flatten(-2))


class PaddedShortcut(nn.Module):
    """ResNet's parameter-free widening: zeros beside the channels."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.wide, self.narrow = nn.Linear(width, width + hidden), nn.Linear(width + hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.pad(x, (0, self.hidden)) + self.wide(x).relu())


class ZerosBeside(PaddedShortcut):
    """The same by a concatenation."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        zeros = x.new_zeros(b, n, self.hidden)
        return self.narrow(torch.cat((zeros, x), dim=2) + self.wide(x).relu())


class Doubled(nn.Module):
    """Channels repeated, in two orders."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.scale, self.leave = nn.Parameter(torch.empty(2 * hidden)), nn.Linear(2 * hidden, width)
        self.other = nn.Linear(2 * hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).tanh()
        first = self.leave(y.repeat(1, 1, 2) * self.scale)
        return first + self.other(y.repeat_interleave(2, dim=-1))


class HeadStatistics(nn.Module):
    """A group norm by hand over each head's channels, and a gate from the mean of each head."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, 2 * hidden), nn.Linear(2 * hidden, width)
        self.weight = nn.Parameter(torch.empty(2, hidden))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.enter(x).view(b, n, 2, -1)
        mean = y.mean(dim=-1, keepdim=True)
        square = (y * y).sum(dim=-1, keepdim=True) / y.shape[-1]
        y = (y - mean) / torch.sqrt(square + 1e-2) * self.weight * mean.sigmoid()
        return self.leave(y.reshape(b, n, -1))


class Decomposed(nn.Module):
    """SAM, MViT: positions along height and width, each a product of queries and a table."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.side, self.hidden = side, hidden
        self.qkv, self.proj = nn.Linear(width, 6 * hidden), nn.Linear(2 * hidden, width)
        self.rows, self.columns = (nn.Parameter(torch.empty(2 * side - 1, hidden)) for _ in range(2))
        offsets = torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        s, n = self.side, self.side * self.side
        patches = x[:, x.shape[1] - n :]
        b = x.shape[0]
        qkv = self.qkv(patches).reshape(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * 2, n, self.hidden).unbind(0)
        grid = q.reshape(b * 2, s, s, self.hidden)
        high = torch.einsum("bhwc,hkc->bhwk", grid, self.rows[self.offsets])
        wide = torch.einsum("bhwc,wkc->bhwk", grid, self.columns[self.offsets])
        scores = (q * self.hidden**-0.5) @ k.transpose(-2, -1)
        scores = scores.view(b * 2, s, s, s, s) + high[:, :, :, :, None] + wide[:, :, :, None, :]
        out = scores.view(b * 2, n, n).softmax(dim=-1) @ v
        out = self.proj(out.view(b, 2, n, -1).permute(0, 2, 1, 3).reshape(b, n, -1))
        return F.pad(out, (0, 0, x.shape[1] - n, 0))


class Involution(nn.Module):
    """A kernel per pixel and group of channels, made from the pixel."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.side, self.hidden = side, hidden
        self.enter, self.leave = nn.Conv2d(width, 2 * hidden, 1), nn.Conv2d(2 * hidden, width, 1)
        self.reduce, self.span = nn.Conv2d(2 * hidden, 3, 1), nn.Conv2d(3, 9 * 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, m, c = x.shape
        s = self.side
        y = self.enter(x[:, m - s * s :].transpose(1, 2).reshape(b, c, s, s))
        kernel = self.span(self.reduce(y).relu()).view(b, 2, 9, s, s).unsqueeze(2)
        y = F.unfold(y, 3, padding=1).view(b, 2, self.hidden, 9, s, s)
        y = (kernel * y).sum(dim=3).view(b, 2 * self.hidden, s, s)
        return F.pad(self.leave(y).flatten(2).transpose(1, 2), (0, 0, m - s * s, 0))


class CoordinateGate(nn.Module):
    """Means along rows and along columns, squeezed together, taken apart again."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.squeeze, self.bn = nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden, eps=0.1)
        self.high, self.wide = nn.Conv2d(hidden, width, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, m, c = x.shape
        s = self.side
        first, patches = x[:, : m - s * s], x[:, m - s * s :]
        grid = patches.transpose(1, 2).reshape(b, c, s, s)
        rows, columns = grid.mean(3, keepdim=True), grid.mean(2, keepdim=True).permute(0, 1, 3, 2)
        y = F.hardswish(self.bn(self.squeeze(torch.cat([rows, columns], dim=2))))
        rows, columns = torch.split(y, [s, s], dim=2)
        grid = grid * self.high(rows).sigmoid() * self.wide(columns.permute(0, 1, 3, 2)).sigmoid()
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)


TRICKS: dict[str, type[nn.Module]] = {
    "memory tokens": MemoryTokens,
    "external attention": ExternalAttention,
    "soft experts": SoftExperts,
    "experts": Experts,
    "padded shortcut": PaddedShortcut,
    "zeros beside": ZerosBeside,
    "doubled": Doubled,
    "head statistics": HeadStatistics,
    "decomposed positions": Decomposed,
    "involution": Involution,
    "coordinate gate": CoordinateGate,
}
