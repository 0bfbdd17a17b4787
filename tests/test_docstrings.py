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
# How a function's docstring may begin; a new verb is added here.
VERBS = """
Add Allow Analyse Answer Apply Approach Ask Assign Bind Bring Broadcast Build Call Capture Catch Certify
Change Check Choose Close Collect Compare Complete Compute Convert Copy Count Couple Cut Decide
Decompose Decorate Derive Describe Detach Diagonalise Digest Divide Draw Drop Edit End Erase Estimate
Evaluate Explain Export Extend Factor Fetch Find Fix Fold Follow Forget Frame Free Freeze Get
Give Guard Hide Hold Ignore Import Improve Index Infer Insert Install Invert Iterate Join Keep
Label Lay Learn Leave Let Limit Link List Load Look Make Map Mark Match Measure Merge Mix Move
Multiply Name Nest Normalise Note Open Order Orthonormalise Pair Parse Patch Place Pool Prepare
Print Propose Prove Prune Put Raise Read Record Refuse Register Remove Rename Repeat Replace
Restore Restrict Resume Return Rewrite Round Run Save Scale Score Search Select Send Set Shorten
Show Silence Skip Slice Solve Sort Spell Split Start Stop Store Substitute Suggest Sum Switch
Take Tell Test Time Trace Train Transpose Try Turn Type Unify Update Use Verify Wait Walk Work Wrap
Write Yield
"""


def first_lines(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each function's name and the first line of its docstring; a property's says what it is."""
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if isinstance(node, ast.FunctionDef) and text and not _is_property(node):
            yield node.name, text.splitlines()[0]


def _is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def begins_with_a_verb(line: str) -> bool:
    """Or is it a predicate's question, or the axes that a rule maps (`b n c, c -> b n c`)?"""
    verb = line.split(" ")[0].strip(",:;.") in VERBS.split()
    return verb or line.split("  ")[0].endswith("?") or "->" in line or line.startswith("`")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_begins_with_a_verb(path: Path) -> None:
    found = first_lines(ast.parse(path.read_text()))
    riddles = [f"{name}: {line}" for name, line in found if not begins_with_a_verb(line)]
    assert not riddles, f"begin with what the function does, such as 'Return the ..': {riddles}"


def test_a_riddle_is_found() -> None:
    (found,) = first_lines(ast.parse('def f():\n    """The axes of it."""'))
    assert not begins_with_a_verb(found[1])
    assert begins_with_a_verb("Return the axes of it.")
    assert begins_with_a_verb("Is it so?  (Or not.)")
