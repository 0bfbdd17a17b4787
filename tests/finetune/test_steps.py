"""Pruning in steps with distillation between: one call, gone on with as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import images, small_vit
from torch import Tensor

import fxprune
from fxprune.errors import DataError, TrainingError
from fxprune.finetune.estimate import estimate
from fxprune.finetune.loop import Loop

pytest.importorskip("accelerate")

TRAINING = fxprune.Training(epochs=2, lr=1e-3)
BATCHES = [images(4, 32) for _ in range(3)]
PROXY = [images(8, 32)]


def pruned(folder: Path | None = None, ratio: float = 0.5, **options: Any) -> Any:
    options |= {"folder": folder, "example_inputs": images(2, 32), "progress": False, "data": PROXY}
    options["importance_options"] = {"progress": False}
    return fxprune.prune_and_distill(small_vit(), BATCHES, ratio, TRAINING, steps=2, **options)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("at", [(1, 1), (2, 0), (2, 1)])
def test_it_is_gone_on_with_wherever_it_stopped(
    at: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch of the first step; at the start, and in the second epoch, of the second one."""
    whole = weights(pruned())
    epoch, steps = Loop._epoch, []

    def stops(self: Loop, progress: Any) -> Any:
        steps.append(progress.epoch)
        if (steps.count(0), progress.epoch) == at:
            raise KeyboardInterrupt
        return epoch(self, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            pruned(tmp_path)
    with pytest.raises(TrainingError, match="holds this run already"):
        pruned(tmp_path)
    with pytest.raises(TrainingError, match="holds another run"):
        pruned(tmp_path, ratio=0.25, resume=True)
    found = weights(pruned(tmp_path, resume=True))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_each_step_is_trained() -> None:
    seen: list[int] = []

    def count(student: Any) -> dict[str, float]:
        seen.append(sum(p.numel() for p in student.parameters()))
        return {}

    result = pruned(evaluate=count)
    assert len(seen) == 4 and seen[0] == seen[1] > seen[2] == seen[3]
    assert sum(p.numel() for p in result.parameters()) == seen[-1]


def test_one_step_is_pruning_and_training() -> None:
    found = fxprune.prune_and_distill(
        small_vit(), BATCHES, 0.5, TRAINING, steps=1, example_inputs=images(2, 32), progress=False
    )
    wanted = fxprune.prune(small_vit(), 0.5, example_inputs=images(2, 32))
    fxprune.distill(wanted, small_vit(), BATCHES, TRAINING, progress=False)
    assert all(torch.equal(t, wanted.state_dict()[name]) for name, t in weights(found).items())


def test_another_teacher_teaches_each_step() -> None:
    other = small_vit(depth=1)
    usual, taught = (pruned(teacher=teacher) for teacher in (None, other))
    first, second = (torch.cat([p.flatten() for p in m.parameters()]) for m in (usual, taught))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_an_estimate_of_what_is_read_once_ends() -> None:
    class Once(list[Any]):
        def __iter__(self) -> Any:
            while self:
                yield self.pop()

    teacher = small_vit(depth=1)
    student = fxprune.prune(teacher, 0.5, example_inputs=images())
    with pytest.raises(DataError, match="batches ended after 1 "):
        estimate(student, teacher, Once([images()]), fxprune.Training(epochs=1))


def test_an_estimate_leaves_the_student_as_it_is() -> None:
    teacher = small_vit()
    student = fxprune.prune(teacher, 0.5, example_inputs=images(2, 32))
    before = weights(student)
    few = estimate(student, teacher, BATCHES * 10, fxprune.Training(epochs=3, hidden=0.1))
    many = estimate(student, teacher, BATCHES * 10, fxprune.Training(epochs=300, hidden=0.1))
    assert few.batches == 30 and 0 < few.seconds < many.seconds
    assert few.memory > 4 * sum(t.numel() * t.element_size() for t in before.values())
    assert all(torch.equal(t, before[name]) for name, t in student.state_dict().items())


def test_channels_are_scored_by_the_probabilities_that_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `data` is scored at all; magnitudes know of no output."""
    from fxprune.finetune import steps

    seen: list[Any] = []

    def asked(model: Any, ratio: float, **options: Any) -> Any:
        seen.append(options.get("importance_options"))
        raise KeyboardInterrupt

    def halves(output: Any) -> Tensor:
        return output[:, :5].log_softmax(1)

    monkeypatch.setattr(steps, "prune", asked)
    given: dict[str, Any] = {"log_probabilities": halves, "progress": False}
    for options in ({"data": PROXY, "importance_options": {"draws": 2}}, {"data": PROXY}, {}):
        with pytest.raises(KeyboardInterrupt):
            fxprune.prune_and_distill(small_vit(), BATCHES, **given, **options)
    assert seen == [{"log_probabilities": halves, "draws": 2}, {"log_probabilities": halves}, None]
