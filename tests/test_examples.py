"""Every example runs as a user would run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_quickstart_certifies_what_it_pruned() -> None:
    assert "parameters, certified to" in run("quickstart.py")


def test_a_rule_of_one_s_own_frees_what_was_whole() -> None:
    printed = run("custom_rule.py")
    assert "frozen: soft_gate has no rule" in printed
    assert "128 -> 64 hidden channels, certified to" in printed


def test_a_run_of_the_zoo_tabulates_its_models(tmp_path: Path) -> None:
    table = tmp_path / "zoo.csv"
    printed = run("zoo_run.py", "timm:test_vit", "--table", str(table))
    assert "certified" in printed
    assert "timm:test_vit" in table.read_text()


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
