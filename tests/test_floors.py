"""An import goes down a floor or stays on its own; nowhere do imports run in a circle."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]

# Lowest first.  What stands on one floor may know what is below it; two rooms of one floor may know each
# other in one direction (the test of circles says so).
FLOORS = (
    ("errors",),
    ("graph",),
    ("rules", "passes.check", "passes.counts"),
    ("passes.canonical", "capture"),
    ("analysis",),
    ("result",),
    ("passes.shrinking", "passes.rebasing"),
    ("certify", "choose"),
    ("compiler",),
    ("show.pictures",),
    ("result.saved", "show.reports", "certify.zoo"),
    ("finetune",),
    ("",),  # fxprune/__init__.py
    ("cli", "__main__"),
)
# Rooms that must not know each other, whatever their floors allow.
WALLS = (
    ("passes.canonical", "passes.shrinking"),
    ("certify", "passes.shrinking"),
    ("rules", "analysis.solver"),
)
ENTRIES = 12  # at most so many files and folders at the top of fxprune/
LINES = 300


@functools.cache
def sources() -> dict[str, Path]:
    """Every module of the package by its name below `fxprune`."""
    found = {}
    for folder, prefix in ((ROOT / "fxprune", ""), (ROOT / "passes", "passes.")):
        for path in folder.rglob("*.py"):
            if "passes" not in path.relative_to(folder).parts:
                parts = path.relative_to(folder).with_suffix("").parts
                found[(prefix + ".".join(parts)).removesuffix("__init__").removesuffix(".")] = path
    return found


def imports_of(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, inside functions as well, but for types only."""
    tree = ast.parse(path.read_text())
    for_types = {
        node
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    known = sources()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names if node not in for_types else ():
            if name.partition(".")[0] == "fxprune":
                name = name.removeprefix("fxprune").removeprefix(".")
                yield name if name in known else name.rpartition(".")[0]


def within(name: str, room: str) -> bool:
    return name == room or (room != "" and name.startswith(f"{room}."))


def room_of(name: str) -> str:
    """The innermost room that a module stands in."""
    return max((room for floor in FLOORS for room in floor if within(name, room)), key=len)


def floor_of(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room_of(name) in rooms)


@functools.cache
def all_imports() -> frozenset[tuple[str, str]]:
    """Who imports whom; but for the package `passes` itself, which only says how it is imported."""
    return frozenset(
        (name, other)
        for name, path in sources().items()
        for other in imports_of(path)
        if other != name and name != "passes"
    )


def upward() -> list[str]:
    return [f"{a} -> {b}" for a, b in sorted(all_imports()) if floor_of(a) < floor_of(b)]


def knots(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """What imports one another in a circle: the largest first."""
    found = (sorted(c) for c in nx.strongly_connected_components(nx.DiGraph(pairs)) if len(c) > 1)
    return sorted(found, key=len, reverse=True)


def between_rooms() -> set[tuple[str, str]]:
    pairs = {(room_of(a), room_of(b)) for a, b in all_imports()}
    return {(a, b) for a, b in pairs if a != b}


def test_imports_go_down_or_stay() -> None:
    assert not (found := upward()), found


def test_no_imports_run_in_a_circle() -> None:
    assert not (found := knots(all_imports())), found


def test_rooms_import_each_other_in_no_circle() -> None:
    assert not (found := knots(between_rooms())), found


@pytest.mark.parametrize(("one", "other"), WALLS)
def test_walls_stand(one: str, other: str) -> None:
    through = [f"{a} -> {b}" for a, b in all_imports() if within(a, one) and within(b, other)]
    through += [
        f"{a} -> {b}"
        for a, b in all_imports()
        if one.startswith("passes") and within(a, other) and within(b, one)
    ]
    assert not through, through


def test_the_top_is_small() -> None:
    top = ROOT / "fxprune"
    files = {path.relative_to(top) for path in top.rglob("*.py")}
    entries = {file.parts[0] for file in files} - {"__init__.py", "__main__.py", "passes"}
    assert len(entries) <= ENTRIES, sorted(entries)


@pytest.mark.parametrize("name", sorted(sources()))
def test_a_long_file_says_why(name: str) -> None:
    lines = sources()[name].read_text().splitlines()
    assert len(lines) <= LINES or any("One file" in line for line in lines[:12]), (
        f"{name}: {len(lines)} lines"
    )


def test_tests_mirror_the_rooms() -> None:
    """Each room has a folder of tests, and each folder of tests a room (the zoo has one of its own)."""
    rooms = {name.partition(".")[0] for name in sources() if "." in name}
    tests = ROOT / "tests"
    folders = {path.relative_to(tests).parts[0] for path in tests.rglob("*/test_*.py")}
    assert {name for name in folders if not name.startswith("test_")} - {"zoo"} == rooms


def unit_of(name: str) -> str:
    """A folder, or a file that stands in none; it means the same in trees that have other floors."""
    known = sources()
    return (
        name
        if any(within(other, name) and other != name for other in known)
        else name.rpartition(".")[0] or name
    )


def describe() -> Iterator[str]:
    """Count imports, those that run upward, and the largest knots: python tests/test_floors.py [CHECKOUT]."""
    units = {(unit_of(a), unit_of(b)) for a, b in all_imports()}
    for label, pairs in (("files", all_imports()), ("units", {(a, b) for a, b in units if a != b})):
        largest = max(map(len, knots(pairs)), default=1)
        names = {name for pair in pairs for name in pair}
        yield f"{len(pairs)} imports between {len(names)} {label}; the largest knot has {largest}"
    try:
        rooms = max(map(len, knots(between_rooms())), default=1)
        yield f"{len(upward())} imports upward between floors; the largest knot of their rooms has {rooms}"
    except ValueError:
        yield "not laid out by these floors"


if __name__ == "__main__":
    ROOT = Path(sys.argv[1]) if sys.argv[1:] else ROOT
    sources.cache_clear()
    print("\n".join(describe()))
