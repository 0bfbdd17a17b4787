"""What a model's outputs say: log-probabilities of classes, or features compared by squared error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import DataError
from fxprune.graph.tensors import at_least_float32, floats_of

__all__ = [
    "LogProbabilities",
    "Prediction",
    "draws_for",
    "floats_read",
    "prediction_of",
    "predictions_of",
]

DERIVATIVES = 768  # that are taken of all samples together, at least

# From the model's output to log-probabilities [b, ..., classes].
LogProbabilities = Callable[[Any], Tensor]


class Prediction:
    """A model's answer to a batch: a distribution, from which targets are drawn and told apart.

    classes: log-probabilities [b, n, classes], n independent predictions per sample (pixels); or
    features: [b, n], of which the squared error is taken, relative to their mean square.
    """

    def __init__(self, classes: Tensor | None, features: Tensor | None) -> None:
        self.classes, self.features = classes, features

    def drawn(self, signs: Tensor) -> Tensor:
        """Return a scalar whose gradient, squared and averaged over random signs, is the Fisher information.

        (sum over y of s_y sqrt(p(y)) d log p(y))^2 is sum of p(y) (d log p(y))^2 in the mean: every class
        takes part in every draw, where a drawn target of a confident model is always the same.  Features
        count as the mean of a normal distribution: signs again.  Pixels count as their mean, as in
        `divergence`.
        """
        if self.classes is not None:
            weights = signs * (self.classes.detach() / 2).exp()
            pixels = self.classes.shape[1:-1].numel()
            return (weights * self.classes).sum() / math.sqrt(pixels)
        assert self.features is not None
        return (self.features * signs / _scale(self.features)).sum()

    def signs(self, draws: int, generator: torch.Generator, *, summed: bool = False) -> Iterator[Tensor]:
        """Yield signs of classes, or features, for each draw.

        Those of the likeliest classes follow rows of a Hadamard matrix, so that their products, which no
        Fisher information holds, add up to zero over a power of two of draws and not in the mean alone.

        Args:
            summed: derivatives are of all samples together, whose signs have nothing in common then.
        """
        like = self.classes if self.classes is not None else self.features
        assert like is not None
        block = 1 << (draws.bit_length() - 1)
        rank = like.detach().argsort(-1, descending=True).argsort(-1) % block
        for draw in range(draws):
            if draw % block == 0:
                random = (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)
            signs = random * (1 - 2 * _parity(rank & (draw % block)))
            if summed:
                each = 2 * torch.randint(2, (len(like), *[1] * (like.ndim - 1)), generator=generator) - 1
                signs = signs * each.to(like)
            yield signs

    def slopes(
        self, values: Sequence[Tensor], draws: int, generator: torch.Generator, *, summed: bool = False
    ) -> Iterator[list[Tensor]]:
        """Yield, for each draw, the derivative of what was drawn by every value, 0 where it has none.

        With gradients enabled; each draw costs one backward pass.
        """
        if not all(t is None or t.detach().isfinite().all() for t in (self.classes, self.features)):
            raise DataError(
                "the model's predictions of some samples of data= are NaN or infinite, and nothing can be "
                "judged by them: are inputs normalised as for inference, is the model's precision enough?"
            )
        if not any(t is not None and t.requires_grad for t in (self.classes, self.features)):
            raise DataError(
                "no derivative reaches the model's outputs: importance='kl' and the re-fit need them; "
                "importance='kl-exact' or 'magnitude' with refit=False don't"
            )
        for draw, signs in enumerate(self.signs(draws, generator, summed=summed)):
            found = torch.autograd.grad(
                self.drawn(signs), list(values), retain_graph=draw < draws - 1, allow_unused=True
            )
            yield [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]

    def divergence(self, other: Prediction) -> Tensor:
        """Compute KL(self || other) of each sample, as a mean, or half the squared error: [b]."""
        if self._shape != other._shape:
            raise DataError(f"predictions of {self._shape} can't be compared with those of {other._shape}")
        if self.classes is not None and other.classes is not None:
            terms = self.classes.exp() * (self.classes - other.classes)
            return terms.sum(-1).flatten(1).mean(1)
        assert self.features is not None and other.features is not None
        return ((self.features - other.features) / _scale(self.features)).square().sum(1) / 2

    @property
    def _shape(self) -> tuple[int, ...]:
        said = self.classes if self.classes is not None else self.features
        assert said is not None
        return tuple(said.shape)

    def repeated(self, times: int) -> Prediction:
        def again(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.repeat(times, *[1] * (t.ndim - 1))

        return Prediction(again(self.classes), again(self.features))


def draws_for(samples: int) -> int:
    """Return how many derivatives to take of each sample: the fewer samples there are the more."""
    return math.ceil(DERIVATIVES / samples)


def _parity(numbers: Tensor) -> Tensor:
    """Return whether an odd number of bits is set, 0 or 1."""
    for shift in (32, 16, 8, 4, 2, 1):
        numbers = numbers ^ (numbers >> shift)
    return numbers & 1


def _scale(features: Tensor) -> Tensor:
    """Return the length of each sample's features: [b, 1]."""
    return features.detach().square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)


def predictions_of(output: Any, size: int, log_probabilities: LogProbabilities | None = None) -> Prediction:
    """Return the outputs, which have their samples first, as a prediction.

    By `log_probabilities(output)` if given.  Else one output [b, classes], or one called `logits`, is
    taken for class scores; anything else (feature maps, several outputs) is compared by squared error.

    Raises:
        DataError: an output has no row for each sample.
    """
    if log_probabilities is not None:
        return Prediction(_checked(log_probabilities(output), size), None)
    tensors = floats_read(output)
    if odd := next((t for t in tensors if not t.ndim or t.shape[0] % size), None):
        raise DataError(
            f"an output of shape {tuple(odd.shape)} has no row for each of {size} samples: give "
            f"log_probabilities=, a function from the output to log-probabilities [batch, ..., classes]"
        )
    return prediction_of(tensors, size)


def floats_read(output: Any) -> list[Tensor]:
    """Return the tensors that say what is predicted: the one called `logits`, or all of real numbers."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    return [logits] if isinstance(logits, Tensor) else floats_of(output)


def prediction_of(tensors: Sequence[Tensor], size: int) -> Prediction:
    """Return tensors [size, ...] as a prediction: of one [b, classes] or of features.

    Raises:
        DataError: there is none.
    """
    if not tensors:
        raise DataError("the model's outputs hold no tensor of real numbers to compare")
    if len(tensors) == 1 and tensors[0].ndim == 2 and tensors[0].shape[1] > 1:
        return Prediction(at_least_float32(tensors[0]).log_softmax(-1).unsqueeze(1), None)
    return Prediction(None, torch.cat([at_least_float32(t).reshape(size, -1) for t in tensors], 1))


def _checked(values: Any, size: int) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim < 2 or values.shape[0] != size:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise DataError(f"log_probabilities= must return a tensor [{size}, ..., classes], not {shape}")
    total = values.detach().exp().sum(-1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise DataError("log_probabilities= must return logarithms of probabilities that sum to 1")
    return values.reshape(size, -1, values.shape[-1])
