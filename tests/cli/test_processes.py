"""`fxprune finetune` in two processes: they share the batches, and one of them writes and speaks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers import draw_classes, randomise
from safetensors.torch import save_file

import fxprune

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow  # tests/finetune/test_processes.py runs in two what the command runs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_processes(precision: str, tmp_path: Path) -> None:
    draw_classes(tmp_path / "train", 8)
    save_file(randomise(timm.create_model("test_vit")).state_dict(), tmp_path / "dense.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1"}
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = "finetune timm:test_vit --checkpoint dense.safetensors --data train --out out --new-head --steps 2"
    line += f" --batch 4 --epochs 1 --precision {precision}"
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "fxprune", *line.split()],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert ended[0][0].endswith("saved to out\n")
    assert ended[1][0] == ""
    assert fxprune.load(tmp_path / "out")(torch.zeros(1, 3, 160, 160)).shape == (1, 2)
    for part in ("dense", "step-1", "step-2"):
        (epoch,) = (tmp_path / "out" / "run" / part / "log.jsonl").read_text().splitlines()
        assert json.loads(epoch)["updates"] == 2  # 16 images in batches of 4, twice at a time
