"""What others read on a model is on its result: labels, classes, timm's record, lists of blocks, notes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from helpers import images, randomise, small_hf_vit
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune


class Labelled(nn.Module):
    """A network with numbers and labels of its own."""

    outputs = 5

    def __init__(self, again: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.again, self.reentrant = again, reentrant
        self.width, self.classes = 16, 5
        self.names, self.title = {i: f"class {i}" for i in range(5)}, "flowers"
        self.stem = nn.Linear(8, 16)
        self.stages = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16)) for _ in range(3))
        )
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = x + (checkpoint(stage, x, use_reentrant=self.reentrant) if self.again else stage(x))
        return self.out(x)

    def no_weight_decay(self) -> set[str]:
        return {"stem.weight", "stages.2.0.weight"}


X = torch.randn(3, 8)
COPIES: dict[str, Any] = {
    "result": lambda m: m,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pruned again": lambda m: fxprune.prune(m, 0.3),
}


@pytest.mark.parametrize("way", COPIES)
def test_facts_travel_and_widths_do_not(capture: str, way: str) -> None:
    pruned = COPIES[way](fxprune.prune(randomise(Labelled()), 0.5, example_inputs=X, capture=capture))
    assert pruned.classes == pruned.outputs == 5
    assert pruned.names[3] == "class 3" and pruned.title == "flowers"
    assert not hasattr(pruned, "width")
    assert pruned.no_weight_decay() == {"stem.weight", "stages.2.0.weight"}
    assert {*pruned.no_weight_decay()} <= {*pruned.state_dict()}


def test_a_number_that_is_a_width_too_is_left_out() -> None:
    model = randomise(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 5)))
    model.classes = 5
    assert not hasattr(fxprune.prune(model, 0.5, example_inputs=X), "classes")


def test_blocks_are_a_list() -> None:
    model = randomise(Labelled())
    pruned: Any = fxprune.prune(model, 0.5, example_inputs=X)
    for clone in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert len(clone.stages) == 3
        assert clone.stages[-1] is [*clone.stages][2]
        assert list(clone.state_dict()) == list(model.state_dict())
    assert fxprune.verify(model, pruned) < 1e-8


def test_timms_record_is_of_this_model() -> None:
    model = randomise(timm.create_model("test_vit", num_classes=5, img_size=32))
    pruned = fxprune.prune(model, 0.5, example_inputs=images())
    config = timm.data.resolve_model_data_config(pruned)
    assert config["input_size"] == tuple(images().shape[1:])
    assert config["mean"] == timm.data.resolve_model_data_config(model)["mean"]
    assert pruned.num_classes == pruned.pretrained_cfg["num_classes"] == 5
    groups = [
        {
            name
            for group in create_optimizer_v2(m, "adamw", weight_decay=0.1).param_groups
            for name, p in m.named_parameters()
            if group["weight_decay"] and any(p is q for q in group["params"])
        }
        for m in (model, pruned)
    ]
    assert groups[0] == groups[1]


def test_labels_of_a_configuration() -> None:
    model = small_hf_vit()
    model.config.id2label = {i: f"kind {i}" for i in range(len(model.config.id2label))}
    pruned: Any = fxprune.prune(model, 0.5, example_inputs=images())
    assert pruned.id2label == model.config.id2label
    assert not hasattr(pruned, "config")


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_noted(capture: str, reentrant: bool) -> None:
    model = randomise(Labelled(again=True, reentrant=reentrant))
    notes = fxprune.analyze(model, example_inputs=X, capture=capture).notes
    assert [n for n in notes if "gradient checkpointing" in n]
    assert not fxprune.analyze(randomise(Labelled()), example_inputs=X, capture=capture).notes
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=X, capture=capture)) < 1e-8
