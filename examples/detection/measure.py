"""What is measured of a detector: mAP, and whether its feature maps still say the same in the same places."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from detector import whole
from shapes import Shapes, collate
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision


def precision(maps: nn.Module, data: Shapes, batch: int = 50) -> dict[str, float]:
    """Return mAP over IoU 0.50 to 0.95, and at 0.50, of torchvision's detector around these maps."""
    found = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    model = whole(maps)
    with torch.no_grad():
        for images, targets in DataLoader(data, batch, collate_fn=collate):
            found.update(model(list(images)), targets)
    values = found.compute()
    return {"map": float(values["map"]), "map50": float(values["map_50"])}


def consistency(dense: nn.Module, other: nn.Module, data: Shapes) -> dict[str, float]:
    """Compare the feature maps of two backbones, in the mean over the levels of the pyramid.

    cosine: of a token and the dense one in the same place, channels centred over the data.
    place: the share of tokens that, of all dense tokens of their image, are most like the one in their place.
    cka: linear centred kernel alignment of the body's tokens, whose widths differ.
    """
    maps = [_maps(model, data) for model in (dense, other)]
    cosines, places = [], []
    for ours, theirs in zip(*[levels for levels, _ in maps], strict=True):
        x, y = (normalize(t - t.mean((0, 1)), dim=-1) for t in (ours, theirs))
        alike = y @ x.transpose(1, 2)  # [image, token of the other, token of the dense one]
        cosines.append(alike.diagonal(dim1=1, dim2=2).mean())
        own = torch.arange(alike.shape[1])
        places.append((alike.argmax(2) == own).double().mean())
    aligned = [_cka(x.flatten(0, 1), y.flatten(0, 1)) for x, y in zip(*[b for _, b in maps], strict=True)]
    means = [float(torch.stack(values).mean()) for values in (cosines, places, aligned)]
    return dict(zip(("cosine", "place", "cka"), means, strict=True))


def _maps(model: nn.Module, data: Shapes) -> tuple[list[Tensor], list[Tensor]]:
    """Return tokens [image, token, channel] of each level, after the FPN and before it."""
    backbone = model.backbone
    with torch.no_grad():
        batches = [backbone.body(images) for images, _ in DataLoader(data, 50, collate_fn=collate)]
        pyramids = [
            list(backbone.fpn({str(i): f for i, f in enumerate(features)}).values()) for features in batches
        ]
    return list(_tokens(pyramids)), list(_tokens(batches))


def _tokens(batches: list[list[Tensor]]) -> Iterator[Tensor]:
    for level in zip(*batches, strict=True):
        yield torch.cat(level).flatten(2).transpose(1, 2).double()


def _cka(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
