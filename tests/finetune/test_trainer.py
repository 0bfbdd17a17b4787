"""Hugging Face's Trainer with a teacher: the loss is ours, all else is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import mlp, randomise, small_hf_vit
from torch.utils.data import Dataset

import fxprune

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Images(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, labels: bool) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i))
        return {"pixel_values": image} | ({"labels": torch.tensor(i % 10)} if self.labels else {})


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_student_learns(labels: bool, form: str, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    from fxprune.finetune.trainer import DistillationTrainer

    teacher = small_hf_vit()
    student = fxprune.prune(teacher, 0.5, form=form)
    distillation = fxprune.Distillation(student, teacher, kl=1.0, hidden=0.1)
    data = Images(labels)
    batch: Any = {name: torch.stack([data[i][name] for i in range(8)]) for name in data[0]}
    before = distillation(batch).total.item()
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=15, learning_rate=3e-3, per_device_train_batch_size=8, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    try:
        DistillationTrainer(student, arguments, train_dataset=data, distillation=distillation).train()
    finally:
        AcceleratorState._reset_state()
    assert distillation(batch).total.item() < 0.7 * before


@pytest.mark.slow
def test_a_student_that_no_configuration_expresses_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """The trainer's checkpoints hold its weights; a model of the library it is not, and says so."""
    from accelerate.state import AcceleratorState

    from fxprune.errors import FileError
    from fxprune.finetune.trainer import DistillationTrainer

    config = transformers.SwinConfig(image_size=32, patch_size=8, embed_dim=16)
    config.depths, config.num_heads, config.window_size, config.num_labels = [1, 1], [2, 2], 2, 10
    teacher = randomise(transformers.SwinForImageClassification(config).eval())
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        save_strategy="epoch", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip

    def trained(checkpoint: str | None) -> Any:
        student = fxprune.prune(teacher, 0.5, scope="global", form="module")
        distillation = fxprune.Distillation(student, teacher)
        trainer = DistillationTrainer(
            student, arguments, train_dataset=Images(True), distillation=distillation
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    try:
        whole = trained(None)
        with pytest.raises(FileError, match="can't express its sizes"):
            whole.save_model(str(tmp_path / "out"))
        again = trained(str(tmp_path / "checkpoint-2"))
    finally:
        AcceleratorState._reset_state()
    state = again.model.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in whole.model.state_dict().items())


class Pair(torch.nn.Module):
    """A tensor, or a tuple of two."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.several, self.body = several, mlp()

    def forward(self, x: torch.Tensor) -> Any:
        scores = self.body(x)
        return (scores, x.sum(-1)) if self.several else scores


@pytest.mark.parametrize("several", [False, True])
def test_what_is_no_mapping_is_predicted_whole(several: bool, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    from fxprune.finetune.trainer import DistillationTrainer

    teacher, xs = Pair(several), torch.randn(5, 6)
    student = fxprune.prune(teacher, 0.5, example_inputs=xs).eval()
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    loss = None if not several else lambda output, labels: output[0].logsumexp(-1).mean()
    distillation = fxprune.Distillation(student, teacher, loss=loss, kl=0.0)
    data: Any = [{"x": x, "labels": torch.tensor(i % 4)} for i, x in enumerate(xs)]
    try:
        found = DistillationTrainer(student, arguments, distillation=distillation).predict(data)
    finally:
        AcceleratorState._reset_state()
    with torch.no_grad():
        wanted = student(xs)
    got = found.predictions if several else (found.predictions,)
    for a, b in zip(wanted if several else (wanted,), got, strict=True):
        torch.testing.assert_close(a, torch.from_numpy(b))


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("labels", [True, False])
def test_accumulation_divides_the_loss(labels: bool, form: str, tmp_path: Path) -> None:
    """Two batches to an update are one of both, also of a model whose own loss counts samples itself."""
    from accelerate.state import AcceleratorState

    from fxprune.finetune.trainer import DistillationTrainer

    teacher = small_hf_vit()

    def trained(batch: int, accumulation: int) -> torch.Tensor:
        student = fxprune.prune(teacher, 0.5, form=form)
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=1, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, use_cpu=True,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, report_to=[],
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False, lr_scheduler_type="constant",
        )  # fmt: skip
        distillation = fxprune.Distillation(student, teacher, kl=1.0, hidden=0.1)
        trainer = DistillationTrainer(
            student, arguments, train_dataset=Images(labels), distillation=distillation
        )
        trainer.train()
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    try:
        start = torch.cat([p.detach().flatten() for p in fxprune.prune(teacher, 0.5, form=form).parameters()])
        whole, parts = trained(8, 1), trained(4, 2)
    finally:
        AcceleratorState._reset_state()
    assert (parts - whole).norm() < 1e-3 * (whole - start).norm()


@pytest.mark.parametrize("asked", ["label_smoothing_factor", "compute_loss_func"])
def test_another_loss_is_refused(asked: str, tmp_path: Path) -> None:
    from fxprune.errors import OptionError
    from fxprune.finetune.trainer import DistillationTrainer

    teacher = small_hf_vit()
    student = fxprune.prune(teacher, 0.5)
    smoothing = {"label_smoothing_factor": 0.1} if asked == "label_smoothing_factor" else {}
    loss = {"compute_loss_func": lambda *_, **__: None} if asked == "compute_loss_func" else {}
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **smoothing)
    with pytest.raises(OptionError, match=f"{asked} would have no effect"):
        DistillationTrainer(student, arguments, distillation=fxprune.Distillation(student, teacher), **loss)
