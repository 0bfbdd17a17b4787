"""What a model takes, found where the ecosystem records it: no `example_inputs` needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.capture.trace import example_of
from fxprune.errors import ExampleInputError


def recording(**attributes: Any) -> nn.Module:
    model = nn.Linear(4, 4)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"pretrained_cfg": {"input_size": (3, 96, 64)}}, (3, 96, 64)),
        ({"default_cfg": SimpleNamespace(input_size=(1, 8, 8))}, (1, 8, 8)),
        ({"config": SimpleNamespace(image_size=32, num_channels=4)}, (4, 32, 32)),
        ({"config": SimpleNamespace(image_size=[64, 32])}, (3, 64, 32)),
        ({"config": SimpleNamespace(image_size={"height": 48, "width": 16})}, (3, 48, 16)),
        ({"config": SimpleNamespace(vision_config=SimpleNamespace(image_size=56))}, (3, 56, 56)),
        ({"config": SimpleNamespace(), "main_input_name": "pixel_values"}, (3, 224, 224)),
    ],
)
def test_a_recorded_shape(attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    (x,) = example_of(recording(**attributes)).args
    assert x.shape == (2, *shape)


def test_a_recorded_example_in_the_models_dtype() -> None:
    image, ids = torch.zeros(3, 8, 8), torch.zeros(2, dtype=torch.long)
    model = recording(example_input_array=([image], ids)).bfloat16()
    (images, again) = example_of(model).args
    assert images[0].dtype == torch.bfloat16 and images[0].shape == (3, 8, 8)
    assert again.dtype == torch.long

    by_name = example_of(recording(example_input_array={"x": image}))
    assert by_name.args == () and set(by_name.kwargs) == {"x"}


def test_given_inputs_come_first() -> None:
    given = torch.ones(1, 5)
    (x,) = example_of(recording(example_input_array=torch.zeros(9)), given).args
    assert x is given


def test_nothing_recorded_says_what_to_do() -> None:
    with pytest.raises(ExampleInputError, match="pass example_inputs="):
        example_of(nn.Linear(4, 4))
