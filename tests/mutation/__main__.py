"""The mutation check: `python tests/mutation` breaks every rule and pass in turn and wants a red test.

    python tests/mutation                    # all of it
    python tests/mutation rules              # rules alone
    python tests/mutation --only softmax     # mutants whose name holds a word
    python tests/mutation passes --part 2/3  # every third of them, from the second on

Prints each mutant with the test that kills it, then the survivors.  A survivor is explained in
`explained.py` or fails the check.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from explained import EXPLAINED
from facts import RuleMutant
from paths import ROOT, TESTS, TESTS_ROOT, sources
from session import Session, by_reach
from source import SourceMutant, source_mutants
from tables import MaskedMutant, WidthMutant, table_mutants

from fxprune import DEFAULT_RULES

SOURCES = sources()
OWN = {"passes": ("test_passes", "test_autograd_functions"), "certify": ("test_certificate",)}
KINDS = ["rules", "passes", "tables"]
MOST = 100  # tests for one mutant: of what every test reaches, more would tell no more
DEEPEST = 30  # those that reach most lines of its file: there the pass has work to do


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/mutation", description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"what to break: {KINDS}")
    parser.add_argument("--only", nargs="+", default=[""], help="mutants whose name holds one of these")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th of them, from the K-th on")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what may turn red")
    parser.add_argument("--notes", help="a file that keeps what tests reach: they are not run as is again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--quiet", action="store_true", help="print survivors alone")
    options = parser.parse_args()
    first, step = map(int, options.part.split("/"))
    part = slice(first - 1, None, step)
    check = Check(options.kinds or KINDS, options.only, part, options.jobs, options.quiet)
    arguments = [str(TESTS_ROOT / test) for test in options.tests]
    arguments += ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--no-summary"]
    session = Session([str(ROOT / f) for f in SOURCES], check.run, options.notes)
    code = int(pytest.main(arguments, plugins=[session]))
    return code or check.summary()


class Check:
    def __init__(self, kinds: list[str], only: list[str], part: slice, jobs: int, quiet: bool) -> None:
        self.kinds, self.only, self.part, self.jobs, self.quiet = kinds, only, part, jobs, quiet
        self.count, self.survivors = 0, list[str]()
        self.start = time.monotonic()

    def run(self, session: Session) -> None:
        print(f"{len(session.items)} tests are green, {time.monotonic() - self.start:.0f} s", flush=True)
        mutants = [
            (mutant, tests)
            for mutant, tests in self._mutants(session)
            if any(word in str(mutant) for word in self.only)
        ][self.part]

        def killer(mutant: Any, tests: list[str]) -> str | None:
            return session.killer(mutant.apply, self._in_order(mutant, tests, session))

        with ThreadPoolExecutor(self.jobs) as threads:  # each waits for a fork
            killers = threads.map(killer, *zip(*mutants, strict=True))
            for (mutant, tests), killed_by in zip(mutants, killers, strict=True):
                self.count += 1
                if killed_by is None:
                    self.survivors.append(str(mutant))
                if killed_by is None or not self.quiet:
                    said = killed_by.rpartition("/")[2] if killed_by else f"SURVIVES {len(tests)} tests"
                    print(f"{str(mutant)[:110]:<110}  {said}", flush=True)

    def _in_order(self, mutant: Any, tests: list[str], session: Session) -> list[str]:
        """The op's or pass's own tests first, each time those that reach most in least time.

        Of very many others, some: all that a certificate of any model runs through.
        """
        path = getattr(mutant, "path", None)

        def depth(test: str) -> int:
            return sum(file == path for file, _ in session.seen[test].lines)

        def worth(test: str) -> float:
            return (1 + depth(test)) / (0.01 + session.seen[test].seconds)

        words = [f"[{mutant.op}"] if isinstance(mutant, RuleMutant) else ["test_layers"]
        if isinstance(mutant, SourceMutant):
            file = Path(mutant.file)
            words += [f"test_{file.stem}", *OWN.get(file.parts[0], ())]
        own = [t for t in tests if any(word in t for word in words)]
        own += sorted({*tests} - {*own}, key=depth, reverse=True)[:DEEPEST]
        others = sorted({*tests} - {*own})
        others = random.Random(0).sample(others, min(len(others), MOST))
        return [t for some in (own, others) for t in sorted(some, key=worth, reverse=True)]

    def _mutants(self, session: Session) -> Iterator[tuple[Any, list[str]]]:
        """Every mutant, with the tests that reach what it breaks."""
        for kind in self.kinds:
            yield from {"rules": _of_rules, "passes": _of_sources, "tables": _of_tables}[kind](session)

    def summary(self) -> int:
        unexplained = [name for name in self.survivors if name not in EXPLAINED]
        explained = [name for name in self.survivors if name in EXPLAINED]
        killed = self.count - len(self.survivors)
        print(f"\n{self.count} mutants, {killed} killed, {len(explained)} explained, ", end="")
        print(f"{len(unexplained)} survive without a reason; {time.monotonic() - self.start:.0f} s")
        for name in explained:
            print(f"  {name}: {EXPLAINED[name]}")
        for name in unexplained:
            print(f"  SURVIVES  {name}")
        whole = self.kinds == KINDS and self.part == slice(0, None, 1) and not any(self.only)
        stale = [] if not whole else sorted({*EXPLAINED} - {*self.survivors})
        for name in stale:
            print(f"  explained, and killed all the same: {name}")
        return 1 if unexplained or stale else 0


def _of_rules(session: Session) -> Iterator[tuple[RuleMutant, list[str]]]:
    tests = by_reach(session.seen, "facts")
    for op in DEFAULT_RULES:
        tests.setdefault((op, ("rule",)), [])
    for (op, key), reaching in sorted(tests.items(), key=str):
        yield RuleMutant(op, key), reaching


def _of_sources(session: Session) -> Iterator[tuple[SourceMutant, list[str]]]:
    tests = by_reach(session.seen, "lines")
    for mutant in [m for file in SOURCES for m in source_mutants(file)]:
        yield mutant, sorted({test for line in mutant.lines for test in tests[mutant.path, line]})


def _of_tables(session: Session) -> Iterator[tuple[MaskedMutant | WidthMutant, list[str]]]:
    rules, layers = by_reach(session.seen, "facts"), by_reach(session.seen, "layers")
    for mutant in table_mutants():
        if isinstance(mutant, MaskedMutant):
            yield mutant, rules[mutant.op, ("rule",)]
        else:
            yield mutant, layers[mutant.layer]


if __name__ == "__main__":
    sys.exit(main())
