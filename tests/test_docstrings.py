"""A function's docstring begins with a verb: what it does to what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in (ROOT / "fxprune", ROOT / "passes")
    for path in folder.rglob("*.py")
    if "passes" not in path.relative_to(folder).parts
)
NO_VERBS = {
    *("The", "A", "An", "This", "These", "Those", "It", "Its", "Every", "Each", "All", "One", "There"),
    *(
        "What",
        "How",
        "Which",
        "Why",
        "Where",
        "Whether",
        "Of",
        "For",
        "In",
        "From",
        "As",
        "At",
        "With",
        "While",
    ),
}


def first_lines(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each function's name and the first line of its docstring; a property's says what it is."""
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if isinstance(node, ast.FunctionDef) and text and not _is_property(node):
            yield node.name, text.splitlines()[0]


def _is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def begins_with_a_verb(line: str) -> bool:
    """Not begins otherwise, that is: a predicate's may be its question, a rule's the axes that it maps."""
    return line.split(" ")[0].strip(",:") not in NO_VERBS or line.split("  ")[0].endswith("?")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_begins_with_a_verb(path: Path) -> None:
    found = dict(first_lines(ast.parse(path.read_text())))
    riddles = {name: line for name, line in found.items() if not begins_with_a_verb(line)}
    assert not riddles, f"begin with what the function does, such as 'Return the ..': {riddles}"


def test_a_riddle_is_found() -> None:
    (found,) = first_lines(ast.parse('def f():\n    """The axes of it."""'))
    assert not begins_with_a_verb(found[1])
    assert begins_with_a_verb("Return the axes of it.")
    assert begins_with_a_verb("Is it so?  (Or not.)")
