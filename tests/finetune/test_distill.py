"""Training a student in place: it learns, in both forms; options do what they say, or are refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import images, small_hf_vit, small_vit
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import fxprune
from fxprune.errors import DataError, OptionError, TrainingError
from fxprune.finetune.loader import loader_of
from fxprune.finetune.loop import Loop, own_randomness

pytest.importorskip("accelerate")


def student_of(teacher: nn.Module, **options: Any) -> Any:
    return fxprune.prune(teacher, 0.5, example_inputs=images(2, 32), **options)


def labelled(count: int = 4) -> list[Any]:
    return [(images(4, 32), torch.randint(10, (4,))) for _ in range(count)]


@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("make", [small_vit, small_hf_vit])
def test_a_student_comes_nearer_to_its_teacher(make: Any, form: str) -> None:
    teacher = make()
    student = student_of(teacher, form=form)
    before, attributes = copy.deepcopy(teacher.state_dict()), set(vars(student))
    batches = [images(8, 32) for _ in range(2)]
    training = fxprune.Training(epochs=15, lr=3e-3, kl=1.0, hidden=0.1)
    trained = fxprune.distill(student, teacher, batches, training, progress=False)
    first, last = trained.log[0], trained.log[-1]
    assert last["kl"] < 0.5 * first["kl"] and last["hidden"] < first["hidden"]
    assert trained.updates == 30
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())
    assert set(vars(student)) == attributes
    assert not any(m.training for m in student.modules())
    assert fxprune.verify(teacher, student).changed


# Of every field of Training, another value than the usual one, or than those of `trained` below.
OTHERS: dict[str, Any] = {
    "epochs": 1,
    "lr": 2e-3,
    "min_lr": 5e-4,
    "warmup": 1.0,
    "opt": "sgd",
    "sched": "poly",
    "weight_decay": 0.5,
    "clip": 0.01,
    "kl": 1.0,
    "hidden": 1.0,
    "mixup": 0.5,
    "cutmix": 0.5,
    "smoothing": 0.1,
    "ema": 0.5,
    "accumulation": 2,
    "precision": "bf16",
    "seed": 1,
}


@functools.cache
def pair() -> tuple[nn.Module, nn.Module]:
    """A teacher, and a student with dropout, of which the seed is."""
    teacher = small_vit(proj_drop_rate=0.2, depth=1)
    return teacher, student_of(teacher)


def trained(batches: list[Any], extra: Any = None, **options: Any) -> torch.Tensor:
    """Weights of a copy of the student after two epochs."""
    teacher, start = pair()
    student = copy.deepcopy(start)
    training = fxprune.Training(**{"epochs": 2, "lr": 1e-3, **options})
    fxprune.distill(student, teacher, batches, training, progress=False, **extra or {})
    return torch.cat([p.detach().flatten() for p in student.parameters()])


def test_every_number_of_training_does_something() -> None:
    """Each of them leads to other weights; and to the same ones once more."""
    assert [*OTHERS] == [field.name for field in dataclasses.fields(fxprune.Training)]
    batches = labelled()
    usual = trained(batches)
    assert torch.equal(trained(batches), usual)
    for name, value in OTHERS.items():
        assert not torch.equal(trained(batches, **{name: value}), usual), name
    assert all(x.isfinite().all() for x, _ in batches)


def test_every_loss_of_one_s_own_does_something() -> None:
    batches = labelled()
    usual = trained(batches)
    mine: list[dict[str, Any]] = [
        {"loss": lambda output, labels: output.square().mean()},
        {"log_probabilities": lambda output: output[:, :5].log_softmax(1)},
    ]
    batches = [(x, y % 5) for x, y in batches]
    usual = trained(batches)
    for options in mine:
        assert not torch.equal(trained(batches, options), usual), options


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_batches_by_name_are_mixed_as_others_are(mixing: str) -> None:
    batches = labelled(2)
    named = [{"x": x, "labels": y} for x, y in batches]
    assert torch.equal(trained(named, **{mixing: 0.5}), trained(batches, **{mixing: 0.5}))
    assert torch.equal(trained(named), trained(batches))


@pytest.mark.parametrize(
    ("options", "batch", "error", "said"),
    [
        ({"mixup": 0.5}, "images", OptionError, "mixup and cutmix mix images"),
        ({"cutmix": 0.5}, "shares", OptionError, "mixup and cutmix mix images"),
        ({"smoothing": 0.1}, "images", TrainingError, "no batch of epoch 1 had labels"),
        ({"loss": torch.nn.functional.cross_entropy}, "images", TrainingError, "no batch of epoch 1"),
        ({"loss": torch.nn.functional.cross_entropy, "smoothing": 0.1}, "pair", OptionError, "smoothing=0.1"),
        ({"every": 2}, "pair", OptionError, "every=2 needs folder="),
        ({"sched": "step"}, "pair", OptionError, "keeps the learning rate as it is for 2 epochs"),
        ({"sched": "multistep"}, "pair", OptionError, "keeps the learning rate"),
        ({"sched": "constant", "min_lr": 1e-4}, "pair", OptionError, "min_lr=0.0001 has no effect"),
        ({"sched": "none", "warmup": 0.5}, "pair", OptionError, "warmup=0.5 has no effect"),
        ({"sched": "plateau"}, "pair", OptionError, "timm: "),
    ],
)
def test_what_would_have_no_effect(options: Any, batch: str, error: Any, said: str) -> None:
    (both,) = labelled(1)
    batches = {"pair": both, "images": both[0], "shares": (both[0], torch.full((4, 10), 0.1))}
    extra = {name: options[name] for name in ("loss", "every") if name in options}
    with pytest.raises(error, match=said):
        trained([batches[batch]], extra, **{k: v for k, v in options.items() if k not in extra})


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accumulation"),
    ],
)
def test_what_accelerate_was_started_with(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str
) -> None:
    """It was dropped, or did another thing than `Training` says."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(OptionError, match=f"say {name}={value} too"):
        trained(labelled(1))
    trained(labelled(1), **{name: type(OTHERS[name])(value)})


def test_an_accelerator_of_another_s_is_left_as_it_was() -> None:
    """In whichever precision: a Trainer that was made before trains on."""
    other = Accelerator(mixed_precision="no", gradient_accumulation_steps=4)
    try:
        teacher = small_vit()
        training = fxprune.Training(epochs=1, precision="bf16")
        fxprune.distill(student_of(teacher), teacher, labelled(), training, progress=False)
        assert other.mixed_precision == "no" and other.state.mixed_precision == "no"
        assert other.gradient_accumulation_steps == 4
    finally:
        AcceleratorState._reset_state()


def test_the_seed_is_that_of_dropout_and_order() -> None:
    teacher = small_vit(proj_drop_rate=0.2)
    start = student_of(teacher)

    def weights(seed: int) -> torch.Tensor:
        student = copy.deepcopy(start)
        training = fxprune.Training(epochs=1, seed=seed)
        fxprune.distill(student, teacher, [images(4, 32)], training, progress=False)
        return torch.cat([p.detach().flatten() for p in student.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_random_numbers_of_the_caller_stay() -> None:
    teacher = small_vit()
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    fxprune.distill(student_of(teacher), teacher, [torch.ones(2, 3, 32, 32)], fxprune.Training(epochs=1))
    torch.manual_seed(7)
    student, batches = student_of(teacher), [torch.ones(2, 3, 32, 32)]
    torch.manual_seed(7)
    fxprune.distill(student, teacher, batches, fxprune.Training(epochs=1, seed=3), progress=False)
    assert torch.equal(torch.rand(3), wanted)


def test_the_random_numbers_of_the_caller_stay_where_a_run_fails() -> None:
    before = random.getstate()
    with pytest.raises(ZeroDivisionError), own_randomness():
        random.seed(1)
        raise ZeroDivisionError
    assert random.getstate() == before


class Short(list[torch.Tensor]):
    """Batches that end before their length says."""

    def __len__(self) -> int:
        return 3


def test_fewer_batches_than_their_length_says() -> None:
    teacher = small_vit(depth=1)
    with pytest.raises(DataError, match="batches ended after 1 in epoch 1, and are 3"):
        fxprune.distill(student_of(teacher), teacher, Short([images(2, 32)]), progress=False)


def test_a_new_head_learns_from_labels_alone() -> None:
    student = student_of(small_vit())
    student.head = nn.Linear(student.head.in_features, 3)
    batches = [(images(6, 32), torch.arange(6) % 3)]
    trained = fxprune.distill(
        student, None, batches, fxprune.Training(epochs=20, kl=0, lr=3e-3), progress=False
    )
    assert trained.log[-1]["task"] < 0.5 * trained.log[0]["task"]


@pytest.mark.parametrize(
    "options",
    [
        *({"epochs": 0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"ema": 1.0}, {"accumulation": 0}),
        *({"precision": "int3"}, {"kl": -0.1}, {"epochs": 2.5}, {"seed": 0.5}, {"lr": "1e-3"}),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        fxprune.Training(**options)


@pytest.mark.parametrize("options", [{"opt": "no such"}, {"sched": "no such"}])
def test_names_that_timm_does_not_know(options: dict[str, Any]) -> None:
    teacher = small_vit()
    with pytest.raises(OptionError, match="timm: "):
        fxprune.distill(student_of(teacher), teacher, labelled(1), fxprune.Training(**options))


class Endless(IterableDataset[torch.Tensor]):
    """Data that has no length."""

    def __iter__(self) -> Any:
        yield images(1, 32)[0]


@pytest.mark.parametrize(
    "batches",
    [
        DataLoader(Endless()),
        iter([torch.zeros(2, 3, 32, 32)]),
        [],
        torch.zeros(2, 3, 32, 32),
        3,
        (x for x in ()),
    ],
)
def test_what_are_no_batches(batches: Any) -> None:
    teacher = small_vit()
    with pytest.raises(DataError):
        fxprune.distill(student_of(teacher), teacher, batches)


def test_mixup_of_an_odd_batch() -> None:
    teacher = small_vit()
    odd = [(images(3, 32), torch.arange(3))]
    with pytest.raises(OptionError, match="a batch has 3"):
        fxprune.distill(student_of(teacher), teacher, odd, fxprune.Training(mixup=0.5), progress=False)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    teacher = small_vit()
    with pytest.raises(TrainingError, match=r"pip install 'fxprune\[finetune\]'"):
        fxprune.distill(student_of(teacher), teacher, labelled(1), progress=False)


def test_an_accelerator_of_one_s_own() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    teacher = small_vit()
    try:
        accelerator = Accelerator()
        batches = labelled(1)
        fxprune.distill(
            student_of(teacher), teacher, batches, fxprune.Training(epochs=1), accelerator=accelerator
        )
        for other, said in ({"accumulation": 2}, "accumulates 1 batches"), ({"precision": "bf16"}, "is no,"):
            training = fxprune.Training(**other)
            with pytest.raises(OptionError, match=said):
                fxprune.distill(student_of(teacher), teacher, batches, training, accelerator=accelerator)
    finally:
        AcceleratorState._reset_state()


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_precision_that_this_machine_can_not_compute(precision: str) -> None:
    """Accelerate goes on in single precision where it is asked for fp16 on a CPU."""
    if torch.cuda.is_available():
        pytest.skip("it may be computed on this GPU")
    with pytest.raises(TrainingError, match="Accelerate can't train so: "):
        trained(labelled(1), precision=precision)


def test_a_mean_is_that_of_the_batches_that_have_the_loss() -> None:
    """Every other batch has no labels."""
    teacher = small_vit(depth=1)
    (x, labels), student = labelled(1)[0], student_of(teacher)
    training = fxprune.Training(epochs=1, lr=1e-12, min_lr=0.0, weight_decay=0.0, opt="sgd")
    runs = [[(x, labels)], [(x, labels), x, x]]
    means = [fxprune.distill(student, teacher, run, training, progress=False).log[0] for run in runs]
    assert means[1]["task"] == pytest.approx(means[0]["task"], rel=1e-4)
    assert means[1]["kl"] == pytest.approx(means[0]["kl"], rel=1e-4)


def test_an_update_that_overflows_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: True))
    teacher = small_vit(depth=1)
    training = fxprune.Training(epochs=1, ema=0.5)
    assert fxprune.distill(student_of(teacher), teacher, labelled(2), training, progress=False).updates == 0


class Drawing:
    """A list that draws each batch when it is read."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return (torch.randn(4, 3, 32, 32) for _ in range(3))


def test_every_process_cuts_the_same_batches() -> None:
    read = []
    for process in (0, 1):
        accelerator = SimpleNamespace(process_index=process, num_processes=2, device=torch.device("cpu"))
        engine: Any = SimpleNamespace(
            training=fxprune.Training(), accelerator=accelerator, loader=loader_of(Drawing(), accelerator)
        )
        loop = Loop(engine, *[None] * 3, 0, False)  # type: ignore[arg-type]
        read.append([])
        with own_randomness():
            for batch in loop._batches(0):
                torch.randn(1 + process)  # what training draws
                read[-1].append(batch)
    with own_randomness():
        whole = [torch.cat(parts) for parts in zip(*read, strict=True)]
        engine.accelerator.num_processes, engine.accelerator.process_index = 1, 0
        engine.loader = loader_of(Drawing(), engine.accelerator)
        alone = list(loop._batches(0))
    assert all(map(torch.equal, whole, alone))
    assert not torch.equal(alone[0], alone[1])


class Named(nn.Module):
    """Takes what others call labels as an input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model(x) * labels[:, None]


def test_an_input_that_is_called_labels_is_one() -> None:
    teacher = Named(small_vit(depth=1))
    student = fxprune.prune(teacher, 0.5, example_inputs=(images(2, 32), torch.ones(2)))
    batch = {"x": images(2, 32), "labels": torch.tensor([0.0, 0.0])}
    losses = fxprune.Distillation(student, teacher, loss=lambda output, labels: output.sum())(batch)
    assert torch.equal(losses.output, torch.zeros(2, 10))
