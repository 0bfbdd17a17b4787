"""`fxprune finetune` on small rendered images: it learns, goes on, says what it would take, and refuses."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import draw_classes, randomise
from safetensors.torch import load_file, save_file

import fxprune
from fxprune.cli.app import run
from fxprune.finetune.loop import Loop

pytest.importorskip("accelerate")

MODEL = "timm:test_vit"
QUICK = ("--batch", "4", "--epochs", "2", "--lr", "0.001")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, the weights of a dense model, and a folder with it pruned."""
    folder = tmp_path_factory.mktemp("finetune")
    draw_classes(folder / "train")
    draw_classes(folder / "val", 2)
    dense = randomise(timm.create_model("test_vit").eval())
    save_file(dense.state_dict(), folder / "dense.safetensors")
    fxprune.save(fxprune.prune(dense, 0.5), folder / "half")
    return folder


def called(place: Path, what: str, out: Path, *more: str) -> int:
    line = ["finetune", what, "--data", str(place / "train"), "--out", str(out), *QUICK, *more]
    return run([*line, "--checkpoint", str(place / "dense.safetensors")])


def test_a_folder_learns_and_is_saved(place: Path, tmp_path: Path, capsys: Any) -> None:
    validation = ("--val", str(place / "val"), "--hidden", "0.1", "--mixup", "0.2", "--ema", "0.5", "--json")
    assert called(place, str(place / "half"), tmp_path / "tuned", *validation, "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["epoch"] for line in found["log"]] == [1, 2]
    assert all(0 <= line["top1"] <= 1 and line["kl"] > 0 and line["hidden"] > 0 for line in found["log"])
    before, after = fxprune.load(place / "half"), fxprune.load(tmp_path / "tuned")
    assert before.state_dict().keys() == after.state_dict().keys()
    assert any(not torch.equal(t, after.state_dict()[n]) for n, t in before.state_dict().items())
    logged = (tmp_path / "tuned" / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in logged] == found["log"]


@pytest.mark.slow
def test_a_stopped_run_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert called(place, str(place / "half"), tmp_path / "one", "-q") == 0
    batch = Loop._batch

    def stops(self: Any, progress: Any, given: Any) -> Any:
        if (progress.epoch, progress.batch) == (1, 1):
            raise KeyboardInterrupt
        return batch(self, progress, given)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_batch", stops)
        assert called(place, str(place / "half"), tmp_path / "two", "-q") == 130
    assert called(place, str(place / "half"), tmp_path / "two", "-q") == 1
    assert "holds this run already: go on with resume (--resume)" in capsys.readouterr().err
    assert called(place, str(place / "half"), tmp_path / "two", "-q", "--resume") == 0
    one, two = (fxprune.load(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_model_is_pruned_and_trained_in_steps(place: Path, tmp_path: Path) -> None:
    more = ("--steps", "2", "--ratio", "0.4", "--epochs", "1", "-q")
    assert called(place, MODEL, tmp_path / "small", *more) == 0
    small = fxprune.load(tmp_path / "small")
    dense = timm.create_model("test_vit")
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in dense.parameters())
    assert {p.name for p in (tmp_path / "small" / "run").iterdir()} == {"step-1", "step-2"}
    before = small.state_dict()
    shutil.rmtree(tmp_path / "small" / "run" / "step-2")
    assert called(place, MODEL, tmp_path / "small", *more, "--resume") == 0
    again = fxprune.load(tmp_path / "small").state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_a_dry_run_writes_nothing(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert called(place, str(place / "half"), tmp_path / "none", "--dry-run", "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batches"] == 3 and found["seconds"] > 0 and found["memory"] > 1e6
    assert called(place, str(place / "half"), tmp_path / "none", "--dry-run", "-q") == 0
    assert "3 batches an epoch; about 0 min" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_what_is_refused(place: Path, tmp_path: Path, capsys: Any) -> None:
    line = ["finetune", str(place / "half"), "--data", str(place / "train"), "--out", str(tmp_path / "out")]
    assert run([*line, "-q"]) == 2
    assert "the teacher needs weights: give --pretrained or --checkpoint" in capsys.readouterr().err
    assert run([*line, "-q", "--kl", "0", "--batch", "100"]) == 1
    assert "12 images are fewer than a batch of 100" in capsys.readouterr().err
    assert run([*line, "-q", "--kl", "0", "--batch", "4", "--lr", "nan"]) == 1
    assert "lr=nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_of_val_are_those_that_are_learned(place: Path, tmp_path: Path, capsys: Any) -> None:
    """By their names, not by their places in another alphabet."""
    small = ("--new-head", "--kl", "0", "--batch", "3", "--epochs", "1", "-q")
    for split, names in (
        ("train", ("ant", "bee", "cat")),
        ("other", ("ant", "bee", "dog")),
        ("some", ("cat",)),
    ):
        for name in names:
            shutil.copytree(place / "val" / "0", tmp_path / split / name)
    line = ["finetune", str(place / "half"), "--data", str(tmp_path / "train"), *small]
    for more in ((), ("--dry-run",)):
        bad = ("--val", str(tmp_path / "other"), "--out", str(tmp_path / "bad"), *more)
        assert run([*line, *bad]) == 1
        assert "has classes that" in (said := capsys.readouterr().err) and "(dog)" in said
    assert run([*line, "--val", str(tmp_path / "some"), "--out", str(tmp_path / "out")]) == 0


def test_quiet_training_warns_of_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    batch = Loop._batch

    def warns(self: Any, progress: Any, given: Any) -> Any:
        warnings.warn("of a library's", UserWarning, stacklevel=1)
        return batch(self, progress, given)

    monkeypatch.setattr(Loop, "_batch", warns)
    for quiet in (True, False):
        more = ("-q",) if quiet else ()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert called(place, str(place / "half"), tmp_path / f"{quiet}", "--epochs", "1", *more) == 0
        assert ("of a library's" in capsys.readouterr().err) is not quiet


@pytest.mark.slow
def test_other_images_or_another_policy_are_another_run(place: Path, tmp_path: Path, capsys: Any) -> None:
    train = shutil.copytree(place / "train", tmp_path / "train")
    line = ["finetune", str(place / "half"), "--kl", "0", "--batch", "4", "--epochs", "1", "-q"]
    line += ["--out", str(tmp_path / "out"), "--resume", "--data"]
    assert run([*line, str(train)]) == 0
    assert run([*line, str(train.rename(tmp_path / "moved"))]) == 0
    for more in (["--erase", "0.5"], ["--mean", "0.25"], ["--augment", "rand-m9"]):
        assert run([*line, str(tmp_path / "moved"), *more]) == 1
        assert "the data is another" in capsys.readouterr().err
    image = next((tmp_path / "moved").rglob("*.png"))
    image.rename(image.with_stem("other"))
    assert run([*line, str(tmp_path / "moved")]) == 1


def test_labels_alone(place: Path, tmp_path: Path) -> None:
    line = ["finetune", str(place / "half"), "--data", str(place / "train"), "--out", str(tmp_path / "out")]
    assert run([*line, "-q", "--kl", "0", "--batch", "4", "--epochs", "1"]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("what", ["half", MODEL])
def test_images_without_labels(what: str, place: Path, tmp_path: Path) -> None:
    """In one folder, which without the option is refused: the teacher is all that is learned from."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((place / "train").rglob("*.png"))):
        shutil.copy(path, flat / f"{i}.png")
    what = str(place / what) if what == "half" else what
    line = ["finetune", what, "--data", str(flat), "--checkpoint", str(place / "dense.safetensors"), *QUICK]
    assert run([*line, "--out", str(tmp_path / "no"), "-q"]) == 1
    assert run([*line, "--out", str(tmp_path / "out"), "-q", "--no-labels"]) == 0
    (log,) = (tmp_path / "out" / "run").rglob("log.jsonl")
    first, last = (json.loads(text) for text in log.read_text().splitlines())
    assert "task" not in first and last["loss"] == pytest.approx(0.2 * last["kl"])
    for more in (["--mixup", "0.5"], ["--smoothing", "0.1"], ["--kl", "0"]):
        assert run([*line, "--out", str(tmp_path / "two"), "-q", "--no-labels", *more]) == 2
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_a_model_without_weights_begins_as_its_seed_says(place: Path, tmp_path: Path) -> None:
    """Else a run that was killed before its first checkpoint would go on as another."""

    def dense(name: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(name))  # whatever the process drew before
        line = ["finetune", MODEL, "--data", str(place / "train"), "--new-head", "--batch", "4", "-q"]
        more = ["--epochs", "1", "--seed", str(seed), "--out", str(tmp_path / name)]
        assert run([*line, *more]) == 0
        return load_file(tmp_path / name / "dense.safetensors")

    one, again, other = dense("one", 0), dense("again", 0), dense("other", 1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
