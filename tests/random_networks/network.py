"""A whole network: a stem, one or two stages of blocks, a classifier, and outputs of several kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from helpers import randomise
from torch import Tensor, nn

from random_networks.blocks import Block
from random_networks.maps import JOINING, SHUFFLES
from random_networks.norms import token_norm
from random_networks.spec import Brief
from random_networks.stages import IMAGE, SIDE, Stem, Transition

CLASSES = 2
HEADS = ("mean", "flat", "first", "distilled", "query", "max", "tied")
OUTPUTS = ("logits", "tuple", "list", "dict", "fused", "features")


@dataclass(frozen=True, repr=False)
class Network(Brief):
    """What a failing example prints; `Network(...).build()` is the module."""

    embed: int = 4
    stem: str = "patches"
    first: int = 0  # class tokens and the like
    position: str = "all"
    blocks: tuple[Block, ...] = (Block(),)
    transition: str = "none"
    wider: int = 6
    later: tuple[Block, ...] = ()  # after the transition, if there is one
    norm: str = "layer"
    head: str = "mean"
    output: str = "logits"

    def build(self) -> nn.Module:
        return randomise(Vit(self).eval())

    def images(self, batch: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)

    @property
    def embedding_shrinks(self) -> bool:
        """Not where it is returned, or where groups of a norm straddle its concatenation with others.

        Nor where a shuffle has one channel to a group, or where it is the outer factor of a wider map: of
        3 x 2 channels the 2 are halved.
        """
        single = self.embed == 2 and any(b.kind == "map" and b.map in SHUFFLES for b in self.blocks)
        outer = self.transition == "depthwise" and self.embed % 2 == 1
        straddled = any(b.kind == "map" and b.map in JOINING and b.map_norm == "group" for b in self.blocks)
        return self.output != "features" and not (straddled or single or outer)


class Vit(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.first, self.output, self.head_kind = network.first, network.output, network.head
        width, side = network.embed, SIDE
        self.stem = Stem(network.stem, width, self.first, network.position)
        self.blocks = nn.ModuleList(m for b in network.blocks for m in b.build(width, self.first, side))
        widths = [width]
        self.transition = None
        if network.transition != "none":
            self.transition = Transition(network.transition, width, network.wider, self.first)
            width, side = network.wider, SIDE // 2
            self.later = nn.ModuleList(m for b in network.later for m in b.build(width, self.first, side))
            widths.append(width)
        self.norm = token_norm(network.norm, width)
        tokens = self.first + side * side
        if self.head_kind == "query":
            self.query, self.key = nn.Parameter(torch.empty(3)), nn.Linear(width, 3)
        if self.head_kind == "tied":
            self.encode, self.decode = nn.Linear(width, 5), nn.Linear(width, 5, bias=False)
            self.decode.weight = self.encode.weight
        self.head = nn.Linear(tokens * width if self.head_kind == "flat" else width, CLASSES)
        if self.head_kind == "distilled":
            self.head_dist = nn.Linear(width, CLASSES)
        if self.output == "fused":
            self.lateral = nn.ModuleList(nn.Conv2d(w, 3, 1) for w in widths)
            self.fuse = nn.Conv2d(3 * len(widths), CLASSES, 1)
        elif self.output in ("tuple", "list", "dict"):
            self.side_heads = nn.ModuleList(nn.Linear(w, CLASSES) for w in widths)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        features = [x]
        if self.transition is not None:
            x = self.transition(x)
            for block in self.later:
                x = block(x)
            features.append(x)
        logits = self.classify(self.norm(x))
        if self.output == "logits":
            return logits
        if self.output == "features":
            return {"logits": logits, "features": features}
        if self.output == "fused":
            return logits, self.fused(features)
        sides = [head(f) for head, f in zip(self.side_heads, features, strict=True)]
        if self.output == "tuple":
            return (logits, *sides)
        return {"logits": logits, "sides": tuple(sides)} if self.output == "dict" else [*sides, logits]

    def classify(self, x: Tensor) -> Tensor:
        if self.head_kind == "flat":
            return self.head(x.flatten(1))
        if self.head_kind == "first":
            return self.head(x[:, 0])
        if self.head_kind == "distilled":
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        if self.head_kind == "query":
            weights = (self.key(x) @ self.query).softmax(dim=1)
            return self.head((weights.unsqueeze(1) @ x).squeeze(1))
        if self.head_kind == "max":
            return self.head(x.max(dim=1).values)
        if self.head_kind == "tied":
            return self.head((self.encode(x).tanh() @ self.decode.weight).mean(1))
        return self.head(x[:, self.first :].mean(dim=1))

    def fused(self, features: list[Tensor]) -> Tensor:
        """SegFormer: each stage's map, projected, enlarged, concatenated."""
        maps = []
        for x, lateral in zip(features, self.lateral, strict=True):
            b, _, c = x.shape
            side = SIDE if not maps else SIDE // 2
            y = lateral(x[:, self.first :].permute(0, 2, 1).reshape(b, c, side, side))
            maps.append(F.interpolate(y, size=(SIDE, SIDE), mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(maps, dim=1))
