"""README's code runs as it stands: each block and command, on small models in place of the large ones."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import images, small_hf_vit, small_swin
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxprune
from fxprune.cli.app import app, run
from fxprune.result.saved import model_specs

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    [
        command.strip()
        for line in text.splitlines()
        if line.startswith("fxprune ")
        for command in line.partition("  #")[0].split("&&")
    ]
    for language, text in BLOCKS
    if not language and "fxprune " in text
]
SMALL = "test_vit"
CREATE = timm.create_model
TRAINING = fxprune.Training

# The images that the commands speak of: how many where.
PLACES = {
    "images": 2,
    "imagenet/val/3": 2,
    "imagenet/val/7": 2,
    "imagenet/train/3": 16,
    "imagenet/train/7": 16,
    "flowers/daisy": 16,
    "flowers/rose": 16,
}


def small(name: str, **options: Any) -> nn.Module:
    """Whatever name README uses, a small model of the library that is built by the name again."""
    return CREATE(SMALL, **{k: v for k, v in options.items() if k != "pretrained"})


def vit(width: int, heads: int) -> nn.Module:
    return VisionTransformer(img_size=160, embed_dim=width, num_heads=heads, depth=2, num_classes=10).eval()


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What README's blocks speak of; they share their names in the order in which they stand."""
    features = small_swin()
    features.head = nn.Identity()
    return {
        "fxprune": fxprune,
        "deit_base": vit(96, 4),
        "deit_tiny": vit(48, 2),
        "batches": [images(4, 160), images(4, 160)],
        "labelled": [(images(4, 160), torch.arange(4)), (images(4, 160), torch.arange(4))],
        "torch": torch,
        "train": lambda pruned, step: None,
        "other": small(SMALL),
        "hf_model": small_hf_vit(),
        "images": images(2, 160),
        "backbone": features,
    }


@pytest.fixture
def in_a_new_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("readme")
    monkeypatch.chdir(place)
    monkeypatch.setattr(timm, "create_model", small)
    yield place


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(
    number: int, names: dict[str, Any], in_a_new_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Statement by statement; a latency is no budget on a machine that does other things as well."""
    for earlier in PYTHON[: 1 if number else 0]:
        if "model" not in names:
            exec(compile(earlier, "README.md", "exec"), names)
    monkeypatch.setattr(fxprune, "Latency", lambda **options: "params")
    monkeypatch.setattr(fxprune, "Training", lambda **options: TRAINING(**options | {"epochs": 1}))
    if "vit.onnx" in PYTHON[number]:  # of the commands before it
        assert run(["export", "timm:any", "--onnx", "vit.onnx", "-q"]) == 0, capsys.readouterr().err
    for statement in ast.parse(PYTHON[number]).body:
        text = ast.unparse(statement)
        if ".svg" in text and shutil.which("dot") is None and "coupling" not in text:
            continue  # needs graphviz; tests/show says so
        exec(compile(ast.Module([statement], []), "README.md", "exec"), names)


def test_the_table_is_what_analyze_prints() -> None:
    (table,) = (text for language, text in BLOCKS if not language and text.startswith("group "))
    printed = str(fxprune.analyze(CREATE("deit_tiny_patch16_224"))).splitlines()
    shown = table.splitlines()
    assert shown[-1] == "..."
    assert printed[: len(shown) - 1] == shown[:-1]


@pytest.mark.parametrize("command", [*itertools.chain.from_iterable(COMMANDS)])
def test_a_command_and_its_options_are_known(command: str, in_a_new_folder: Path) -> None:
    program, name, *arguments = shlex.split(command)
    assert program == "fxprune"
    for place in PLACES:
        (in_a_new_folder / place).mkdir(parents=True)
    assert app.commands[name].make_context(name, arguments).params


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(COMMANDS[0], id="prune"),
        pytest.param(
            COMMANDS[1], id="finetune", marks=pytest.mark.slow
        ),  # tests/cli/test_finetune.py runs it
    ],
)
def test_the_commands_in_turn(
    commands: list[str],
    in_a_new_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    monkeypatch.setattr(
        model_specs, "build", lambda spec, **options: small(spec, pretrained=options.get("pretrained")).eval()
    )
    for place, count in PLACES.items():
        (in_a_new_folder / place).mkdir(parents=True)
        for i in range(count):
            Image.effect_noise((40, 40), 60).save(in_a_new_folder / place / f"{i}.png")
    assert len(commands) > 4
    for command in commands:
        assert run(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    assert len([*in_a_new_folder.glob("*.onnx")]) == 1
    assert all(file.stat().st_size > 1000 for file in in_a_new_folder.glob("*.onnx"))


def test_every_command_is_named() -> None:
    (listed,) = re.findall(r"^Commands: (.*?), on a model", README, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == [*app.commands]


def test_an_analysis_of_the_first_block_needs_no_weights() -> None:
    """The first screen's promise: no example inputs, nothing downloaded."""
    assert "pretrained" not in PYTHON[0]
    assert "example_inputs" not in PYTHON[0]
    assert torch.is_tensor(small(SMALL)(torch.zeros(1, 3, 160, 160)))
