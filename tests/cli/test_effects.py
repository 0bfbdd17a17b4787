"""Every option of every command, on a model and on a folder: it has an effect, or it is refused in one line.

What the commands call is replaced by recorders: an option has an effect if another call is made, or another
text is printed, than without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import safetensors.torch
import timm
import torch
from helpers import mlp, randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.cli.app import app, run
from fxprune.cli.images import Labelled
from fxprune.finetune.estimate import Estimate
from fxprune.graph.example import Example
from fxprune.result.saved import model_specs
from fxprune.result.saved.onnx_file import OnnxFile
from fxprune.show.reports.accuracy import Accuracy

NAME = "test_convnext"
MODEL = f"timm:{NAME}"

BASE = {
    "prune": ["--out", "out"],
    "inspect": [],
    "explain": ["stem"],
    "draw": ["picture.html"],
    "verify": [],
    "evaluate": ["--data", "photos"],
    "bench": [],
    "export": ["--onnx", "model.onnx"],
    "finetune": ["--data", "photos", "--out", "tuned", "--checkpoint", "dense.safetensors"],
}
# What each option is given, where it is no flag.
VALUES = {
    "out": "other",
    "onnx": "other.onnx",
    "ratio": "0.25",
    "target": "macs",
    "like": MODEL,
    "form": "module",
    "scope": "global",
    "depth": "0.25",
    "data": "others",
    "images": "3",
    "basis": "given",
    "importance": "random",
    "attention": "heads",
    "exclude": "stem",
    "ratios": "stages.0=0.25",
    "steps": "2",
    "floor": "4",
    "round_to": "8",
    "outputs": "prune",
    "model": MODEL,
    "checkpoint": "weights.safetensors",
    "input_size": "3,64,64",
    "capture": "symbolic",
    "device": "meta",
    "view": "coupling",
    "modules": "stages.0",
    "batch": "4",
    "threads": "1",
    "runs": "2",
    "mean": "0.5",
    "std": "0.25",
    "val": "others",
    "workers": "1",
    "augment": "rand-m9",
    "erase": "0.25",
    "every": "2",
    "log_with": "tensorboard",
    "epochs": "3",
    "lr": "0.1",
    "min_lr": "0.1",
    "warmup": "0.5",
    "opt": "sgd",
    "sched": "poly",
    "weight_decay": "0.1",
    "clip": "2.0",
    "kl": "0.5",
    "hidden": "0.5",
    "mixup": "0.5",
    "cutmix": "0.5",
    "smoothing": "0.5",
    "ema": "0.5",
    "accumulation": "2",
    "precision": "bf16",
    "seed": "1",
}
OF_MODELS = {"pretrained", "checkpoint", "input_size", "capture"}
# (command, what it is about) -> the options that would do nothing there; every other one does something.
REFUSED = {
    ("prune", "model"): {"model", "images", "basis", "no_refit", "mean", "std"},
    ("prune", "folder"): OF_MODELS | {"images", "basis", "no_refit", "mean", "std"},
    ("inspect", "model"): {"model"},
    ("inspect", "folder"): OF_MODELS,
    ("explain", "model"): {"model"},
    ("explain", "folder"): OF_MODELS,
    ("draw", "model"): {"model"},
    ("draw", "folder"): OF_MODELS,
    ("verify", "folder"): set(),
    ("evaluate", "model"): {"model"},
    ("evaluate", "folder"): {"ratio", "input_size"},
    ("bench", "model"): {"model"},
    ("bench", "folder"): OF_MODELS | {"ratio"},
    ("export", "model"): {"model"},
    ("export", "folder"): OF_MODELS - {"capture"},
    ("finetune", "model"): {"model", "pretrained"},  # beside --checkpoint
    ("finetune", "folder"): {"ratio", "steps", "input_size", "pretrained"},
}
# What changes how an error looks, and what goes with other options only: test_cli.py and test_teaching.py.
UNSEEN = {"debug", "teacher", "teacher_checkpoint", "new_head"}
PAIRS = [
    (command, subject, option.name)
    for command, subject in REFUSED
    for option in app.commands[command].params
    if isinstance(option, click.Option) and option.name not in UNSEEN
]
# Two options that do not go together, and the one that is named.
TOGETHER = [
    (command, ["--pretrained", "--checkpoint", "weights.safetensors"], "--pretrained")
    for command in ("prune", "inspect", "explain", "draw", "evaluate", "bench", "export")
] + [("prune", ["--like", MODEL, "--ratio", "0.5"], "--ratio")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A folder to be about, and real results for the recorders to hand out."""
    folder = tmp_path_factory.mktemp("effects")
    dense = randomise(timm.create_model(NAME).eval())
    pruned = fxprune.prune(dense, 0.5)
    fxprune.save(pruned, folder / "half", build=MODEL)
    safetensors.torch.save_file(dense.state_dict(), folder / "dense.safetensors")
    other = randomise(timm.create_model(NAME).eval(), seed=1)
    safetensors.torch.save_file(other.state_dict(), folder / "weights.safetensors")
    for name in ("photos", "others"):
        (folder / name).mkdir()
    analysis = fxprune.analyze(dense)
    yield {
        "folder": folder,
        "prune": pruned,
        "load": pruned,
        "save": None,
        "save_with_images": None,
        "draw": None,
        "analyze": analysis,
        "explain": fxprune.explain(analysis, "stem"),
        "report": fxprune.report(dense, pruned),
        "batches_from": ([torch.zeros(2, 3, 8, 8)], "as they are"),
        "write_onnx": OnnxFile(Path("model.onnx"), {}, {}, 0.0),
        "distill": fxprune.Trained([{"epoch": 1, "loss": 0.5}], 1),
        "prune_and_distill": pruned,
        "training_images": ([torch.zeros(2, 3, 8, 8)], "as they are"),
        "estimate": Estimate(2, 2, 3.0, 2.0, 4.0, 4),
        "_logged": [{"epoch": 1, "loss": 0.5}],
        "check_rewrite": fxprune.Certificate(0.0),
        "check_weights": fxprune.Certificate(0.0),
    }


class Commands:
    """Runs commands, and tells what they called and printed."""

    def __init__(self, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.capsys, self.calls = capsys, []
        monkeypatch.chdir(made["folder"])
        shared = ("prune", "load", "save", "draw", "analyze", "explain", "report")
        for name in (*shared, "distill", "prune_and_distill"):
            monkeypatch.setattr(fxprune, name, self.recorder(name, made[name]))
        own = [("prune", "batches_from"), ("export", "write_onnx")]
        own += [("verify", "check_rewrite"), ("verify", "check_weights")]
        own += [("prune", "save_with_images"), ("finetune", "save_with_images")]
        own += [("finetune", name) for name in ("training_images", "estimate", "_logged")]
        for module, name in own:
            file = importlib.import_module(f"fxprune.cli.{module}")
            monkeypatch.setattr(file, name, self.recorder(name, made[name]))
        evaluate = importlib.import_module("fxprune.cli.evaluate")
        monkeypatch.setattr(evaluate, "labelled_images", self.labelled_images)
        finetune = importlib.import_module("fxprune.cli.finetune")
        monkeypatch.setattr(finetune, "labelled_images", self.labelled_images)
        monkeypatch.setattr(evaluate, "accuracies", self.accuracies)
        monkeypatch.setattr(model_specs, "build", self.build)

    def recorder(self, name: str, result: Any) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, described((args, kwargs)))) or result

    def build(self, spec: str, **options: Any) -> nn.Module:
        self.calls.append(("build", f"{spec} {options}"))
        torch.manual_seed(0)
        return timm.create_model(spec.removeprefix("timm:"))

    def labelled_images(self, *arguments: Any) -> Labelled:
        self.calls.append(("labelled_images", described(arguments)))
        return Labelled([(torch.zeros(3, 8, 8), 0)] * 8, 8, "as they are")

    def accuracies(self, models: list[nn.Module], batches: Any) -> list[Accuracy]:
        self.calls.append(("accuracies", described((models, [*batches]))))
        return [Accuracy(8, 1.0, 1.0)] * len(models)

    def __call__(self, *arguments: str) -> tuple[int, Any]:
        self.calls.clear()
        code = run([*arguments])
        return code, (tuple(self.calls), *self.capsys.readouterr())


@pytest.fixture
def commands(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Commands:
    return Commands(made, monkeypatch, capsys)


def described(value: Any) -> str:
    """Arguments as text that is the same for the same arguments."""

    def text(leaf: Any) -> str:
        if isinstance(leaf, Example):
            return described((leaf.args, leaf.kwargs))
        if isinstance(leaf, Tensor):
            return f"{list(leaf.shape)} {leaf.device} {leaf.sum() if not leaf.is_meta else ''}"
        if isinstance(leaf, nn.Module):
            return type(leaf).__name__ + "".join(text(p) for p in leaf.parameters())
        return type(leaf).__name__ if " at 0x" in repr(leaf) else repr(leaf)

    leaves, _ = pytree.tree_flatten(value)
    names = [str(keys) for keys, _ in pytree.tree_flatten_with_path(value)[0]]
    return "; ".join(f"{name} {text(leaf)}" for name, leaf in zip(names, leaves, strict=True))


def written(command: str, subject: str, name: str | None) -> list[str]:
    """The command line with this option, or without any."""
    base = dict(zip(BASE[command][::2], BASE[command][1::2], strict=False))
    line = [command, MODEL if subject == "model" else "half", *BASE[command]]
    if name is None:
        return line
    (option,) = (p for p in app.commands[command].params if p.name == name)
    if option.opts[0] in base:  # a required one, with another value
        line = line[: line.index(option.opts[0])] + line[line.index(option.opts[0]) + 2 :]
    return [*line, option.opts[0], *([] if option.is_flag else [VALUES[name]])]


@pytest.mark.parametrize(("command", "subject", "name"), PAIRS)
def test_an_option_has_an_effect_or_is_refused(
    commands: Commands, command: str, subject: str, name: str
) -> None:
    code, usual = commands(*written(command, subject, None))
    assert code == 0
    code, found = commands(*written(command, subject, name))
    if name in REFUSED[command, subject]:
        _, out, err = found
        assert code == 2, err
        (line,) = (line for line in err.splitlines() if line.startswith("fxprune: "))
        assert f"--{name.replace('_', '-')} would have no effect: " in line
        assert out == ""
    else:
        assert code == 0, found
        assert found != usual


@pytest.mark.parametrize("subject", ["model", "folder"])
@pytest.mark.parametrize("command", BASE)
def test_the_same_line_twice_is_the_same(commands: Commands, command: str, subject: str) -> None:
    """Else anything would count as an effect."""
    if (command, subject) in REFUSED:
        line = written(command, subject, None)
        assert commands(*line) == commands(*line)


@pytest.mark.parametrize(("command", "together", "named"), TOGETHER)
def test_options_that_exclude_each_other(
    commands: Commands, command: str, together: list[str], named: str
) -> None:
    code, (_, out, err) = commands(*written(command, "model", None), *together)
    assert (code, out) == (2, "")
    assert f"fxprune: {named} would have no effect: " in err


def test_every_command_is_in_the_table() -> None:
    assert {*BASE, "zoo"} == {*app.commands}
    assert {command for command, _ in REFUSED} == {*BASE}


def test_published_weights_of_a_saved_original(commands: Commands) -> None:
    """Found by the folder's own recipe, or named."""
    for line in (["half", "--pretrained"], ["half", "--pretrained", "--model", MODEL]):
        code, (calls, _, _) = commands("verify", *line)
        assert code == 0
        assert any(name == "build" and "'pretrained': True" in text for name, text in calls)


def test_a_model_that_no_library_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And whose factory is code that a folder names: it is not imported unasked."""
    own = fxprune.prune(mlp(), 0.5, example_inputs=torch.zeros(2, 6))
    fxprune.save(own, tmp_path / "own", build="no.such.module:factory")
    assert run(["verify", str(tmp_path / "own"), "--pretrained", "-q"]) == 2
    assert "give --model as well" in capsys.readouterr().err
