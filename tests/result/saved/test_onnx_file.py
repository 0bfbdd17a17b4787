"""ONNX files: they compute what the model does at any batch size, or are not written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import images, small_conv, small_hf_vit, small_swin, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.cli.app import run
from fxprune.errors import CertificateError, FileError
from fxprune.graph.example import Example
from fxprune.result.saved import onnx_file
from fxprune.result.saved.onnx_file import write_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("make", [small_vit, small_swin, small_hf_vit, small_conv])
def test_it_computes_what_the_model_does(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    pruned = fxprune.prune(make(), 0.5, example_inputs=images()).train()
    written = write_onnx(pruned, Example((images(),)), tmp_path / "half.onnx")
    assert written.error is not None and written.error < 1e-5
    assert [shape[0] for shape in (*written.inputs.values(), *written.outputs.values())] == ["batch"] * 2
    assert pruned.training  # it was exported in eval mode
    session, x = session_of(written.path), images(5, seed=9)
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    with torch.no_grad():
        wanted = pruned.eval()(x)
    wanted = wanted if isinstance(wanted, Tensor) else wanted["logits"]
    assert torch.allclose(found, wanted, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["half.onnx"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        x = self.a(a)
        return self.out(x if b is None else x + self.b(b))


def test_inputs_by_keyword(tmp_path: Path) -> None:
    a, b = torch.zeros(2, 8), torch.zeros(2, 4)
    pruned = fxprune.prune(Two(), 0.5, example_inputs=a, example_kwargs={"b": b})
    written = write_onnx(pruned, Example((a,), {"b": b}), tmp_path / "two.onnx")
    assert [*written.inputs.values()] == [["batch", 8], ["batch", 4]]
    assert written.error is not None and written.error < 1e-5


def test_a_fixed_batch(tmp_path: Path) -> None:
    written = write_onnx(nn.Linear(4, 2), Example((torch.zeros(2, 4),)), tmp_path / "f.onnx", dynamic=False)
    assert [*written.inputs.values()] == [[2, 4]]
    assert written.error is not None


def test_another_function_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter gets a spoilt model."""
    model = small_vit()
    exported = onnx_file._exported
    monkeypatch.setattr(
        onnx_file, "_exported", lambda m, example, dynamic: exported(small_vit(depth=1), example, dynamic)
    )
    path = tmp_path / "half.onnx"
    path.write_bytes(b"older")
    with pytest.raises(CertificateError, match="computes something else"):
        write_onnx(model, Example((images(),)), path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("half.onnx", b"older")]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


def test_what_the_exporter_can_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileError, match=r"torch\.onnx can't export Branching") as caught:
        write_onnx(Branching(), Example((images(),)), tmp_path / "b.onnx")
    assert len(str(caught.value).splitlines()) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_extra(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(FileError, match=rf"{missing}.*pip install 'fxprune\[onnx\]'"):
        write_onnx(nn.Linear(4, 2), Example((torch.zeros(2, 4),)), tmp_path / "f.onnx")


def test_without_a_runtime_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    written = write_onnx(nn.Linear(4, 2), Example((torch.zeros(2, 4),)), tmp_path / "f.onnx")
    assert written.error is None
    assert written.path.exists()


@pytest.mark.slow  # tests/test_readme.py runs the same two commands
def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    half, file = str(tmp_path / "half"), str(tmp_path / "half.onnx")
    assert run(["prune", "timm:test_vit", "--out", half, "-q"]) == 0
    assert run(["export", half, "--onnx", file]) == 0
    captured = capfd.readouterr()
    assert "'batch', 3, 160, 160" in captured.out
    assert "it differs from the model by" in captured.out
    assert captured.err.splitlines() == [f"building {half} ...", f"exporting to {file} ..."]
    assert run(["export", half, "--onnx", file, "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["error"] < 1e-4
