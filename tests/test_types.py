"""Where mypy is strict, `Any` stands only behind a name that says what it is for."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("rules", "analysis", "result")
ALIASES = {"graph/nests.py": "Value", "result/forms.py": "PrunedModel"}


def uses_of_any(source: str) -> list[int]:
    """The lines that say `Any` in other words than an alias's definition."""
    tree = ast.parse(source)
    named = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and node.value}
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "Any" and id(n) not in named]
    quoted = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value in ("Any", '"Any"')
    ]
    return sorted(n.lineno for n in (*uses, *quoted))


FILES = sorted(path for floor in FLOORS for path in (ROOT / "fxprune" / floor).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_any_stands_behind_a_name(path: Path) -> None:
    assert uses_of_any(path.read_text()) == []


def test_it_finds_what_it_looks_for() -> None:
    assert uses_of_any("def f(x: Any) -> dict[str, Any]: ...\ny: list[Any] = []") == [1, 1, 2]
    assert uses_of_any("Value: TypeAlias = Any") == []


def test_the_names_exist() -> None:
    for file, name in ALIASES.items():
        assert f"{name}: TypeAlias = Any" in (ROOT / "fxprune" / file).read_text()


def test_records_are_frozen_or_say_why() -> None:
    """Whatever fields a record has: a dataclass that may change says so where it is read."""
    loose = {}
    for path in (*(ROOT / "fxprune").rglob("*.py"), *(ROOT / "passes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(_is_loose(d) for d in node.decorator_list):
                loose[f"{path.name}: {node.name}"] = ast.get_docstring(node) or ""
    assert {name for name, words in loose.items() if "not frozen" not in words} == set()
    assert loose


def _is_loose(decorator: ast.expr) -> bool:
    """Is it a dataclass's, without frozen=True?"""
    called = isinstance(decorator, ast.Call)
    name = decorator.func if called else decorator
    frozen = called and any(word.arg == "frozen" for word in decorator.keywords)
    return isinstance(name, ast.Name) and name.id == "dataclass" and not frozen


def test_mypy_is_strict_there() -> None:
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg")
    (strict,) = [name for name in read.sections() if read[name].get("disallow_untyped_defs")]
    floors = ("graph", *FLOORS, "choose", "compiler", "passes")
    assert all(f"fxprune.{floor}.*" in strict for floor in floors)
