"""Top-1 and top-5 accuracy of models on the same labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import DataError
from fxprune.graph.modes import in_eval_mode

__all__ = ["Accuracy", "accuracies", "class_scores"]

TOP = (1, 5)


@dataclass(frozen=True)
class Accuracy:
    """The share of images whose class is the first of a model's answers, or among the first five.

    top5 is None for models of five classes or fewer, of which it would say nothing.
    """

    images: int
    top1: float
    top5: float | None


def accuracies(models: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]) -> list[Accuracy]:
    """Count right answers of each model in eval mode; each batch goes to all models.

    Args:
        models: their output is [batch, classes], or has `.logits` that are.
        batches: images and class numbers [batch], on the models' device.

    Raises:
        DataError: no batches, another output, or a class number that a model has no output for.

    Example:
        >>> dense, half = accuracies([model, pruned], loader)
        >>> print(f"{dense.top1:.1%} -> {half.top1:.1%}")
    """
    right = [[0, 0] for _ in models]
    total, fewest = 0, None
    with in_eval_mode(*models), torch.inference_mode():
        for images, labels in batches:
            total += len(labels)
            for model, counts in zip(models, right, strict=True):
                scores = class_scores(model(images), len(labels))
                fewest = min(scores.shape[1], fewest or scores.shape[1])
                for i, k in enumerate(TOP):
                    counts[i] += _right(scores, labels, k)
    if fewest is None:
        raise DataError("there are no images to judge an accuracy by")
    return [
        Accuracy(total, first / total, five / total if fewest > TOP[1] else None) for first, five in right
    ]


def class_scores(output: Any, batch: int) -> Tensor:
    """Return the scores of classes [batch, classes] in a model's output.

    Raises:
        DataError: it holds none.
    """
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise DataError(
            f"the model's output {shape} are no scores of classes [{batch}, classes]: it has no accuracy"
        )
    return logits


def _right(scores: Tensor, labels: Tensor, k: int) -> int:
    """Count the labels that are among the k highest scores; none where an image has a NaN or +inf.

    A class that a model leaves out has -inf.
    """
    if int(labels.max()) >= scores.shape[1]:
        raise DataError(f"class {int(labels.max())} of the data: the model has {scores.shape[1]} classes")
    first = scores.nan_to_num(nan=-torch.inf).topk(min(k, scores.shape[1])).indices
    hit = (first == labels[:, None]) & ~(scores.isnan() | scores.isposinf()).any(1, keepdim=True)
    return int(hit.any(1).sum())
