"""The built wheel: complete, nothing beside `fxprune`, and usable away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "fxprune", "passes")

PRUNE_A_SMALL_MODEL = """
import torch
from torch import nn

import fxprune
import fxprune.passes

model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
pruned = fxprune.prune(model, ratio=0.5, example_inputs=torch.randn(3, 4))
assert pruned(torch.randn(5, 4)).shape == (5, 2)
assert pruned.state_dict()["0.weight"].shape == (4, 4)
print(fxprune.__file__)
print(fxprune.passes.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    copy_sources(source)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", target)
    (built,) = target.glob("*.whl")
    return built


def test_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in packed if ".dist-info/" not in name}
    ours = {"fxprune/py.typed"}
    ours |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "fxprune").rglob("*.py")}
    ours |= {f"fxprune/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "passes").rglob("*.py")}
    assert packed == ours


def test_installed_wheel_prunes_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", wheel, "--no-deps", "--target", site)

    ran = python("-c", PRUNE_A_SMALL_MODEL, cwd=elsewhere, PYTHONPATH=str(site))

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-2:] == [
        str(site / "fxprune" / "__init__.py"),
        str(site / "fxprune" / "passes" / "__init__.py"),
    ]


def test_passes_is_importable_only_as_fxprune_passes() -> None:
    wrong = python("-c", "import passes", cwd=ROOT)
    assert wrong.returncode != 0
    assert "ImportError" in wrong.stderr
    assert "fxprune.passes" in wrong.stderr

    right = python("-c", "import fxprune.passes", cwd=ROOT)
    assert right.returncode == 0, right.stderr


def copy_sources(target: Path) -> None:
    """As a checkout has them: the symlink kept, no build left-overs."""
    for name in PACKAGED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)


def pip(*arguments: str | Path) -> None:
    ran = python("-m", "pip", "--disable-pip-version-check", *arguments, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
