"""Small training runs for one process or several: `two_for_tests.py FOLDER RESULT`; the first writes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import run_for_tests as small
import torch
from torch import Tensor, nn

import fxprune

# Adam makes steps of full size of gradients that are nothing but rounding (those of keys' biases).
TRAINING = fxprune.Training(epochs=2, lr=0.05, opt="sgd", hidden=0.1, ema=0.5, accumulation=2)


class Stop(Exception):
    pass


def stop(model: nn.Module) -> dict[str, float]:
    raise Stop


def runs(folder: Path, batch: int) -> dict[str, Mapping[str, Tensor]]:
    """Train in each form; once more with an end after the first epoch, and on from its checkpoint."""
    results: dict[str, Mapping[str, Tensor]] = {}
    for name, form in (("graph", "graph"), ("module", "module"), ("resumed", "graph")):
        student, teacher = small.models(0.0, form)
        options: dict[str, Any] = {"folder": folder / name, "progress": False, "every": 2, "resume": True}
        if name == "resumed":
            try:
                fxprune.distill(
                    student, teacher, small.loader(batch, False), TRAINING, evaluate=stop, **options
                )
            except Stop:
                student, teacher = small.models(0.0, form)
        fxprune.distill(student, teacher, small.loader(batch, False), TRAINING, evaluate=judged, **options)
        results[name] = small.weights(student)
    return results


def judged(model: nn.Module) -> dict[str, float]:
    """A number that depends on every weight of the model that is judged."""
    generator = torch.Generator().manual_seed(2)
    return {"judged": float(model(torch.randn(3, 3, 16, 16, generator=generator)).square().mean())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = runs(Path(sys.argv[1]), 4)
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(found, sys.argv[2])
