"""The smallest model of each family of timm: certified, and as trainable as the original."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from helpers import assert_same, randomise, run, tensors_of
from smaller_families import SMALLER
from torch import nn

import fxprune
from fxprune.certify.zoo import check, table

TABLE = table.read(Path(__file__).parents[1] / "zoo.csv")


def smallest_of_each_family() -> list[str]:
    """By the file that defines a model; sizes are those of the zoo's table."""
    families = defaultdict(list)
    for spec, row in TABLE.items():
        library, _, name = spec.partition(":")
        if library == "timm" and row.params:
            families[timm.model_entrypoint(name).__module__].append((row.params, spec))
    return sorted(min(models)[1] for models in families.values())


FAMILIES = smallest_of_each_family()


def up_to(millions: float) -> list[object]:
    """The families, those with more parameters marked slow."""
    return [
        pytest.param(s, marks=[pytest.mark.slow] if (TABLE[s].params or 0) > millions else [])
        for s in FAMILIES
    ]


def test_every_family_is_here() -> None:
    modules = {timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert len(FAMILIES) == len(modules)


def certified() -> Iterator[tuple[str, float, bool]]:
    """Yield each family with the share of parameters left, and whether it is slow: a smaller one is quick."""
    slow = {f"timm:{name}" for name in SMALLER}
    assert slow <= {*FAMILIES}
    yield from ((spec, TABLE[spec].params_left, spec in slow) for spec in FAMILIES)
    yield from ((f"smaller_families:{name}", smaller.left, False) for name, smaller in SMALLER.items())


# To copy a result takes as long as to prune it: one quick model in four stands for the others.
COPIED = [spec for spec, _, slow in certified() if not slow][::4]


@pytest.mark.parametrize(
    ("spec", "left"),
    [pytest.param(spec, left, marks=[pytest.mark.slow] * slow) for spec, left, slow in certified()],
)
def test_certified(spec: str, left: float) -> None:
    row = check(spec, brief=True, copied=spec in COPIED)
    assert row.passed, row.note
    assert row.copies == ("right" if spec in COPIED else ""), row.copies
    assert row.params_left is not None
    assert row.params_left == pytest.approx(left, abs=2e-3), "run `make zoo` again"


@pytest.mark.slow
@pytest.mark.parametrize("spec", [spec for spec, _, _ in certified() if spec not in COPIED])
def test_copied(spec: str) -> None:
    row = check(spec, brief=True)
    assert row.copies in ("right", ""), row.copies  # of giants only shapes are known


@pytest.mark.parametrize("spec", up_to(4))
def test_one_training_step_changes_what_it_changes_in_the_original(spec: str) -> None:
    model, size = buildable(spec)
    pruned = fxprune.prune(model.train(), example_inputs=torch.zeros(2, *size))
    remaining = {name for name, _ in pruned.named_parameters()}
    expected = changed_by_a_step(model, size) & remaining
    del model  # with its gradients, before the other has some
    assert len(expected) > len(remaining) / 2
    assert expected <= changed_by_a_step(pruned, size)


@pytest.mark.parametrize("spec", up_to(1))
def test_a_replaced_head_is_saved_and_loaded(spec: str, tmp_path: Path) -> None:
    """The last linear layer is another; of the smallest models, and of all where slow tests run."""
    model, size = buildable(spec)
    pruned = fxprune.prune(model.eval(), example_inputs=torch.zeros(2, *size))
    path = [name for name, m in pruned.named_modules() if type(m) in (nn.Linear, nn.Conv2d)][-1]
    old = pruned.get_submodule(path)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, old.out_features, bias=old.bias is None)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, old.out_channels, 3, old.stride, 1, groups=old.groups, bias=False)
    pruned.set_submodule(path, randomise(new))
    x = torch.randn(2, *size)
    wanted = run(pruned, x)
    fxprune.save(pruned, tmp_path)
    loaded = fxprune.load(tmp_path, model=model)
    assert str(loaded.get_submodule(path)) == str(new)
    assert_same(run(loaded, x), wanted, 0)


def buildable(spec: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The model and its input size; a very large one for small images, if it can be built for them."""
    name = spec.partition(":")[2]
    if (TABLE[spec].params or 0) > 100:
        with contextlib.suppress(TypeError):  # it takes no img_size
            return randomise(timm.create_model(name, img_size=112)), (3, 112, 112)
    model = randomise(timm.create_model(name))
    return model, model.pretrained_cfg["input_size"]


def changed_by_a_step(model: nn.Module, size: tuple[int, ...]) -> set[str]:
    """Names of the parameters that a step of gradient descent moves, rounding errors aside.

    A bias before a batch norm has no effect in train mode: its gradient is noise, and in float64 small.
    """
    torch.manual_seed(0)
    model = model.double()
    torch.set_default_dtype(torch.float64)  # for tensors that the model's code makes on the way
    try:
        outputs = tensors_of(model(torch.randn(2, *size)))
    finally:
        torch.set_default_dtype(torch.float32)
    loss = torch.stack([t.square().mean() for t in outputs]).sum()
    assert loss.isfinite()
    loss.backward()
    steps = {name: p.grad.abs().max().item() for name, p in model.named_parameters() if p.grad is not None}
    return {name for name, step in steps.items() if step > 1e-12 * max(steps.values())}
