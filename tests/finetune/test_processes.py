"""Two processes equal one with twice the batch: each with a whole student (DDP), or a part of it (FSDP2)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("accelerate")
sys.path.insert(0, str(Path(__file__).parent))

import run_for_tests as small
import two_for_tests as two

ROOT = Path(__file__).parents[2]
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
needs_cuda = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def in_two(script: Path, *arguments: Path, **variables: str) -> list[tuple[int, str]]:
    """Run a program in two processes that know of each other, and return how each ended and what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    both = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate()[1] for process in both]
    return [(process.returncode, text) for process, text in zip(both, said, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Mapping[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, two.runs(folder, 8)


def compared(alone: tuple[Path, dict[str, Mapping[str, Tensor]]], folder: Path) -> None:
    """Hold what two processes came to against one; and what was gone on with against what was not."""
    found = torch.load(folder / "result.pt")
    before = small.weights(small.models(0.0)[0])
    for name, wanted in alone[1].items():
        moved = max(float((t - before[key]).abs().max()) for key, t in wanted.items())
        apart = max(float((t - found[name][key]).abs().max()) for key, t in wanted.items())
        assert apart < 1e-3 * moved, name
        logs = [
            [json.loads(line) for line in (place / name / "log.jsonl").read_text().splitlines()]
            for place in (alone[0], folder)
        ]
        for one, other in zip(*logs, strict=True):
            for key in ("updates", "loss", "task", "kl", "hidden", "judged"):
                assert other[key] == pytest.approx(one[key], rel=1e-4), (name, key)
    assert all(torch.equal(t, found["resumed"][key]) for key, t in found["graph"].items())


@pytest.mark.parametrize("variables", [{}, SHARDED], ids=["whole", "sharded"])
def test_two_processes_equal_one_with_twice_the_batch(
    variables: dict[str, str], alone: tuple[Path, dict[str, Mapping[str, Tensor]]], tmp_path: Path
) -> None:
    script, arguments = ROOT / "tests/finetune/two_for_tests.py", (tmp_path, tmp_path / "result.pt")
    ended = in_two(script, *arguments, ACCELERATE_USE_CPU="1", **variables)
    assert [code for code, _ in ended] == [0, 0], ended
    compared(alone, tmp_path)
    kept = {path.name for path in (tmp_path / "graph").glob("checkpoint-*/*")}
    assert ("pytorch_model_fsdp_0" in kept) == bool(variables)


@pytest.mark.cuda
@needs_cuda
def test_two_gpus_with_parts_of_the_weights(
    alone: tuple[Path, dict[str, Mapping[str, Tensor]]], tmp_path: Path
) -> None:
    script, arguments = ROOT / "tests/finetune/two_for_tests.py", (tmp_path, tmp_path / "result.pt")
    ended = in_two(script, *arguments, **SHARDED)
    assert [code for code, _ in ended] == [0, 0], ended
    compared(alone, tmp_path)
