"""What stands for its kind in the default suite: the table names tests that there are; no kind is lost."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from representatives import EVERY, others

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("test", EVERY)
def test_the_table_names_tests_that_there_are(test: str) -> None:
    path, _, name = test.partition("::")
    found = [n for n in ast.parse((ROOT / path).read_text()).body if isinstance(n, ast.FunctionDef)]
    assert name in {function.name for function in found}


def instances(function: str, *names: str) -> list[str]:
    return [f"{function}[{name}]" for name in names]


def test_some_stand_for_others_and_every_shared_value_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVERY, "f", 2)
    every = instances("f", *(f"{form}-{kind}" for kind in "abcdef" for form in ("graph", "module")))
    left = [test for test in every if test not in {*others(every)}]
    assert 6 <= len(left) <= 8
    assert {v for test in left for v in test[2:-1].split("-")} == {"graph", "module", *"abcdef"}


def test_export_stands_beside_symbolic_by_a_tenth() -> None:
    every = instances("f", *(f"{way}-{kind}" for way in ("symbolic", "export") for kind in "abcdef"))
    assert [*others(every)] == instances("f", *(f"export-{kind}" for kind in "bcdef"))
    alone = instances("f", *(f"export-{kind}" for kind in "abcdef"))
    assert not [*others(alone)]


def test_a_test_of_its_own_runs() -> None:
    assert not [*others(["f", "g[a-b]", "h[export-a]", "h[symbolic-a]"])]
