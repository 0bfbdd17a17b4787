"""What is broken and what may turn red, as paths: the default suite checks that they exist."""

from __future__ import annotations

from pathlib import Path

import fxprune

ROOT = Path(fxprune.__file__).parent  # of what is broken
TESTS_ROOT = Path(__file__).parents[1]

# What goes backward tells nothing: torch refuses to in a fork.
TESTS = [
    "rules/test_rules.py",
    "passes/test_passes.py",
    "passes/test_checks.py",
    "compiler/test_rebase.py",
    "passes/test_random_bases.py",
    "graph/test_quick_shapes.py",
    "graph/test_quick_layouts.py",
    "passes/test_along.py",
    "capture/test_autograd_functions.py::test_half_of_it_is_exact",
    "capture/test_autograd_functions.py::test_the_forward_does_not_stand_in_the_graph_as_well",
    "choose/test_merge.py",
    "capture/test_modes.py",
    "passes/test_split_qkv.py",
    "choose/test_like.py",
    "choose/test_depth.py",
    "test_contract.py",
    "certify/test_certificate.py",
    "test_errors.py",
    "capture/test_decisions.py",
    "rules/test_layers.py",
    "test_hard_cases.py::test_shrinks_what_should",
    "choose/test_selection.py",
]


def sources() -> list[str]:
    """Name the files whose statements are left out in turn, below `fxprune/`."""
    found = [ROOT / "result" / "selection.py", ROOT / "graph" / "values.py"]
    for folder in ("passes", "certify"):
        found += sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")
    return [path.relative_to(ROOT).as_posix() for path in found]
