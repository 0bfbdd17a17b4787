"""A small training run as a program: `run_for_tests.py FOLDER RESULT [--die-at N | --die-in-write N]`.

The result's weights are saved.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune.certify.randomise import randomise

TRAINING = fxprune.Training(epochs=3, lr=1e-3, hidden=0.1, ema=0.9, accumulation=2, mixup=0.2, warmup=0.5)


def models(dropout: float = 0.1, form: str = "graph") -> tuple[nn.Module, nn.Module]:
    """A student, and its teacher; the same ones in every process."""
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    teacher = timm.models.VisionTransformer(**options, proj_drop_rate=dropout).eval()
    randomise(teacher)
    return fxprune.prune(teacher, 0.5, example_inputs=torch.zeros(2, 3, 16, 16), form=form), teacher


class Noisy(TensorDataset):
    """Images, each with noise drawn when it is read; reading the `die_at`-th kills the process."""

    die_at, read = 0, 0

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        Noisy.read += 1
        if Noisy.read == Noisy.die_at:
            die()
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image), label


def samples(noisy: bool = True) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 3, 16, 16, generator=generator)
    return (Noisy if noisy else TensorDataset)(images, torch.arange(32) % 5)


def loader(batch: int = 4, noisy: bool = True) -> DataLoader[Any]:
    return DataLoader(samples(noisy), batch_size=batch, shuffle=True)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_write(number: int) -> None:
    """Kill the process before the checkpoint of this number takes its place."""
    from fxprune.finetune.checkpoints import Checkpoints

    replace, places = os.replace, []

    def dying(source: Any, target: Any) -> None:
        if Path(target).name.startswith("checkpoint-"):
            places.append(target)
            if len(places) == number:
                die()
        replace(source, target)

    vars(sys.modules[Checkpoints.__module__])["os"].replace = dying


def weights(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("result")
    parser.add_argument("--die-at", type=int, default=0)
    parser.add_argument("--die-in-write", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    Noisy.die_at = options.die_at
    if options.die_in_write:
        die_in_write(options.die_in_write)
    student, teacher = models()
    fxprune.distill(student, teacher, loader(), TRAINING, folder=options.folder, every=2, resume=True)
    torch.save(weights(student), options.result)
