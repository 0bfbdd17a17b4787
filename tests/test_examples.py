"""Every example runs as a user would run it."""

import io
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_quickstart_certifies_what_it_pruned() -> None:
    assert "parameters, certified to" in run("quickstart.py")


def test_a_rule_of_one_s_own_frees_what_was_whole(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "custom_rule.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "frozen: soft_gate has no rule" in printed
    assert "128 -> 64 hidden channels, certified to" in printed


def test_a_run_of_the_zoo_tabulates_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "zoo.csv"
    monkeypatch.setattr(sys, "argv", ["zoo_run.py", "timm:test_vit", "--table", str(table)])
    runpy.run_path(str(EXAMPLES / "zoo_run.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "certified" in printed
    assert "timm:test_vit" in table.read_text()


@pytest.mark.slow
def test_cifar_arms_go_from_teacher_to_table(tmp_path: Path) -> None:
    """On a few rendered images; the real data are not part of the project."""
    pytest.importorskip("accelerate", reason="needs the extra [finetune]")
    data = tmp_path / "few.npz"
    np.savez(data, **rendered_images("train", 24), **rendered_images("test", 6))
    common = ["--data", str(data), "--folder", str(tmp_path), "--epochs", "1", "--batch", "8"]
    for arm in ("teacher", "scratch", "scratch-distilled", "pruned", "pruned-basis"):
        assert "parameters, top-1" in run("cifar/run.py", arm, *common)
    counts = {
        run("cifar/run.py", a, "--depth", "0.5", *common).split()[1] for a in ("scratch", "pruned-basis")
    }
    assert len(counts) == 1
    rows = run("cifar/run.py", "table", "--folder", str(tmp_path)).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == [
        *("| pruned-basis-depth-0.5-seed-0", "| pruned-basis-seed-0", "| pruned-seed-0"),
        *("| scratch-depth-0.5-seed-0", "| scratch-distilled-seed-0", "| scratch-seed-0", "| teacher-seed-0"),
    ]


@pytest.mark.slow
def test_detectors_go_from_teacher_to_table(tmp_path: Path) -> None:
    """On few images: what is there to see is that each arm ends, goes on, and is measured."""
    for name in ("accelerate", "torchmetrics", "pycocotools"):
        pytest.importorskip(name, reason="needs the extra [detection]")
    few = ["--images", "8", "--tests", "4", "--batch", "4", "--calibrate", "0"]
    sizes = [*few, "--epochs", "1", "--teacher-epochs", "1", "--folder", str(tmp_path)]
    printed = run("detection/run.py", "all", *sizes)
    assert "pruned and certified to" in printed
    rows = [line.split(",") for line in printed[printed.index("arm,parameters") :].splitlines()]
    assert [row[0] for row in rows] == [
        *("arm", "teacher-seed-0", "pruned-seed-0", "scratch-seed-0", "scratch-distilled-seed-0"),
        "scratch-long-seed-0",
    ]
    sizes_of = {row[0]: int(row[1]) for row in rows[1:]}
    assert len({*sizes_of.values()}) == 2 and max(sizes_of.values()) == sizes_of["teacher-seed-0"]
    (measured,) = [dict(zip(rows[0], row, strict=True)) for row in rows if row[0].startswith("pruned")]
    (scratch,) = [dict(zip(rows[0], row, strict=True)) for row in rows if row[0] == "scratch-seed-0"]
    assert float(measured["place"]) > 3 * float(scratch["place"])  # a token stays what it was, where it was


def rendered_images(split: str, count: int) -> dict[str, np.ndarray]:
    """Plain colours as JPEG, in the format of the data that the scripts read."""
    files = []
    for i in range(count):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (25 * (i % 10), 90, 40)).save(file, "JPEG")
        files.append(file.getvalue())
    return {
        f"{split}_jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        f"{split}_offsets": np.cumsum([0, *map(len, files)]),
        f"{split}_labels": np.arange(count) % 10,
    }


def test_the_notebook_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    if shutil.which("dot") is None:
        pytest.skip("needs graphviz's dot on the PATH")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []

    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()

    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in shown for kind in output.get("data", {})]
    assert "text/html" in kinds
    assert kinds.count("image/png") == 3


def run(name: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
