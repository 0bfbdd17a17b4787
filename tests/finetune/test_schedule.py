"""Numbers that a schedule would not read are refused; those that it reads are not."""

from __future__ import annotations

from typing import Any

import pytest

import fxprune
from fxprune.errors import OptionError
from fxprune.finetune.schedule import refuse_idle_numbers


@pytest.mark.parametrize(
    "options",
    [
        *({"sched": name} for name in ("constant", "none", "tanh", "poly", "wsd", "cosine")),
        *(
            {"sched": "rsqrt", "warmup": 0.5},
            {"warmup": 0.01},
            {"warmup": 3.0},
            {"min_lr": 0.0},
            {"min_lr": 5e-4},
            {"lr": 1e-6},
        ),
        *({"sched": "constant", "warmup": 0.5}, {"sched": "constant", "warmup": 0.5, "min_lr": 1e-4}),
        *({"sched": "step", "epochs": 100}, {"sched": "multistep", "epochs": 91}, {"epochs": 1}),
    ],
)
def test_what_a_schedule_reads(options: dict[str, Any]) -> None:
    refuse_idle_numbers(fxprune.Training(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sched": "step", "epochs": 90}, "keeps the learning rate as it is for 90 epochs"),
        ({"sched": "multistep", "warmup": 1.0}, "keeps the learning rate"),
        ({"sched": "constant", "min_lr": 1e-4}, "min_lr=0.0001 has no effect"),
        ({"sched": "none", "warmup": 0.5}, "warmup=0.5 has no effect"),
        ({"sched": "step", "epochs": 100, "min_lr": 1e-4}, "min_lr=0.0001 has no effect"),
        ({"sched": "plateau"}, "timm: "),
        ({"sched": "rsqrt"}, "timm: "),
        ({"sched": "no such"}, "timm: "),
    ],
)
def test_what_it_does_not_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        refuse_idle_numbers(fxprune.Training(**options))
