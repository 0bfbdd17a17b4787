"""form="module" of a model that takes one batch alone, and of one without numbers."""

from __future__ import annotations

import pytest
import torch
from helpers import images, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import OptionError
from fxprune.result.pruned_module import record_of


class OfThree(nn.Module):
    """An attention whose code says how many samples there are."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(32, 96), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(3, x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore:.*fixes the batch size")
def test_a_batch_that_code_fixes_is_what_an_instance_is_proved_with() -> None:
    model, x = randomise(OfThree().eval()), torch.randn(3, 4, 32)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert type(pruned) is OfThree and not record_of(pruned).dynamic
    assert fxprune.verify(model, pruned) < 1e-8


def test_a_model_on_the_meta_device_is_proved_by_its_trace_or_gets_its_class_back_with_numbers() -> None:
    empty, options = small_vit().to("meta"), {"example_inputs": images().to("meta")}
    assert type(fxprune.prune(empty, 0.5, form="module", **options)) is type(empty)
    options["capture"] = "export"  # is not held against a trace of the class's own code
    with pytest.raises(OptionError, match=r"form='module'.*meta device.*fxprune\.apply"):
        fxprune.prune(empty, 0.5, form="module", **options)
    plan = fxprune.plan_of(fxprune.prune(empty, 0.5, **options))
    pruned = fxprune.apply(small_vit(), plan, form="module")
    assert type(pruned) is type(empty) and fxprune.verify(small_vit(), pruned) < 1e-8
