"""What the documents name is there: paths, make targets, modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PATH = re.compile(r"`((?:fxprune|passes|tests|examples|rules|show|saved|capture|analysis|choose)/[\w./-]*)`")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_is_there(name: str) -> None:
    named = PATH.findall((ROOT / name).read_text())
    missing = [p for p in named if not (ROOT / p).exists() and not (ROOT / "fxprune" / p).exists()]
    assert not missing, missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_is_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", (ROOT / name).read_text()))
    assert named <= targets, named - targets


def test_the_hooks_run_what_lint_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in ("ruff check", "ruff format", "mypy -p fxprune"):
        assert f"python -m {tool}" in hooks
