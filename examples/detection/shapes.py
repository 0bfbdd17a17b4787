"""Rendered images for detection: shapes of one to five kinds on textured backgrounds, with their boxes.

Every image follows from its number alone, so that a data set is a range of numbers: nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

SIZE = 128
KINDS = ("disc", "square", "triangle", "star", "ring")
Target = dict[str, Tensor]


class Shapes(Dataset[tuple[Tensor, Target]]):
    """Images [3, SIZE, SIZE], normalised, with the boxes of what is on them, from `first` on.

    A target is what torchvision's detectors take: `boxes` [n, 4] in pixels and `labels` [n], of `KINDS`.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        rendered = [render(first + i) for i in range(count)]
        self.pixels = [pixels for pixels, _ in rendered]
        self.targets = [target for _, target in rendered]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        image = torch.from_numpy(self.pixels[i]).permute(2, 0, 1).float()
        return image / 127.5 - 1, self.targets[i]


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def render(number: int) -> tuple[np.ndarray, Target]:
    """Draw the image of a number: pixels [SIZE, SIZE, 3], and its target."""
    random = np.random.default_rng(number)
    image = Image.fromarray(_texture(random))
    boxes: list[list[int]] = []
    labels: list[int] = []
    for _ in range(random.integers(1, 5)):
        side = int(random.integers(20, 57))
        x, y = (int(v) for v in random.integers(0, SIZE - side, 2))
        box = [x, y, x + side, y + side]
        if all(_overlap(box, other) < 0.15 for other in boxes):
            label = int(random.integers(len(KINDS)))
            _draw(ImageDraw.Draw(image), KINDS[label], box, random)
            boxes.append(box)
            labels.append(label)
    noisy = np.asarray(image) + random.normal(0, 12, (SIZE, SIZE, 1))
    target = {"boxes": torch.tensor(boxes, dtype=torch.float), "labels": torch.tensor(labels)}
    return noisy.clip(0, 255).astype(np.uint8), target


def _texture(random: np.random.Generator) -> np.ndarray:
    """Blotches of a random grain and strength between two random colours."""
    grain = float(random.uniform(1, 8))
    field = Image.fromarray(random.integers(0, 256, (SIZE, SIZE), dtype=np.uint8))
    blurred = np.asarray(field.filter(ImageFilter.GaussianBlur(grain)), dtype=float)
    blend = (blurred - blurred.min()) / max(1.0, float(np.ptp(blurred)))
    one, other = random.integers(0, 256, (2, 3))
    return (one + blend[..., None] * (other - one)).astype(np.uint8)


def _draw(draw: ImageDraw.ImageDraw, kind: str, box: list[int], random: np.random.Generator) -> None:
    x, y, right, bottom = box
    colour = tuple(int(v) for v in random.integers(0, 256, 3))
    if kind == "disc":
        draw.ellipse(box, fill=colour)
    elif kind == "ring":
        draw.ellipse(box, outline=colour, width=max(3, (right - x) // 5))
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    elif kind == "triangle":
        draw.polygon([((x + right) / 2, y), (right, bottom), (x, bottom)], fill=colour)
    else:
        draw.polygon(_star(x, y, right - x), fill=colour)


def _star(x: int, y: int, side: int) -> list[tuple[float, float]]:
    """Return the ten corners of a star that fills a box of this side."""
    corners = []
    for i in range(10):
        radius, angle = (1.0 if i % 2 == 0 else 0.42), math.pi * (i / 5 - 0.5)
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    low, high = (tuple(bound(c[d] for c in corners) for d in (0, 1)) for bound in (min, max))
    return [
        (x + side * (cx - low[0]) / (high[0] - low[0]), y + side * (cy - low[1]) / (high[1] - low[1]))
        for cx, cy in corners
    ]


def _overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the share of the smaller box that both cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return max(0, width) * max(0, height) / min(areas)
