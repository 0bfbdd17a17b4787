"""What a model takes: recorded by its library, or found by asking the model itself."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from fxprune.capture.trace import example_of
from fxprune.errors import ExampleInputError, UnsupportedModuleError


def recording(model: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def convolutions(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


class Patches(nn.Module):
    """A transformer of its author's own, which keeps neither its image size nor its patch size."""

    def __init__(self, size: int, patch: int, channels: int = 3, extra: int = 1) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, 16, patch, patch)
        self.extra = nn.Parameter(torch.zeros(1, extra, 16)) if extra else None
        self.places = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + extra, 16))
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        if self.extra is not None:
            x = torch.cat([self.extra.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.mix(x + self.places).mean(1))


class FlatPatches(nn.Module):
    """Patches are cut out by a reshape, and read by a linear layer after a norm."""

    def __init__(self, size: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(3 * patch * patch)
        self.embed = nn.Linear(3 * patch * patch, 16)
        self.places = nn.Parameter(torch.zeros((size // patch) ** 2, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        p = self.patch
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)
        return self.head((self.embed(self.norm(x)) + self.places).mean(1))


class Text(nn.Module):
    """A language model, whose table of positions stands before its tokens."""

    def __init__(self, vocabulary: int, longest: int, whole_table: bool = False) -> None:
        super().__init__()
        self.places = nn.Embedding(longest, 16)
        self.tokens = nn.Embedding(vocabulary, 16)
        self.whole_table = whole_table
        self.mix = nn.Linear(16, 32)
        self.head = nn.Linear(32, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        at = torch.arange(self.places.num_embeddings if self.whole_table else ids.shape[1])
        return self.head(self.mix(self.tokens(ids) + self.places(at)).relu())


class Video(nn.Module):
    def __init__(self, frames: int, size: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 16, (2, 8, 8), (2, 8, 8))
        self.places = nn.Parameter(torch.zeros(1, frames // 2 * (size // 8) ** 2, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.embed(x).flatten(2).transpose(1, 2) + self.places).mean(1))


class Sound(nn.Module):
    def __init__(self, bands: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(bands, 16, 3, 2), nn.GELU(), nn.Conv1d(16, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(-1)


class Flattened(nn.Module):
    """A convolutional net that takes one size only, as its linear layer has it."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.head = nn.Linear(4 * size * size, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"pretrained_cfg": {"input_size": (3, 96, 64)}}, (3, 96, 64)),
        ({"default_cfg": SimpleNamespace(input_size=(3, 8, 8))}, (3, 8, 8)),
        ({"config": SimpleNamespace(image_size=32, num_channels=3)}, (3, 32, 32)),
        ({"config": SimpleNamespace(image_size=[64, 32])}, (3, 64, 32)),
        ({"config": SimpleNamespace(image_size={"height": 48, "width": 16})}, (3, 48, 16)),
        ({"config": SimpleNamespace(image_size={"shortest_edge": 40})}, (3, 40, 40)),
        ({"config": SimpleNamespace(vision_config=SimpleNamespace(image_size=56))}, (3, 56, 56)),
        ({"config": SimpleNamespace(), "main_input_name": "pixel_values"}, (3, 224, 224)),
    ],
)
def test_a_recorded_shape(attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    (x,) = example_of(recording(convolutions(), **attributes)).args
    assert x.shape == (2, *shape)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (recording(convolutions(1), pretrained_cfg={"input_size": (3, 40, 40)}), (1, 40, 40)),
        (recording(convolutions(5), config=SimpleNamespace(image_size=40)), (5, 40, 40)),
        (recording(Patches(48, 8), default_cfg={"input_size": (3, 224, 224)}), (3, 48, 48)),
        (recording(Patches(56, 8, 2), config=SimpleNamespace(image_size=32)), (2, 56, 56)),
        (recording(Flattened(28, 1), pretrained_cfg={"input_size": (3, 64, 64)}), (1, 28, 28)),
    ],
)
def test_a_record_that_the_model_contradicts(model: nn.Module, shape: tuple[int, ...]) -> None:
    (x,) = example_of(model).args
    assert x.shape == (2, *shape)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Patches(32, 4), (3, 32, 32)),
        (Patches(48, 16, channels=1, extra=0), (1, 48, 48)),
        (Patches(40, 8, extra=2), (3, 40, 40)),
        (FlatPatches(24, 4), (3, 24, 24)),
        (Flattened(32, 3), (3, 32, 32)),
        (convolutions(), (3, 224, 224)),
        (Video(4, 24), (3, 4, 24, 24)),
        (Sound(20), (20, 256)),
        (nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)), (20,)),
    ],
)
def test_a_shape_recorded_nowhere(model: nn.Module, shape: tuple[int, ...]) -> None:
    (x,) = example_of(model).args
    assert x.shape == (2, *shape)
    model(x)


@pytest.mark.parametrize(
    ("model", "length"),
    [(Text(50, 64), 16), (Text(7, 12), 12), (Text(300, 20, whole_table=True), 20)],
)
def test_token_ids_within_the_vocabulary(model: Text, length: int) -> None:
    (ids,) = example_of(model).args
    assert ids.dtype == torch.long and ids.shape == (2, length)
    assert 0 < ids.max() < model.tokens.num_embeddings
    model(ids)


def test_a_call_that_the_library_holds_ready() -> None:
    ids = torch.tensor([[3, 1, 2], [2, 0, 0]])
    model = recording(Text(50, 64), main_input_name="input_ids", dummy_inputs={"ids": ids})
    example = example_of(model)
    assert example.args == () and example.kwargs["ids"].equal(ids)


MODELS = {
    "timm size": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=48, embed_dim=24, depth=1, num_heads=2, num_classes=5
    ),
    "timm channels": lambda: timm.create_model("resnet10t", in_chans=2, num_classes=5),
    "timm windows": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(1, 2),
    ),
    "timm mixer": lambda: timm.models.mlp_mixer.MlpMixer(
        img_size=96, in_chans=1, patch_size=16, embed_dim=16, num_blocks=1, num_classes=5
    ),
    "torchvision": lambda: torchvision.models.VisionTransformer(64, 16, 1, 2, 24, 48, num_classes=5),
    "text": lambda: Text(30, 40),
    "video": lambda: Video(6, 16),
    "sound": lambda: Sound(12),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_one_call_is_exact_and_quiet(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = MODELS[name]().eval()
    pruned = fxprune.prune(model, 0.5)
    assert fxprune.verify(model, pruned) < 1e-8
    assert capfd.readouterr() == ("", "")


def test_a_rejected_size_leaves_no_stack_trace(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Patches(48, 8)
    with caplog.at_level(logging.ERROR, "torch._subclasses.fake_tensor"), pytest.raises(ExampleInputError):
        fxprune.prune(model, example_inputs=torch.zeros(2, 3, 32, 32))
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
    with pytest.raises(RuntimeError), torch._subclasses.FakeTensorMode() as mode:  # others still hear of it
        mode.from_tensor(torch.zeros(3)) + mode.from_tensor(torch.zeros(4))
    assert "failed while attempting to run meta" in caplog.text


def test_a_recorded_example_in_the_models_dtype() -> None:
    image, ids = torch.zeros(3, 8, 8), torch.zeros(2, dtype=torch.long)
    model = recording(nn.Linear(4, 4), example_input_array=([image], ids)).bfloat16()
    (images, again) = example_of(model).args
    assert images[0].dtype == torch.bfloat16 and images[0].shape == (3, 8, 8)
    assert again.dtype == torch.long

    by_name = example_of(recording(nn.Linear(4, 4), example_input_array={"x": image}))
    assert by_name.args == () and set(by_name.kwargs) == {"x"}


def test_what_is_found_has_the_models_dtype() -> None:
    (x,) = example_of(Patches(32, 8).bfloat16()).args
    assert x.dtype == torch.bfloat16


def test_given_inputs_come_first() -> None:
    given = torch.ones(1, 5)
    (x,) = example_of(recording(nn.Linear(4, 4), example_input_array=torch.zeros(9)), given).args
    assert x is given


def test_looking_leaves_the_model_as_it_was() -> None:
    class Counting(Patches):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            return super().forward(x)

    model = Counting(40, 8).train()
    before = dict(vars(model))
    example_of(model)
    assert vars(model) == before and model.training and not model._forward_pre_hooks


class Unknown(nn.Module):
    """Takes what nobody would guess."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 71:
            raise ValueError("no, not this one")
        return self.first(x)


class TwoInputs(Text):
    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(ids) * scale


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (Unknown(nn.Conv2d(2, 8, 3)), "example_inputs=torch.zeros(2, 2, 224, 224)"),
        (Unknown(nn.Conv3d(3, 8, 3)), "example_inputs=torch.zeros(2, 3, 8, 224, 224)"),
        (Unknown(nn.Conv1d(80, 8, 3)), "example_inputs=torch.zeros(2, 80, 1024)"),
        (Unknown(nn.Embedding(9, 8)), "example_inputs=torch.zeros(2, 16, dtype=torch.long)"),
        (Unknown(nn.Linear(6, 8)), "example_inputs=torch.zeros(2, 6)"),
        (nn.Linear(4, 4), "example_inputs=torch.zeros(2, 4) or torch.zeros(2, 16, 4)"),
        (Unknown(nn.ReLU()), "pass example_inputs="),
        (
            TwoInputs(9, 8),
            "takes ids, scale: pass example_inputs=(torch.zeros(2, 16, dtype=torch.long), scale)",
        ),
    ],
)
def test_a_hint_for_every_kind_of_input(model: nn.Module, hint: str) -> None:
    with pytest.raises(ExampleInputError, match=re.escape(hint)):
        fxprune.prune(model)


class WithoutInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents, self.layer = nn.Parameter(torch.ones(2, 8)), nn.Linear(8, 4)

    def forward(self) -> Tensor:
        return self.layer(self.latents)


def test_a_model_or_an_example_without_inputs() -> None:
    with pytest.raises(ExampleInputError, match=r"WithoutInputs\.forward takes no arguments"):
        fxprune.prune(WithoutInputs())
    for nothing in ((), ([],)):
        with pytest.raises(ExampleInputError, match="hold nothing"):
            fxprune.prune(WithoutInputs(), example_inputs=nothing)


def test_a_hook_of_the_users_is_refused_before_it_runs() -> None:
    model = Patches(48, 8)
    model.mix.register_forward_hook(lambda *a: pytest.fail("ran"))
    with pytest.raises(UnsupportedModuleError, match="mix"):
        fxprune.prune(model)
