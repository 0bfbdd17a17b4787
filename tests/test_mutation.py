"""The mutation check knows the tree as it is: every path and every explained mutant that it names exists."""

from __future__ import annotations

import ast
import gc
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent / "mutation"
MODULES = ("paths", "source", "explained", "facts", "tables")


@pytest.fixture(scope="module")
def mutation() -> dict[str, ModuleType]:
    """The modules of the check, imported as it imports them."""
    known = {*sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        return {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in {*MODULES} - known:
            sys.modules.pop(name, None)


def test_every_test_that_it_names_exists(mutation: dict[str, ModuleType]) -> None:
    for named in mutation["paths"].TESTS:
        file, _, function = named.partition("::")
        path = mutation["paths"].TESTS_ROOT / file
        assert path.is_file(), named
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert not function or function in names, named


def test_sources_are_every_pass_and_all_of_the_certificate(mutation: dict[str, ModuleType]) -> None:
    paths = mutation["paths"]
    sources = paths.sources()
    assert all((paths.ROOT / source).is_file() for source in sources)
    for source in ("passes/canonical/lift_modules.py", "passes/shrinking/shrink.py"):
        assert source in sources
    assert "passes/shrinking/steps/respell.py" in sources
    assert "certify/certificate.py" in sources


def test_every_explained_mutant_exists(mutation: dict[str, ModuleType]) -> None:
    mutants_of = mutation["source"].source_mutants
    known = {str(m) for file in mutation["paths"].sources() for m in mutants_of(file)}
    known |= {str(m) for m in mutation["tables"].table_mutants()}
    for name in mutation["explained"].EXPLAINED:
        file = name.partition(":")[0]
        if file.endswith(".py"):
            assert name in known, name
        else:
            assert file in mutation["facts"].DEFAULT_RULES, name


def test_the_functions_that_mutants_replace_are_found(mutation: dict[str, ModuleType]) -> None:
    """In a session whose objects are frozen, as this one's are: then they are in no list of objects."""
    source = mutation["source"]
    gc.freeze()
    try:
        mutant = next(source.source_mutants("result/selection.py"))
        assert source.loaded()[source._place(mutant.code)]
    finally:
        gc.freeze()
