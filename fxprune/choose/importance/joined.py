"""Join halves of calibration images to more images, where there are few.

Second moments want many images that differ: a few hundred show what is theirs alone.  The left half of one
beside the right half of another is no photo, and layers read from it what they read from photos, in other
company (CutMix, https://arxiv.org/abs/1905.04899).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.choose.importance.data import Batch

__all__ = ["joined"]

ENOUGH = 256  # images, about, beyond which no others are made
MOST = 3  # joined images made of each, at most


def joined(batches: Sequence[Batch], samples: int) -> list[Batch]:
    """Return batches of joined images, numbered on; none of inputs that are not images of one size.

    Args:
        batches: whose images are joined, the first to the next in its batch, or of the next batch.
        samples: how many there are in all.
    """
    images = [_images(batch) for batch in batches]
    shapes = {image.shape[1:] if image is not None else None for image in images}
    if len(shapes) != 1 or None in shapes:
        return []
    times = min(MOST, round((ENOUGH - samples) / sum(batch.size for batch in batches)))
    found: list[Batch] = []
    for k in range(1, 1 + times):
        for i, batch in enumerate(batches):
            others = [(row + k) % batch.size for row in range(batch.size)]
            other = batch.taken(others) if batch.size > k else batches[(i + k) % len(batches)]
            if other is not batch and other.size == batch.size:
                numbers = tuple(range(samples, samples + batch.size))
                found.append(replace(_beside(batch, other), labels=None, numbers=numbers))
                samples += batch.size
    return found


def _images(batch: Batch) -> Tensor | None:
    """Return a batch's images [b, ..], where it holds nothing else."""
    tensors = [leaf for leaf in pytree.tree_leaves(batch.args) if isinstance(leaf, Tensor)]
    alone = len(tensors) == 1 and tensors[0].ndim >= 4 and len(tensors[0]) == batch.size
    return tensors[0] if alone and tensors[0].is_floating_point() else None


def _beside(left: Batch, right: Batch) -> Batch:
    """Put halves of images side by side, along what is longest of them."""
    images, others = _images(left), _images(right)
    assert images is not None and others is not None
    dim = max(range(1, images.ndim), key=lambda d: (images.shape[d], d))
    half = images.shape[dim] // 2
    both = torch.cat([images.narrow(dim, 0, half), others.narrow(dim, half, images.shape[dim] - half)], dim)
    args = pytree.tree_map(lambda v: both if v is images else v, left.args)
    return replace(left, args=args)
