"""One command that prunes and trains in steps is killed (kill -9), and ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from helpers import draw_classes, randomise
from safetensors.torch import save_file
from torch import Tensor

import fxprune
from fxprune.cli.app import run

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow  # tests/finetune/test_resume.py kills what the command runs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    draw_classes(folder / "train")
    dense = randomise(timm.create_model("test_vit").eval())
    save_file(dense.state_dict(), folder / "dense.safetensors")
    return folder


def line(place: Path, out: Path) -> list[str]:
    sizes = [
        "--batch",
        "4",
        "--epochs",
        "2",
        "--every",
        "1",
        "--steps",
        "2",
        "--ratio",
        "0.4",
        "--ema",
        "0.9",
    ]
    weights = ["--checkpoint", str(place / "dense.safetensors"), "--new-head", "-q"]
    return ["finetune", "timm:test_vit", "--data", str(place / "train"), "--out", str(out), *weights, *sizes]


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(fxprune.load(folder).state_dict())


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(line(place, place / "whole")) == 0
    finally:
        torch.set_num_threads(threads)
    return weights(place / "whole")


def killed_when(place: Path, out: Path, there: str) -> None:
    """Start the command, and kill it as soon as a file of this pattern is there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fxprune", *line(place, out)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob(there)):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -9, said
    assert not (out / "model.safetensors").exists()


MOMENTS = (
    "run/dense/run.json",  # before the dense model's first checkpoint
    "run/step-1/checkpoint-000000-*",
    "run/step-1/log.jsonl",
    "run/step-2/checkpoint-000001-*",
)


@pytest.mark.parametrize("there", MOMENTS)
def test_it_ends_with_the_same_bits(
    there: str, place: Path, tmp_path: Path, whole: dict[str, Tensor]
) -> None:
    killed_when(place, tmp_path, there)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run([*line(place, tmp_path), "--resume"]) == 0
    finally:
        torch.set_num_threads(threads)
    found = weights(tmp_path)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
