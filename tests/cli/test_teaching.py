"""Teachers and classes of one's own, from the command line, on small rendered images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import draw_classes, randomise
from safetensors.torch import load_file, save_file

import fxprune
from fxprune.cli.app import run
from fxprune.finetune.heads import with_classes
from fxprune.finetune.loop import Loop
from fxprune.finetune.renormalised import Renormalised

pytest.importorskip("accelerate")

MODEL = "timm:test_vit"
QUICK = ("--batch", "4", "--epochs", "1", "--lr", "0.001", "-q")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, weights of two dense models (one of two classes), one of them pruned."""
    folder = tmp_path_factory.mktemp("teaching")
    draw_classes(folder / "train")
    draw_classes(folder / "val", 2)
    dense, other = (randomise(timm.create_model("test_vit").eval(), seed=seed) for seed in (0, 1))
    save_file(dense.state_dict(), folder / "dense.safetensors")
    save_file(other.state_dict(), folder / "other.safetensors")
    save_file(with_classes(other, 2).state_dict(), folder / "two.safetensors")
    fxprune.save(fxprune.prune(dense, 0.5), folder / "half")
    fxprune.save(fxprune.prune(other, 0.25), folder / "quarter")
    return folder


def finetune(place: Path, what: str | Path, out: Path, *more: str | Path) -> int:
    line = ["finetune", what, "--data", place / "train", "--out", out, *QUICK, *more]
    return run([str(part) for part in line])


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([t.flatten().float() for t in fxprune.load(folder).state_dict().values()])


@pytest.mark.slow  # the next one asks it of a model that is pruned by the same command
def test_another_teacher(place: Path, tmp_path: Path) -> None:
    """A MODEL with weights of a file, or a FOLDER; the same weights as the original's teach the same."""
    lines: dict[str, tuple[str | Path, ...]] = {
        "original": ("--checkpoint", place / "dense.safetensors"),
        "same": ("--teacher", MODEL, "--teacher-checkpoint", place / "dense.safetensors"),
        "other": ("--teacher", MODEL, "--teacher-checkpoint", place / "other.safetensors"),
        "folder": ("--teacher", place / "quarter"),
        "itself": ("--teacher", place / "half"),
    }
    for name, more in lines.items():
        assert finetune(place, place / "half", tmp_path / name, "--kl", "5", *more) == 0
    found = {name: weights(tmp_path / name) for name in lines}
    assert torch.equal(found["original"], found["same"])
    names = ["original", "other", "folder", "itself"]
    assert not any(torch.equal(found[a], found[b]) for a in names for b in names if a < b)


@pytest.mark.slow
def test_a_model_that_is_pruned_has_another_teacher(place: Path, tmp_path: Path) -> None:
    own = ("--checkpoint", place / "dense.safetensors", "--ratio", "0.25", "--kl", "5")
    assert finetune(place, MODEL, tmp_path / "usual", *own) == 0
    assert finetune(place, MODEL, tmp_path / "other", *own, "--teacher", place / "quarter") == 0
    usual, other = weights(tmp_path / "usual"), weights(tmp_path / "other")
    assert usual.shape == other.shape and not torch.equal(usual, other)


def test_a_teacher_of_other_normalisation_is_fed_as_it_is_used_to() -> None:
    teacher = torch.nn.Conv2d(3, 2, 3)
    pixels = torch.rand(2, 3, 8, 8)
    (mean, std), (own_mean, own_std) = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))

    def normalised(mean: Any, std: Any) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    fed = Renormalised(teacher, mean, std, own_mean, own_std)(normalised(mean, std))
    torch.testing.assert_close(fed, teacher(normalised(own_mean, own_std)))


def test_a_pruned_model_learns_classes_of_its_own(place: Path, tmp_path: Path) -> None:
    assert finetune(place, place / "half", tmp_path / "own", "--new-head", "--kl", "0") == 0
    own = fxprune.load(tmp_path / "own")
    assert own(torch.zeros(1, 3, 160, 160)).shape == (1, 2)
    taught = ("--new-head", "--teacher", MODEL, "--teacher-checkpoint", place / "two.safetensors")
    assert finetune(place, place / "half", tmp_path / "taught", *taught) == 0
    assert fxprune.load(tmp_path / "taught")(torch.zeros(1, 3, 160, 160)).shape == (1, 2)


@pytest.mark.slow
def test_from_a_checkpoint_to_a_small_model_of_own_classes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One command: the dense model learns the classes, then teaches them; killed and gone on with."""
    line = ("--checkpoint", place / "dense.safetensors", "--new-head", "--steps", "2", "--ratio", "0.4")
    assert finetune(place, MODEL, tmp_path / "one", *line) == 0
    dense = load_file(tmp_path / "one" / "dense.safetensors")
    assert dense["head.weight"].shape[0] == 2
    epoch, begun = Loop._epoch, []

    def stops(self: Any, progress: Any) -> Any:
        begun.append(progress)
        if len(begun) == 2:  # in the first step, after the dense model's training
            raise KeyboardInterrupt
        return epoch(self, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_epoch", stops)
        assert finetune(place, MODEL, tmp_path / "two", *line) == 130
    assert finetune(place, MODEL, tmp_path / "two", *line, "--resume") == 0
    assert torch.equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    again = load_file(tmp_path / "two" / "dense.safetensors")
    assert all(torch.equal(dense[name], again[name]) for name in dense)

    # What it made is taken by the other commands: evaluated beside its teacher, and trained on.
    own = ("--checkpoint", str(tmp_path / "one" / "dense.safetensors"))
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "one"), "--data", str(place / "val"), *own, "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"dense", "pruned"}
    assert finetune(place, tmp_path / "one", tmp_path / "on", *own, "--hidden", "0") == 0


def test_a_checkpoint_of_own_classes_is_taken_as_it_is(place: Path, tmp_path: Path, capsys: Any) -> None:
    line = ["prune", MODEL, "--checkpoint", str(place / "two.safetensors"), "--out", str(tmp_path), "-q"]
    assert run(line) == 0
    assert fxprune.load(tmp_path)(torch.zeros(1, 3, 160, 160)).shape == (1, 2)
    odd = load_file(place / "two.safetensors")
    odd["blocks.0.attn.qkv.weight"] = odd["blocks.0.attn.qkv.weight"][:-1].clone()
    save_file(odd, tmp_path / "odd.safetensors")
    assert run(["verify", str(tmp_path), "--pretrained", "-q"]) == 2
    assert (
        "no library publishes weights of timm:test_vit.r160_in1k with num_classes=2"
        in capsys.readouterr().err
    )
    line[3] = str(tmp_path / "odd.safetensors")
    assert run(line) == 1
    assert "does not fit" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_counts_each_part(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("fxprune.finetune.estimate.MOST", 4)  # batches
    own = ("--checkpoint", place / "dense.safetensors", "--json", "--dry-run")
    tried = []
    for more in ((), ("--steps", "2"), ("--steps", "2", "--new-head"), ("--val", place / "val")):
        assert finetune(place, MODEL, tmp_path / "none", *own, *more) == 0
        tried.append(json.loads(capsys.readouterr().out))
    assert [found["tried"] // tried[0]["tried"] for found in tried] == [1, 2, 3, 1]
    assert all(0 < f["at_least"] <= f["seconds"] <= f["at_most"] for f in tried)
    assert all(1e8 < f["memory"] < 1e11 for f in tried)  # Python and torch are in it
    assert not (tmp_path / "none").exists()


ORIGINAL = ("--checkpoint", "dense.safetensors")


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (
            ("--teacher", MODEL, "--teacher-checkpoint", "dense.safetensors", *ORIGINAL),
            2,
            "--checkpoint would",
        ),
        (("--teacher", "quarter", "--teacher-checkpoint", "dense.safetensors"), 2, "has weights of its own"),
        (("--teacher-checkpoint", "dense.safetensors", *ORIGINAL), 2, "--teacher-checkpoint would have no"),
        (("--teacher", "quarter", "--kl", "0"), 2, "--teacher would have no effect: --kl 0 --hidden 0"),
        (("--new-head", *ORIGINAL), 2, "knows no classes of --new-head"),
        (("--teacher", "nowhere"), 1, "'nowhere' names no model"),
        (("--teacher", MODEL, "--teacher-checkpoint", "two.safetensors"), 1, "the teacher says 2 classes"),
        (("--new-head", "--teacher", "quarter"), 1, "the teacher says 1000 classes, and the student 2"),
        (("--log-with", "nothing", "--kl", "0"), 1, "Accelerate knows no 'nothing'"),
        (("--dry-run", "--resume", "--kl", "0"), 2, "--resume would have no effect"),
    ],
)
def test_what_is_refused(
    more: tuple[str, ...], code: int, said: str, place: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(place)
    assert finetune(place, "half", tmp_path / "out", *more) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_model_without_weights_teaches_nothing(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert finetune(place, MODEL, tmp_path / "out") == 2
    assert "has no weights: give --pretrained or --checkpoint" in capsys.readouterr().err
    (tmp_path / "train" / "cats").mkdir(parents=True)
    (tmp_path / "train" / "dogs").mkdir()
    own = ("--checkpoint", place / "dense.safetensors", "--data", tmp_path / "train")
    assert finetune(place, MODEL, tmp_path / "out", *own) == 1
    assert "2 subfolders (cats, dogs) for a model of 1000 classes" in (said := capsys.readouterr().err)
    assert "fxprune finetune has --new-head" in said
    assert not (tmp_path / "out").exists()


def test_trackers_write_beside_the_checkpoints(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert finetune(place, place / "half", tmp_path, "--kl", "0", "--log-with", "tensorboard") == 0
    assert list((tmp_path / "run" / "tracked").glob("events*"))
