"""What a plan says of tensors that were solved again after selection."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.result.json_types import json_number, json_object

__all__ = ["FEW", "Refit"]

FEW = 32  # calibration samples; with fewer the report says so


@dataclass(frozen=True)
class Refit:
    """A tensor that was solved again.

    digest: SHA-256 of its numbers as they were stored: a tensor with another one was changed since.
    ridge: lambda, relative to the mean variance of what the layer reads; inf where only the bias changed.
    before, after: the layer's mean squared error on held-out samples.
    """

    digest: str
    ridge: float
    before: float
    after: float

    @staticmethod
    def of(tensor: Tensor, ridge: float, before: float, after: float) -> Refit:
        return Refit(_digest(tensor), ridge, before, after)

    def is_of(self, tensor: Tensor) -> bool:
        """Does the tensor hold what was solved for?"""
        return self.digest == _digest(tensor)

    def as_data(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_data(name: str, data: object) -> Refit:
        """Read it from JSON data.  Raises PlanError for anything else."""
        try:
            given = json_object(data)
            numbers = (json_number(given[field]) for field in ("ridge", "before", "after"))
            found = Refit(str(given["digest"]), *numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{name}: no record of a re-fit: {type(error).__name__}: {error}") from error
        return found


def _digest(tensor: Tensor) -> str:
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()
