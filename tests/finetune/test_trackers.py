"""Trackers of Accelerate hear of each epoch; an accelerator of one's own can be used again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import images, small_vit

import fxprune
from fxprune.errors import OptionError, TrainingError

accelerate = pytest.importorskip("accelerate")
TRAINING = fxprune.Training(epochs=2)
BATCHES = [(images(4, 32), torch.arange(4)) for _ in range(2)]


def scalars(folder: Path) -> dict[str, list[float]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [event.value for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def trained(folder: Path | None, **options: Any) -> fxprune.Trained:
    teacher = small_vit()
    student = fxprune.prune(teacher, 0.5, example_inputs=images())
    given = {"folder": folder, "progress": False, "evaluate": lambda model: {"top1": 0.25}}
    return fxprune.distill(student, teacher, BATCHES, TRAINING, **given | options)


def test_tensorboard_hears_what_the_log_says(tmp_path: Path) -> None:
    log = trained(tmp_path, trackers=["tensorboard"]).log
    heard = scalars(tmp_path / "tracked")
    for name in ("loss", "task", "kl", "lr", "top1"):
        assert heard[name] == pytest.approx([line[name] for line in log])


def test_each_step_has_its_own(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "progress": False, "trackers": ["tensorboard"], "example_inputs": images()}
    fxprune.prune_and_distill(small_vit(), BATCHES, 0.5, TRAINING, steps=2, **options)
    heard = [scalars(tmp_path / step / "tracked")["loss"] for step in ("step-1", "step-2")]
    assert [len(values) for values in heard] == [2, 2] and heard[0] != heard[1]


def own_tracker() -> Any:
    from accelerate.tracking import GeneralTracker

    class Own(GeneralTracker):
        name, requires_logging_directory = "own", False

        def __init__(self) -> None:
            super().__init__()
            self.heard: list[Any] = []

        @property
        def tracker(self) -> Any:
            return self

        def store_init_configuration(self, values: Mapping[str, Any]) -> None:
            self.heard.append(dict(values))

        def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
            self.heard.append((step, values["loss"]))

        def finish(self) -> None:
            self.heard.append("end")

    return Own()


def test_a_tracker_of_one_s_own(tmp_path: Path) -> None:
    tracker = own_tracker()
    log = trained(tmp_path, trackers=[tracker]).log
    assert tracker.heard[0]["epochs"] == 2
    assert tracker.heard[1:] == [*((line["updates"], line["loss"]) for line in log), "end"]


def test_it_ends_with_the_run_whatever_ends_that(tmp_path: Path) -> None:
    tracker = own_tracker()
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path, trackers=[tracker], evaluate=lambda model: {"top1": 1 / 0})
    assert tracker.heard[-1] == "end"


def test_another_run_s_folder_is_left_as_it_is(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(TrainingError, match="holds this run already"):
        trained(tmp_path, trackers=["tensorboard"])
    assert not (tmp_path / "tracked").exists()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="knows no 'nothing', but aim"):
        trained(tmp_path, trackers=["nothing"])
    with pytest.raises(TrainingError, match="the tracker aim is not installed"):
        trained(tmp_path, trackers=["aim"])
    with pytest.raises(OptionError, match="trackers need folder="):
        trained(None, trackers=["tensorboard"])
    with pytest.raises(OptionError, match="has its own trackers"):
        trained(tmp_path, trackers=["tensorboard"], accelerator=accelerate.Accelerator(cpu=True))
    assert not any(tmp_path.iterdir())


def test_an_accelerator_is_used_again(tmp_path: Path) -> None:
    """Checkpoints of the second run hold the second model alone."""
    accelerator = accelerate.Accelerator(cpu=True)
    trained(tmp_path / "one", accelerator=accelerator)
    trained(tmp_path / "two", accelerator=accelerator)
    names = [{p.name for p in (tmp_path / run).glob("checkpoint-*/*")} for run in ("one", "two")]
    assert names[0] == names[1]
    assert trained(tmp_path / "two", accelerator=accelerator, resume=True).updates == 4


def test_other_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import DistributedType

    accelerator = accelerate.Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(TrainingError, match="DEEPSPEED leaves each process a part"):
        trained(tmp_path / "run", accelerator=accelerator)
    assert not (tmp_path / "run").exists()
