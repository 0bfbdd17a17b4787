"""The loss: what it is, for any output, both forms, with labels and without; and what it refuses."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import ConvNet, images, small_hf_vit, small_swin, small_vit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.certify.randomise import randomise
from fxprune.errors import DataError, OptionError, PlanError, TrainingError
from fxprune.finetune.renormalised import Renormalised
from fxprune.passes.rebasing.random import random_bases

FORMS = ("graph", "module")
MAKERS = (small_vit, small_swin, small_hf_vit)


def logits(output: Any) -> Tensor:
    return (
        output
        if isinstance(output, Tensor)
        else output["logits"]
        if isinstance(output, dict)
        else output.logits
    )


def pruned(model: nn.Module, ratio: float = 0.5, **options: Any) -> Any:
    return fxprune.prune(model, ratio, example_inputs=images(2, 32), **options)


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", MAKERS)
def test_cross_entropy_and_divergence(make: Callable[[], nn.Module], form: str) -> None:
    teacher = make()
    student = pruned(teacher, form=form)
    x, y = images(5, 32), torch.arange(5)
    losses = fxprune.Distillation(student, teacher)((x, y))
    p, q = (logits(model(x)).log_softmax(-1) for model in (teacher, student))
    torch.testing.assert_close(losses.task, F.cross_entropy(q, y))
    torch.testing.assert_close(losses.kl, F.kl_div(q, p, log_target=True, reduction="batchmean"))
    torch.testing.assert_close(losses.total, losses.task + 0.2 * losses.kl)
    assert losses.hidden is None
    losses.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


def test_without_labels_it_is_the_divergence_alone() -> None:
    teacher = small_vit()
    student = pruned(teacher)
    losses = fxprune.Distillation(student, teacher, kl=0.5)(images(4, 32))
    assert losses.task is None
    torch.testing.assert_close(losses.total, 0.5 * losses.kl)


def test_the_dense_model_is_at_no_distance_from_itself() -> None:
    teacher = small_swin()
    losses = fxprune.Distillation(pruned(teacher, 0.0), teacher, hidden=1.0)(images(3, 32))
    assert float(losses.kl) < 1e-6 and float(losses.hidden) < 1e-8


def test_batches_by_name() -> None:
    teacher = small_hf_vit()
    student = fxprune.prune(teacher, 0.5)
    x, y = images(4, 32), torch.arange(4)
    by_name = fxprune.Distillation(student, teacher)({"pixel_values": x, "labels": y})
    in_order = fxprune.Distillation(student, teacher)((x, y))
    torch.testing.assert_close(by_name.total, in_order.total)


def test_features_are_compared_by_their_squared_error() -> None:
    teacher = small_swin()
    teacher.head = nn.Identity()
    losses = fxprune.Distillation(pruned(teacher), teacher)(images(4, 32))
    assert losses.task is None and float(losses.kl) > 0


@pytest.mark.parametrize("labels", [[1, 2, 3, 0], torch.tensor([1, 2, 3, 0], dtype=torch.int32)])
def test_labels_of_any_whole_numbers(labels: Any) -> None:
    student = small_vit(depth=1)
    distillation = fxprune.Distillation(student, None, kl=0)
    wanted = distillation((images(4, 32), torch.tensor([1, 2, 3, 0]))).total
    assert torch.equal(distillation((images(4, 32), labels)).total, wanted)


def test_a_loss_of_one_s_own() -> None:
    teacher = small_vit()
    student = pruned(teacher)
    asked = fxprune.Distillation(student, teacher, kl=0, loss=lambda out, labels: (out - labels).abs().sum())
    x, wanted = images(4, 32), torch.zeros(4, 10)
    torch.testing.assert_close(asked((x, wanted)).total, student(x).abs().sum())


def test_any_two_models_by_their_outputs() -> None:
    """A student that was not pruned has outputs to compare, and no hidden states."""
    teacher, student = small_vit(), small_vit(embed_dim=24)
    assert float(fxprune.Distillation(student, teacher)(images(4, 32)).kl) > 0
    with pytest.raises(PlanError, match="carries no plan"):
        fxprune.Distillation(student, teacher, hidden=1.0)


def test_the_teacher_runs_in_eval_mode_and_keeps_its_own() -> None:
    teacher = small_vit(proj_drop_rate=0.5).train()
    teacher.blocks[0].eval()
    student = pruned(teacher).eval()
    modes = [m.training for m in teacher.modules()]
    one, other = (float(fxprune.Distillation(student, teacher)(images(4, 32)).kl) for _ in range(2))
    assert one == other
    assert [m.training for m in teacher.modules()] == modes


# ---------------------------------------------------------------- hidden states


@pytest.mark.parametrize("in_bases", [False, True])
def test_a_teacher_of_other_normalisation_is_known_by_what_it_holds(in_bases: bool) -> None:
    """The student is none the smaller: on images that both are used to, hidden states are the same."""
    dense, x = small_vit(), images(3, 32)
    student = pruned(dense, 0.0)
    if in_bases:
        bases = random_bases(fxprune.analyze(dense, example_inputs=images(2, 32)), seed=3)
        plan = replace(fxprune.plan_of(student), bases=bases)
        student = fxprune.apply(dense, plan, example_inputs=images(2, 32))
    assert bool(fxprune.plan_of(student).bases) is in_bases
    same = fxprune.Distillation(student, Renormalised(dense, (0.5,), (0.5,), (0.5,), (0.5,)), hidden=1.0)(x)
    assert same.hidden is not None and same.hidden.item() < 1e-7
    other = fxprune.Distillation(student, Renormalised(dense, (0.5,), (0.5,), (0.1,), (0.2,)), hidden=1.0)(x)
    assert other.hidden is not None and other.hidden.item() > 1e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", MAKERS)
def test_the_plan_says_which_channels_are_the_same(
    make: Callable[[], nn.Module], capture: str, form: str
) -> None:
    """What the first norm reads is an index-select of what the teacher's reads, whatever comes later."""
    teacher = make()
    student = pruned(teacher, capture=capture, form=form)
    first = next(name for name, m in teacher.named_modules() if isinstance(m, nn.LayerNorm))
    wrong = fxprune.Distillation(student, teacher, hidden=1.0)
    whole = float(wrong(images(3, 32)).hidden)
    right = fxprune.Distillation(student, teacher, hidden=1.0)
    assert right.states is not None and wrong.states is not None
    right.states.ours = {k: v for k, v in right.states.ours.items() if v == f"{first}.weight"}
    assert float(right(images(3, 32)).hidden) < 1e-10
    index = right.states.kept[f"{first}.weight"][0]
    assert index is not None
    right.states.kept[f"{first}.weight"] = (torch.arange(len(index)) + 1,)
    assert float(right(images(3, 32)).hidden) > 1e-3
    assert whole > 1e-3


def test_hidden_states_of_a_model_without_norms() -> None:
    layers = (nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    teacher = randomise(nn.Sequential(*layers))
    student = fxprune.prune(teacher, 0.5, example_inputs=torch.zeros(2, 6))
    distillation = fxprune.Distillation(student, teacher, hidden=1.0)
    assert distillation.states is not None
    x = torch.randn(5, 6)
    assert distillation(x).hidden.item() > 1e-3
    distillation.states.ours = {k: v for k, v in distillation.states.ours.items() if v == "2.weight"}
    assert distillation(x).hidden.item() < 1e-10


def test_hidden_states_of_convolutions() -> None:
    teacher = randomise(ConvNet().eval())
    student = fxprune.prune(teacher, 0.5, example_inputs=images(2, 32))
    assert float(fxprune.Distillation(student, teacher, hidden=1.0)(images(2, 32)).hidden) > 0


def test_a_model_that_was_pruned_twice_has_both_teachers() -> None:
    teacher = small_vit()
    once = pruned(teacher, 0.25)
    twice = pruned(once, 0.25)
    for dense in (teacher, once):
        distillation = fxprune.Distillation(twice, dense, hidden=1.0)
        assert distillation.states is not None
        distillation.states.ours = {k: v for k, v in distillation.states.ours.items() if "0.norm1" in v}
        assert distillation(images(3, 32)).hidden.item() < 1e-10
    with pytest.raises(TrainingError, match="none of the models that the student was pruned from"):
        fxprune.Distillation(twice, small_vit(embed_dim=96), hidden=1.0)


@pytest.mark.parametrize("form", FORMS)
def test_hidden_states_in_other_coordinates(form: str) -> None:
    """A plan that changed bases first: every coordinate is another, and the first norm's are still ours."""
    teacher = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    randomise(teacher.eval())
    plan = fxprune.plan_of(fxprune.prune(teacher, 0.5, attention="head_dim"))
    plan = replace(plan, bases=random_bases(fxprune.analyze(teacher), seed=3))
    distillation = fxprune.Distillation(fxprune.apply(teacher, plan, form=form), teacher, hidden=1.0)
    x = images(3, 32)
    assert distillation.teacher is not None and distillation.states is not None
    torch.testing.assert_close(distillation.teacher(x), teacher(x), rtol=1e-3, atol=1e-3)
    distillation.states.ours = {k: v for k, v in distillation.states.ours.items() if "0.norm1" in v}
    assert distillation(x).hidden.item() < 1e-9


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("reentrant", [True, False])
def test_hidden_states_under_gradient_checkpointing(reentrant: bool) -> None:
    """What is read without gradients is learned by nobody."""
    teacher, x = small_vit(), images(2, 32).requires_grad_()
    student = pruned(teacher, form="module")
    block, distillation = student.blocks[0], fxprune.Distillation(student, teacher, kl=0.0, hidden=1.0)
    block.forward = functools.partial(checkpoint, type(block).forward, block, use_reentrant=reentrant)
    if reentrant:
        with pytest.raises(TrainingError, match=r"blocks\.0\.norm1\.weight, .* has no gradient"):
            distillation(x)
        with torch.no_grad():
            assert distillation(x).hidden is not None
    else:
        distillation(x).total.backward()
        assert student.blocks[0].attn.qkv.weight.grad is not None


def test_a_teacher_of_other_classes() -> None:
    teacher = small_vit(num_classes=7)
    with pytest.raises(TrainingError, match="the teacher says 7 classes, and the student 10 classes"):
        fxprune.distill(small_vit(embed_dim=24), teacher, [images(4, 32)], progress=False)


@pytest.mark.parametrize(
    ("options", "batch", "error", "said"),
    [
        ({"kl": -1.0}, None, OptionError, "not negative"),
        ({"kl": 0.0}, images(2, 32), TrainingError, "nothing to learn from"),
        ({}, ["words"], DataError, "a batch is a tensor of inputs"),
        ({}, (images(2, 32), torch.tensor([3, 10])), TrainingError, "a label is 10, and the model has 10"),
    ],
)
def test_what_says_nothing(options: Any, batch: Any, error: type[Exception], said: str) -> None:
    teacher = small_vit()
    with pytest.raises(error, match=said):
        fxprune.Distillation(teacher, teacher, **options)(batch)


def test_labels_for_features() -> None:
    teacher = small_swin()
    teacher.head = nn.Identity()
    with pytest.raises(TrainingError, match="say what it costs with loss="):
        fxprune.Distillation(teacher, teacher)((images(2, 32), torch.zeros(2, dtype=torch.long)))


def test_no_teacher() -> None:
    model = small_vit()
    with pytest.raises(OptionError, match="no teacher"):
        fxprune.Distillation(model, None)
    losses = fxprune.Distillation(model, None, kl=0)((images(2, 32), torch.tensor([1, 2])))
    assert losses.kl is None and losses.task is not None


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_a_teacher_of_another_precision(precision: torch.dtype) -> None:
    teacher = small_vit(depth=1)
    student = fxprune.prune(teacher, 0.5, example_inputs=images(2, 32))
    batch = images(3, 32)
    usual = fxprune.Distillation(student, teacher, hidden=0.1)(batch)
    other = fxprune.Distillation(student, copy.deepcopy(teacher).to(precision), hidden=0.1)(batch)
    near = 1e-5 if precision == torch.float64 else 0.2
    assert usual.kl is not None and other.kl is not None and usual.hidden is not None
    assert other.kl.item() == pytest.approx(usual.kl.item(), rel=near)
    assert other.hidden is not None and other.hidden.item() == pytest.approx(usual.hidden.item(), rel=near)
    other.total.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in student.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        fxprune.Distillation(student, copy.deepcopy(teacher).to(precision))(batch).total.backward()


def test_a_batch_of_three() -> None:
    """Which of them would be labels is not known."""
    teacher = small_vit(depth=1)
    with pytest.raises(DataError, match="a batch is a tuple of 3"):
        fxprune.Distillation(teacher, teacher)((images(2, 32), torch.ones(2), torch.arange(2)))
