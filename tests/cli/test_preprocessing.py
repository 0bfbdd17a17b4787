"""Images are normalised as the model's makers recorded: timm's record, an image processor, or options."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import draw_classes, randomise
from PIL import Image
from safetensors.torch import save_file

import fxprune
from fxprune.cli.app import run
from fxprune.cli.preprocessing import preprocessing_of
from fxprune.cli.transforms import transform_of
from fxprune.errors import DataError

transformers = pytest.importorskip("transformers")

PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 2,
    "size": {"height": 32, "width": 32},
}
TRAIN = ("--batch", "4", "--epochs", "1", "--ratio", "0.25", "-q")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Hugging Face's with its image processor, and images of two classes."""
    folder = tmp_path_factory.mktemp("preprocessing")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    draw_classes(folder / "train", 4)
    return folder


def evaluated(folder: Path | str, place: Path, capsys: Any, *more: str) -> str:
    capsys.readouterr()
    assert run(["evaluate", str(folder), "--data", str(place / "train"), "--json", "-q", *more]) == 0
    transform: str = json.loads(capsys.readouterr().out)["transform"]
    return transform


@pytest.mark.slow
def test_an_image_processor_is_followed_and_kept(place: Path, tmp_path: Path, capsys: Any) -> None:
    """By pruning, training, and whatever reads the folder afterwards."""
    wanted = "ViTImageProcessor, mean 0.1/0.2/0.3, std 0.4/0.5/0.6 (of preprocessor_config.json)"
    trained = "bilinear, random crops, mean 0.1/0.2/0.3, std 0.4/0.5/0.6 (of preprocessor_config.json)"
    model, data = f"hf:{place / 'vit'}", ("--data", str(place / "train"))
    assert wanted in evaluated(model, place, capsys, "--pretrained")
    assert run(["prune", model, "--pretrained", "--out", str(tmp_path / "half"), *data]) == 0
    assert wanted in capsys.readouterr().err
    assert wanted in evaluated(tmp_path / "half", place, capsys)
    line = ["finetune", str(tmp_path / "half"), *data, "--kl", "0", "--batch", "4", "--epochs", "1"]
    assert run([*line, "--out", str(tmp_path / "tuned")]) == 0
    assert trained in capsys.readouterr().err
    assert wanted in evaluated(tmp_path / "tuned", place, capsys)
    again = transformers.ViTImageProcessor.from_pretrained(tmp_path / "tuned")
    assert list(again.image_mean) == PROCESSOR["image_mean"]


@pytest.mark.slow
def test_options_come_first_and_are_kept(place: Path, tmp_path: Path, capsys: Any) -> None:
    line = ["prune", f"hf:{place / 'vit'}", "--pretrained", "--out", str(tmp_path / "half"), "-q"]
    assert run([*line, "--data", str(place / "train"), "--mean", "0.25", "--std", "0.5,0.5,0.25"]) == 0
    found = evaluated(tmp_path / "half", place, capsys)
    assert "ViTImageProcessor" in found and "mean 0.25/0.25/0.25, std 0.5/0.5/0.25" in found
    assert "mean 0.75/0.5/0.25" in evaluated(tmp_path / "half", place, capsys, "--mean", "0.75,0.5,0.25")
    assert run(["evaluate", str(tmp_path / "half"), "--data", str(place / "train"), "--mean", "0.4,0.5"]) == 1
    assert "--mean 0.4,0.5: the model's images have 3 channels" in capsys.readouterr().err
    assert run([*line, "--mean", "grey"]) == 2
    assert run([*line, "--std", "0"]) == 2


@pytest.mark.slow
def test_another_model_in_the_folder_leaves_no_processor(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(["prune", f"hf:{place / 'vit'}", "--pretrained", "--out", str(tmp_path / "out"), "-q"]) == 0
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    assert run(["prune", "timm:test_vit", "--out", str(tmp_path / "out"), "-q"]) == 0
    assert "recorded with the model" in evaluated(tmp_path / "out", place, capsys, "--batch", "2")


def test_a_record_in_the_configuration_of_a_wrapped_model() -> None:
    model = torch.nn.Identity()
    model.config = SimpleNamespace(pretrained_cfg={"mean": (0.1,) * 3, "std": (0.2,) * 3})  # type: ignore[assignment]
    found = preprocessing_of("hf:some", model)
    assert (found.config["mean"], found.config["std"]) == ((0.1,) * 3, (0.2,) * 3)
    assert found.origin == "recorded with the model"


@pytest.mark.parametrize(
    ("changed", "mean", "std"),
    [
        ({}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({"do_normalize": False}, (0.0,), (1.0,)),
        ({"rescale_factor": 2 / 255}, (0.05, 0.1, 0.15), (0.2, 0.25, 0.3)),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [255.0]}, (0.5,), (1.0,)),
    ],
)
def test_pixels_as_timm_counts_them(changed: Any, mean: Any, std: Any, tmp_path: Path) -> None:
    """From 0 to 1, whatever the processor multiplies them by first."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **changed}))
    found = preprocessing_of(str(tmp_path), torch.nn.Identity()).config
    assert found["mean"] == pytest.approx(mean) and found["std"] == pytest.approx(std)


@pytest.mark.parametrize(
    ("size", "crop", "share", "mode"),
    [
        ({"height": 32, "width": 32}, {}, 1.0, "squash"),
        ({"shortest_edge": 256}, {"do_center_crop": True, "crop_size": {"height": 224}}, 0.875, "center"),
        (32, {}, 1.0, "squash"),
    ],
)
def test_what_is_cropped(size: Any, crop: Any, share: float, mode: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": size, **crop}))
    found = preprocessing_of(str(tmp_path), torch.nn.Identity()).config
    assert (found["crop_pct"], found["crop_mode"]) == (share, mode)


# What a file leaves out of what is done, or timm's transforms can't do.
MORE = [
    ("ViT", {"size": 48}),
    ("EfficientNet", {"rescale_offset": True, "size": {"height": 60, "width": 60}, "do_center_crop": True,
                      "crop_size": {"height": 48, "width": 48}}),
    ("Levit", {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}),
    ("ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 0.8}),
    ("ConvNext", {"size": {"shortest_edge": 400}}),
    ("MobileViT", {"size": {"shortest_edge": 54}, "crop_size": {"height": 48, "width": 48}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), MORE)
def test_a_processor_is_run_as_it_is(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """To judge; for training its colours are measured: a photo of one colour is the same both ways."""
    own = getattr(transformers, f"{kind}ImageProcessor")(**settings)
    own.save_pretrained(tmp_path)
    pixels = preprocessing_of(str(tmp_path), torch.nn.Identity())
    photo = draw((61, 90))
    wanted = own(images=photo, return_tensors="pt")["pixel_values"][0]
    judged, _ = transform_of(pixels, tuple(wanted.shape))
    assert torch.equal(judged(photo), wanted)
    trained, _ = transform_of(pixels, tuple(wanted.shape), {"color_jitter": 0.0})
    flat = draw((61, 90), (200, 90, 30))
    y, x = (s // 2 for s in wanted.shape[1:])
    seen = (own(images=flat, return_tensors="pt")["pixel_values"][0], trained(flat))
    torch.testing.assert_close(*(one[:, y, x] for one in seen), atol=1e-4, rtol=1e-4)


def test_a_processor_for_another_size(tmp_path: Path) -> None:
    """Its sizes in proportion; it is refused where it has none."""
    transformers.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=32).save_pretrained(tmp_path)
    pixels = preprocessing_of(str(tmp_path), torch.nn.Identity())
    own = transformers.DeiTImageProcessor(size={"height": 80, "width": 80}, crop_size=64)
    photo = draw((61, 90))
    wanted = own(images=photo, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(transform_of(pixels, (3, 64, 64))[0](photo), wanted)
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is that of the photo"):
        transform_of(preprocessing_of(str(tmp_path), torch.nn.Identity()), (3, 64, 64))


def test_numbers_that_a_processor_would_not_follow(tmp_path: Path) -> None:
    transformers.EfficientNetImageProcessor().save_pretrained(tmp_path)
    pixels = preprocessing_of(str(tmp_path), torch.nn.Identity(), (0.5,), (0.5,))
    with pytest.raises(DataError, match=r"EfficientNetImageProcessor\) has settings of its own"):
        transform_of(pixels, (3, 48, 48))


def test_a_file_that_names_no_class_says_what_is_understood(tmp_path: Path) -> None:
    for more, name in (({"include_top": True}, "include_top"), ({"do_resize": False}, "do_resize")):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **more}))
        with pytest.raises(DataError, match=f"says {name}, and not which class"):
            preprocessing_of(str(tmp_path), torch.nn.Identity())


def draw(size: tuple[int, int], colour: tuple[int, ...] | None = None) -> Image.Image:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise if colour is None else np.full_like(noise, colour))


def test_the_source_is_not_overwritten(place: Path, tmp_path: Path, capsys: Any) -> None:
    """By whatever name it is given."""
    dense = randomise(timm.create_model("test_vit").eval())
    save_file(dense.state_dict(), tmp_path / "dense.safetensors")
    fxprune.save(fxprune.prune(dense, 0.25), tmp_path / "half")
    before = {path.name: path.read_bytes() for path in (tmp_path / "half").iterdir()}
    half, data = str(tmp_path / "half"), ("--data", str(place / "train"))
    (tmp_path / "link").symlink_to(tmp_path / "half")
    own = ("--checkpoint", str(tmp_path / "dense.safetensors"))
    for line in (
        ["prune", half, "--out", half],
        ["finetune", half, *data, "--kl", "0", "--out", str(tmp_path / "link")],
        ["finetune", "timm:test_vit", *own, *data, "--teacher", half, "--out", f"{tmp_path}/./half"],
    ):
        capsys.readouterr()
        assert run([*line, "-q"]) == 2
        assert "is the folder that is read, and would be lost: give another" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "half").iterdir()}
