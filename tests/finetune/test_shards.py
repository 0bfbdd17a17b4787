"""Weights in parts, as FSDP2 leaves them, in a group of one: losses find them; what can't be is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fxprune
from fxprune.errors import TrainingError
from fxprune.finetune import shards

pytest.importorskip("accelerate")
sys.path.insert(0, str(Path(__file__).parent))

import run_for_tests as small


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # layers return views; nothing writes into them
@pytest.mark.parametrize("form", ["graph", "module"])
@pytest.mark.parametrize("units", [(), (nn.Linear, nn.LayerNorm)], ids=["one", "layers"])
def test_a_loop_of_ones_own(units: Any, form: str) -> None:
    """`fully_shard` after `Distillation`: losses and gradients are those of the whole student."""
    student, teacher = small.models(0.0, form)
    batch = torch.randn(3, 3, 16, 16), torch.tensor([0, 4, 1])
    whole = copy.deepcopy(student)
    wanted = fxprune.Distillation(whole, teacher, hidden=0.5)(batch)
    wanted.total.backward()

    distillation = fxprune.Distillation(student, teacher, hidden=0.5)
    for module in [m for m in student.modules() if isinstance(m, units)]:
        fully_shard(module)
    fully_shard(student)
    found = distillation(batch)
    found.total.backward()
    for name, value in wanted.parts.items():
        torch.testing.assert_close(found.parts[name], value)
    gradients = {name: p.grad for name, p in student.named_parameters()}
    assert all(isinstance(g, DTensor) for g in gradients.values())
    for name, p in whole.named_parameters():
        torch.testing.assert_close(gradients[name].full_tensor(), p.grad)
    fresh = small.models(0.0, form)[0]
    shards.take_whole(fresh, student)
    assert all(torch.equal(t, whole.state_dict()[name]) for name, t in fresh.state_dict().items())


def test_an_average_is_checkpointed_whole() -> None:
    from timm.utils import ModelEmaV3

    student, _ = small.models()
    average = ModelEmaV3(student, decay=0.5)
    wanted = small.weights(student)
    fully_shard(average.module)
    whole = shards.WholeAverage(average)
    held = whole.state_dict()
    assert all(
        torch.equal(held[name], t) and not isinstance(held[name], DTensor) for name, t in wanted.items()
    )
    whole.load_state_dict({name: t + 1 if t.is_floating_point() else t for name, t in held.items()})
    assert torch.equal(whole.state_dict()["head.weight"], wanted["head.weight"] + 1)


def test_a_unit_that_the_graph_never_calls_is_refused() -> None:
    """Its weights would never be whole; an instance of the model's own class calls it."""
    student, _ = small.models()
    student.get_submodule("blocks.0").forward = lambda x: x  # else torch refuses it, as a holder of others
    fully_shard(student.get_submodule("blocks.0"))
    fully_shard(student)
    with pytest.raises(
        TrainingError, match=r"would shard blocks\.0 on its own, and the graph never calls it"
    ):
        shards.refuse_uncalled_units(student)
    own, _ = small.models(form="module")
    fully_shard(own.get_submodule("blocks.0"))
    shards.refuse_uncalled_units(own)


def test_processes_that_would_train_alone_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    student, teacher = small.models()
    with pytest.raises(TrainingError, match=r"2 processes were started together.*ACCELERATE_USE_CPU=1"):
        fxprune.distill(student, teacher, small.loader(), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
