"""A run that is killed goes on from its last checkpoint, and ends as if nothing had been."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

import fxprune
from fxprune.errors import OptionError, TrainingError
from fxprune.finetune.checkpoints import Checkpoints, Progress
from fxprune.finetune.distill import _identity
from fxprune.finetune.loader import data_digest
from fxprune.result.forms import with_record

pytest.importorskip("accelerate")
sys.path.insert(0, str(Path(__file__).parent))

import run_for_tests as small

SCRIPT = Path(__file__).parent / "run_for_tests.py"
ROOT = Path(__file__).parents[2]


def program(*arguments: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def run(folder: Path | None, **options: Any) -> Mapping[str, Tensor]:
    """The same run in this process; on one thread, as the program."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        student, teacher = small.models()
        given = {"every": 2 if folder else 0, "progress": False, **options}
        fxprune.distill(student, teacher, small.loader(), small.TRAINING, folder=folder, **given)
        return small.weights(student)
    finally:
        torch.set_num_threads(threads)


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted() -> Mapping[str, Tensor]:
    return run(None)


@pytest.mark.parametrize("moment", [("--die-at", 60), ("--die-in-write", 3)])
def test_a_killed_run_ends_with_the_same_bits(
    moment: tuple[str, int], uninterrupted: Mapping[str, Tensor], tmp_path: Path
) -> None:
    """While it reads an image of the second epoch; and just before a checkpoint takes its place."""
    killed = program(tmp_path / "run", tmp_path / "result.pt", *moment)
    _, said = killed.communicate()
    assert killed.returncode == -9, said
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "result.pt").exists()
    assert same_bits(run(tmp_path / "run", resume=True), uninterrupted)


@pytest.mark.slow
def test_the_log_has_a_line_an_epoch_wherever_it_went_on(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_after_two(model: Any) -> dict[str, float]:
        calls.append(model)
        if len(calls) == 2:
            raise Stop
        return {"number": float(len(calls))}

    calls: list[Any] = []
    with pytest.raises(Stop):
        run(tmp_path, evaluate=stop_after_two)
    run(tmp_path, resume=True, evaluate=stop_after_two)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["number"] for line in lines] == [1, 3, 4]
    assert [line["updates"] for line in lines] == [4, 8, 12]
    assert all(line[name] > 0 for line in lines for name in ("loss", "task", "kl", "hidden", "seconds"))


def test_a_finished_run_is_not_run_again(uninterrupted: Mapping[str, Tensor], tmp_path: Path) -> None:
    run(tmp_path)
    seen: list[Any] = []
    assert same_bits(run(tmp_path, resume=True, evaluate=lambda m: seen.append(m) or {}), uninterrupted)
    assert not seen


# ---------------------------------------------------------------- what is refused, and loses nothing


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_another_run_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    student, teacher = small.models()
    short = fxprune.Training(epochs=1)
    options: dict[str, Any] = {"folder": tmp_path, "progress": False}
    fxprune.distill(student, teacher, small.loader(), short, **options)
    kept = contents(tmp_path)
    with pytest.raises(TrainingError, match=r"holds this run already: go on with resume"):
        fxprune.distill(student, teacher, small.loader(), short, **options)
    with pytest.raises(TrainingError, match=r"lr was 0\.0005 and is 0\.1"):
        fxprune.distill(student, teacher, small.loader(), replace(short, lr=0.1), resume=True, **options)
    smaller = fxprune.prune(teacher, 0.25, example_inputs=torch.zeros(2, 3, 16, 16))
    with pytest.raises(TrainingError, match="the student is another; the plan is another"):
        fxprune.distill(smaller, teacher, small.loader(), short, resume=True, **options)
    assert contents(tmp_path) == kept


def test_a_run_with_another_loss_is_another(tmp_path: Path) -> None:
    student, teacher = small.models()
    batches = [(torch.randn(4, 3, 16, 16), torch.arange(4))]
    options = {"folder": tmp_path, "progress": False, "resume": True}
    for shift in (1, 1, 2):
        loss = functools.partial(_shifted, by=shift)
        with pytest.raises(TrainingError, match="the loss is another") if shift == 2 else nullcontext():
            fxprune.distill(student, teacher, batches, fxprune.Training(epochs=1), loss=loss, **options)


def test_another_teacher_or_other_data_is_another_run(tmp_path: Path) -> None:
    """As many batches, and weights of the same shapes."""
    student, teacher = small.models()
    short, options = fxprune.Training(epochs=1), {"folder": tmp_path, "progress": False, "resume": True}
    fxprune.distill(student, teacher, small.loader(), short, **options)
    fxprune.distill(student, teacher, small.loader(), short, **options)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    with pytest.raises(TrainingError, match="the teacher is another"):
        fxprune.distill(student, other, small.loader(), short, **options)
    data = small.samples()
    images = TensorDataset(data.tensors[0].flip(0), data.tensors[1])
    data.transform = nn.Identity()  # type: ignore[attr-defined]
    for others in (data, images):
        with pytest.raises(TrainingError, match="the data is another"):
            fxprune.distill(student, teacher, DataLoader(others, 4, shuffle=True), short, **options)


def test_data_sets_say_what_they_are_made_of() -> None:
    images = torch.randn(300, 3, 4, 4)
    other = images.clone()
    other[299] += 1
    made: list[Any] = [[images[:4]], [other[296:]], [images[296:]]]
    made += [DataLoader(TensorDataset(x), 4) for x in (images, other)]
    made += [
        DataLoader(Subset(TensorDataset(x), some), 4) for x in (images, other) for some in ([0, 1], [0, 2])
    ]
    made += [DataLoader(ConcatDataset([TensorDataset(images), TensorDataset(x)]), 4) for x in (images, other)]
    digests = [data_digest(batches) for batches in made]
    assert len({*digests}) == len(made) and digests == [data_digest(batches) for batches in made]


@pytest.mark.parametrize("wrong", [{"opt": "sdg"}, {"lr": 1e30}])
def test_a_run_without_a_checkpoint_may_begin_as_another(wrong: dict[str, Any], tmp_path: Path) -> None:
    """A mistyped name, or a loss that is not finite in the first epoch: there is nothing to lose."""
    training = fxprune.Training(epochs=1, warmup=0.0)
    student, teacher = small.models()
    with pytest.raises((TrainingError, OptionError)):
        fxprune.distill(
            student, teacher, small.loader(), replace(training, **wrong), folder=tmp_path, progress=False
        )
    student, teacher = small.models()
    fxprune.distill(student, teacher, small.loader(), training, folder=tmp_path, progress=False)
    assert json.loads((tmp_path / "run.json").read_text())["training"] == asdict(training)


def test_a_checkpoint_says_which_run_it_is_of(tmp_path: Path) -> None:
    """Whatever another run, begun beside it, wrote in the folder."""
    student, teacher = small.models()
    short, options = fxprune.Training(epochs=1), {"folder": tmp_path, "progress": False, "resume": True}
    fxprune.distill(student, teacher, small.loader(), short, **options)
    known = json.loads((tmp_path / "run.json").read_text())
    known["training"]["lr"] = 0.1
    (tmp_path / "run.json").write_text(json.dumps(known))
    with pytest.raises(TrainingError, match=r"lr was 0\.0005 and is 0\.1"):
        fxprune.distill(student, teacher, small.loader(), replace(short, lr=0.1), **options)


def _shifted(output: Tensor, labels: Tensor, by: int) -> Tensor:
    return nn.functional.cross_entropy(output, labels) + by


def test_what_was_measured_is_no_part_of_a_run() -> None:
    student, teacher = small.models()
    before = _identity(student, teacher, small.TRAINING, 3, {})
    with_record(student, lambda record: replace(record, plan=replace(record.plan, divergence=(0.1, 0.2))))
    assert _identity(student, teacher, small.TRAINING, 3, {}) == before


def test_a_nan_loss_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    batches = [torch.randn(4, 3, 16, 16) for _ in range(4)]
    student, teacher = small.models()
    training = fxprune.Training(epochs=2)

    def spoil(model: Any) -> dict[str, float]:
        batches[2] *= torch.nan
        return {}

    said = r"in epoch 2, batch 3, a loss is not finite: loss nan, kl nan; the checkpoint .* is untouched"
    with pytest.raises(TrainingError, match=said):
        fxprune.distill(student, teacher, batches, training, folder=tmp_path, evaluate=spoil, progress=False)
    (last,) = tmp_path.glob("checkpoint-*")
    assert json.loads((last / "progress.json").read_text())["epoch"] == 1
    batches[2] = torch.randn(4, 3, 16, 16)
    fxprune.distill(student, teacher, batches, training, folder=tmp_path, resume=True, progress=False)
    assert all(t.isfinite().all() for t in student.state_dict().values())


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    """Of a loss that is: on the last batch, after which weights are returned and kept."""
    seen: list[int] = []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(labels))
        spoilt = (output * 0).abs().sqrt().sum() if len(seen) == 2 else 0.0  # 0, and 0 times infinity
        return nn.functional.cross_entropy(output, labels) + spoilt

    student, _ = small.models()
    batches = [(torch.randn(4, 3, 16, 16), torch.arange(4)) for _ in range(2)]
    training = fxprune.Training(epochs=1, kl=0.0, clip=0.0)
    with pytest.raises(TrainingError, match="in epoch 1, batch 2, a gradient is not finite: norm nan"):
        fxprune.distill(student, None, batches, training, loss=loss, folder=tmp_path, progress=False)
    assert all(t.isfinite().all() for t in student.state_dict().values())
    assert not [*tmp_path.glob("checkpoint-*")]


def test_an_update_of_fewer_batches_is_their_mean() -> None:
    """The last one of an epoch; beside one that says how many there are."""
    batches = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = []
    for accumulation in (2, 8):
        student, teacher = small.models(dropout=0.0)
        training = fxprune.Training(
            epochs=2, lr=0.1, opt="sgd", clip=0.0, kl=1.0, warmup=0.0, accumulation=accumulation
        )
        fxprune.distill(student, teacher, batches, training, progress=False)
        found.append(small.weights(student))
    assert same_bits(*found)


def test_a_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    run(tmp_path)
    (last,) = tmp_path.glob("checkpoint-*")
    (last / "model.safetensors").write_bytes(b"x")
    with pytest.raises(TrainingError, match="can't be loaded"):
        run(tmp_path, resume=True)


def test_resume_without_a_folder() -> None:
    with pytest.raises(TrainingError, match="needs folder="):
        run(None, resume=True)


def test_an_evaluation_that_fails_loses_no_epoch(uninterrupted: Mapping[str, Tensor], tmp_path: Path) -> None:
    judged: list[int] = []

    def judge(model: nn.Module) -> dict[str, float]:
        judged.append(1)
        if len(judged) == 2:
            raise KeyError("of the user's")
        return {"size": 1.0}

    with pytest.raises(KeyError):
        run(tmp_path, evaluate=judge)
    (kept,) = tmp_path.glob("checkpoint-*")
    assert kept.name == f"checkpoint-000001-{len(small.loader()):08d}"
    assert same_bits(run(tmp_path, evaluate=judge, resume=True), uninterrupted)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["size"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 1.0)]


@pytest.mark.parametrize(("every", "accumulation"), [(3, 2), (1, 2), (2, 3)])
def test_a_checkpoint_that_is_due_is_written_at_the_next_update(
    every: int, accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Checkpoints.write

    def noted(self: Checkpoints, progress: Progress) -> None:
        written.append(progress.batch)
        write(self, progress)

    monkeypatch.setattr(Checkpoints, "write", noted)
    student, teacher = small.models()
    training = replace(small.TRAINING, epochs=1, accumulation=accumulation)
    fxprune.distill(student, teacher, small.loader(), training, every=every, folder=tmp_path, progress=False)
    updates = range(accumulation, len(small.loader()), accumulation)
    due = [at for at in updates if any(n % every == 0 for n in range(at - accumulation + 1, at + 1))]
    assert written == [*due, 0] and due
