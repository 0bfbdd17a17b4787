"""The command line: what it prints and writes, its exit codes, and one line for each error."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from helpers import images, mlp, randomise
from PIL import Image
from torch import nn

import fxprune
from fxprune import __main__ as program
from fxprune.certify.certificate import Certificate
from fxprune.cli.app import run

MODEL = "timm:test_convnext"
OWN = ("helpers:small_vit", "--input-size", "3,32,32")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "half"
    assert run(["prune", MODEL, "--out", str(folder), "--quiet"]) == 0
    return folder


def parsed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------- prune


def test_prune_writes_what_load_reads(saved: Path) -> None:
    pruned = fxprune.load(saved)
    dense = timm.create_model("test_convnext")
    assert sum(p.numel() for p in pruned.parameters()) < 0.4 * sum(p.numel() for p in dense.parameters())


def test_prune_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", *OWN, "--out", str(tmp_path / "out"), "--ratio", "0.25", "--certify", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record["certificate"] < 1e-8
    assert {g["name"]: g["width"] for g in record["groups"]}["embed"] == [48, 36]
    assert "pruning ..." in captured.err  # progress is no part of the JSON
    pruned = fxprune.load(tmp_path / "out", "helpers:small_vit")
    assert pruned.get_parameter("head.weight").shape == (10, 36)


def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", *OWN, "--out", str(tmp_path), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_options_reach_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    prune = fxprune.prune

    def recorded(
        model: nn.Module,
        ratio: float,
        *,
        capture: str,
        example_inputs: Any,
        target: Any = None,
        like: Any = None,
        scope: Any = None,
        depth: Any = None,
        attention: Any = None,
        exclude: Any = None,
        round_to: Any = None,
        ratios: Any = None,
        steps: Any = None,
        floor: Any = None,
        importance: Any = None,
    ) -> Any:
        given.update(target=target, like=type(like).__name__, scope=scope, depth=depth, attention=attention)
        given.update(exclude=exclude, round_to=round_to, importance=importance, capture=capture)
        given.update(ratios=ratios, steps=steps, floor=floor)
        return prune(model, ratio, example_inputs=example_inputs)

    monkeypatch.setattr(fxprune, "prune", recorded)
    options = "--target macs --scope global --depth 0.25 --like helpers:mlp --attention heads"
    options += " --exclude blocks.0.* --exclude head --round-to 8 --importance random --capture symbolic"
    options += " --ratios blocks.1.*=0.25 --ratios embed=0 --steps 3 --floor 0.1"
    assert run(["prune", *OWN, "--out", str(tmp_path), "--quiet", *options.split()]) == 0
    assert given == {
        "target": "macs",
        "scope": "global",
        "depth": 0.25,
        "like": "Sequential",
        "attention": "heads",
        "exclude": ("blocks.0.*", "head"),
        "round_to": 8,
        "importance": "random",
        "capture": "symbolic",
        "ratios": {"blocks.1.*": 0.25, "embed": 0.0},
        "steps": 3,
        "floor": 0.1,
    }


@pytest.mark.parametrize(
    "option", [["--ratios", "blocks.0"], ["--ratios", "blocks.0=half"], ["--floor", "few"], ["--steps", "0"]]
)
def test_options_that_mean_nothing(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prune", *OWN, "--out", str(tmp_path / "out"), *option]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert option[0] in line and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights.safetensors"
    model = randomise(timm.create_model("test_convnext"), seed=4)
    safetensors.torch.save_file(model.state_dict(), weights)
    out = str(tmp_path / "out")
    assert run(["prune", MODEL, "--checkpoint", str(weights), "--out", out, "--quiet"]) == 0
    assert fxprune.verify(model, fxprune.load(out)) < 1e-8

    own = ["--model", MODEL, "--checkpoint", str(weights), "--json", "--quiet"]
    assert run(["verify", out, *own]) == 0
    assert parsed(capsys)["exact"]
    safetensors.torch.save_file(randomise(model, seed=5).state_dict(), weights)
    assert run(["verify", out, *own]) == 1
    assert not parsed(capsys)["exact"]


def test_images_of_a_folder_rank_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images(5, 40).clamp(0, 1).mul(255).byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    seen: list[Any] = []
    prune = fxprune.prune

    def recorded(*arguments: Any, data: Any, **options: Any) -> Any:
        seen.extend(data)
        return prune(*arguments, data=data, **options)

    recorded.__signature__ = __import__("inspect").signature(prune)  # type: ignore[attr-defined]
    monkeypatch.setattr(fxprune, "prune", recorded)
    out = ["--out", str(tmp_path / "out"), "--quiet", "--images", "3"]
    assert run(["prune", *OWN, "--data", str(folder), *out]) == 0
    (batch,) = seen
    assert batch.shape == (3, 3, 32, 32)
    assert batch.min() < -0.5  # normalised


# ---------------------------------------------------------------- inspect, explain, draw


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", *OWN, "--quiet"]) == 0
    assert "blocks.0.mlp.hidden" in capsys.readouterr().out
    assert run(["inspect", *OWN, "--quiet", "--json"]) == 0
    groups = {group["name"]: group for group in parsed(capsys)["groups"]}
    assert groups["embed"]["size"] == 48
    assert groups["embed"]["frozen"] is None
    assert groups["head.output"]["frozen"].startswith("reaches the output")


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", *OWN, "blocks.1.attn.qkv", "-q"]) == 0
    assert "(3 heads head_dim) embed" in capsys.readouterr().out
    assert run(["explain", *OWN, "blocks.1.attn.qkv", "-q", "--json"]) == 0
    assert parsed(capsys)["weights"]["blocks.1.attn.qkv.weight"] == ["(3 heads head_dim)", "embed"]


def test_draw(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(fxprune, "draw", lambda *a, **k: drawn.append((a, k)), raising=False)
    assert run(["draw", *OWN, "vit.html", "--view", "coupling", "--modules", "blocks.0", "-q"]) == 0
    assert run(["draw", str(saved), "half.svg", "-q"]) == 0
    (first, options), (second, none) = drawn
    assert isinstance(first[0], fxprune.Analysis)
    assert (first[1], options) == ("vit.html", {"view": "coupling", "modules": ["blocks.0"]})
    assert fxprune.plan_of(second[0]).groups
    assert (second[1], none) == ("half.svg", {})


# ---------------------------------------------------------------- verify, bench, zoo


def test_verify_a_folder(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(saved)]) == 0
    assert "whole and unedited; exact" in capsys.readouterr().out


def test_a_folder_is_taken_as_a_model_is(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inspected, explained, pruned once more; and that result verified and measured."""
    assert run(["inspect", str(saved), "-q", "--json"]) == 0
    sizes = {group["name"]: group["size"] for group in parsed(capsys)["groups"]}
    kept = fxprune.plan_of(fxprune.load(saved)).groups
    assert {name: sizes[name] for name in kept} == {name: k.count for name, k in kept.items()}
    assert run(["explain", str(saved), next(iter(kept)), "-q"]) == 0
    assert "may shrink" in capsys.readouterr().out

    again = str(tmp_path / "again")
    assert run(["prune", str(saved), "--ratio", "0.25", "--out", again, "--certify", "--json", "-q"]) == 0
    found = parsed(capsys)
    assert found["certificate"] < 1e-8
    assert run(["verify", again, "--json", "-q"]) == 0
    assert parsed(capsys)["exact"]
    assert run(["bench", again, "--runs", "1", "--json", "-q"]) == 0
    assert parsed(capsys)["parameters"] == found["parameters"]


def test_verify_an_edited_folder(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix != ".json" else None])
    assert run(["verify", str(tmp_path), "-q"]) == 1
    error = capsys.readouterr().err
    assert "truncated" in error
    assert error.count("\n") == 1


def test_bench_a_folder_and_a_model(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--runs", "1", "--batch", "2", "--threads", "1", "--json", "-q"]
    assert run(["bench", str(saved), *few]) == 0
    folder = parsed(capsys)
    assert run(["bench", MODEL, *few]) == 0
    model = parsed(capsys)
    assert all(seconds > 0 for seconds in folder["latency"] + model["latency"])
    assert folder["batch"] == model["batch"] == 2
    assert folder["macs"] == model["macs"]


def test_zoo_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.certify.zoo import __main__ as zoo

    given: list[str] = []
    monkeypatch.setattr(zoo, "main", lambda arguments: given.extend(arguments) or 1)
    assert run(["zoo", "timm:*", "--table", "x.csv", "--again", "--help"]) == 1
    assert given == ["timm:*", "--table", "x.csv", "--again", "--help"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 2, "No such command 'nothing'"),
        (["prune", MODEL], 2, "'--out'"),
        (["prune", MODEL, "--out", "x", "--ratio", "half"], 2, "'half' is not a valid float"),
        (["prune", MODEL, "--out", "x", "--ratio", "1.5"], 1, "ratio=1.5"),
        (["prune", MODEL, "--out", "x", "--checkpoint", "no.safetensors"], 2, "does not exist"),
        (["prune", MODEL, "--out", "x", "--data", "no-such-folder"], 2, "does not exist"),
        (["prune", MODEL, "--out", "x", "--data", "tests"], 1, "tests: there is no image below it"),
        (["prune", MODEL, "--out", "x", "--scope", "wide"], 1, "scope='wide'"),
        (["inspect", "timm:test_convnxt"], 1, "close are timm:test_convnext"),
        (["inspect", "no.such.module:thing"], 1, "no.such.module"),
        (["inspect", "nothing"], 1, "timm:NAME"),
        (["inspect", "torch.nn:Identity"], 1, "example_inputs"),
        (["inspect", "helpers:small_vit", "--input-size", "3,32"], 2, "3,224,224"),
        (["inspect", MODEL, "--device", "abacus"], 1, "abacus"),
        (["explain", MODEL, "stem.7"], 1, "close are"),
        (["verify", "no-such-folder"], 1, "no folder"),
        (["verify", "no-such-folder", "--pretrained"], 1, "no folder"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = [] if arguments == ["nothing"] else ["--quiet"]
    assert run([*arguments, *quiet]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("fxprune: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_checkpoints_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, pickled = tmp_path / "other.safetensors", tmp_path / "weights.pth"
    safetensors.torch.save_file(mlp().state_dict(), other)
    torch.save(mlp().state_dict(), pickled)
    for path, says in [(other, "does not fit ConvNeXt"), (pickled, "no safetensors file")]:
        assert run(["prune", MODEL, "--checkpoint", str(path), "--out", "x", "-q"]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "no-such-folder", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_that_nobody_thought_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(fxprune, "analyze", broken)
    before = warnings.showwarning
    assert run(["inspect", MODEL, "-q"]) == 1
    assert capsys.readouterr().err == "fxprune: ZeroDivisionError: two lines (--debug shows the traceback)\n"
    assert warnings.showwarning is before


def test_what_was_not_seen_has_no_number_in_json(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys.modules["fxprune.cli.verify"],
        "check_rewrite",
        lambda *_, **__: Certificate(0.0, unseen="nothing"),
    )
    assert run(["verify", str(saved), "--json", "-q"]) == 1
    assert parsed(capsys)["error"] is None


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=rf"{missing}.*pip install 'fxprune\[cli\]'"):
        program.main()


# ---------------------------------------------------------------- help


COMMANDS = ["prune", "inspect", "explain", "draw", "verify", "evaluate", "bench", "export"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"  fxprune {command} " in capsys.readouterr().out.partition("Example")[2]


@pytest.mark.slow
def test_as_a_module_with_completion() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "fxprune", "--help"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert all(f"\n  {command} " in ran.stdout for command in [*COMMANDS, "zoo"])
