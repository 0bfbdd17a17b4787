"""Modules that moved are found under the names that they had, by `import` and by `pickle`."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

import fxprune
from fxprune.result.old_names import RELOCATED

NAMES = {
    "fxprune.axes": "atom",
    "fxprune.errors": "FxpruneError",
    "fxprune.plan": "Plan",
    "fxprune.plan.plan": "Plan",
    "fxprune.plan.selection": "Selection",
    "fxprune.rewrite": "apply",
    "fxprune.saved": "__path__",
    "fxprune.saved.load": "load",
    "fxprune.zoo": "randomise",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_old_name_is_the_module_itself(name: str) -> None:
    module = importlib.import_module(name)
    new = next((n + name.removeprefix(o) for o, n in RELOCATED.items() if name.startswith(o)), name)
    assert module is importlib.import_module(new)
    assert hasattr(module, NAMES[name])
    assert module.__name__ == new
    assert module.__spec__ is not None and module.__spec__.name == new


def test_an_old_name_that_never_was_is_no_module() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("fxprune.plan.nothing")


@pytest.mark.slow
def test_a_module_runs_under_its_old_name() -> None:
    command = [sys.executable, "-m", "fxprune.zoo", "--help"]
    assert "usage" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_pickles_of_a_plan_load_by_its_old_module() -> None:
    old = b"cfxprune.plan.plan\nKept\n."
    assert pickle.loads(old) is fxprune.Kept
