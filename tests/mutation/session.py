"""Runs tests many times over, from one collection: once as they are, then for each mutant in a fork."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import facts
import pytest
from _pytest.skipping import evaluate_skip_marks
from _pytest.tmpdir import tmppath_result_key
from source import loaded

from fxprune.rules.modules import NATIVE, native

LIMIT = 120  # seconds for one test: a mutant may loop for ever


@dataclass
class Seen:
    """What one test reaches while all is well."""

    seconds: float = 0.0
    facts: set[tuple[str, facts.Key]] = field(default_factory=set)  # op, fact of its rule
    lines: set[tuple[str, int]] = field(default_factory=set)  # file, line
    layers: set[str] = field(default_factory=set)  # classes of modules in a pruned graph


class Session:
    """A pytest plugin that hands the collected tests to a function in place of running them."""

    def __init__(self, files: Iterable[str], work: Callable[[Session], None], notes: str | None) -> None:
        self.files, self.work = set(files), work
        self.notes = Path(notes) if notes else None
        known = self.notes is not None and self.notes.exists()
        self.seen: dict[str, Seen] = pickle.loads(self.notes.read_bytes()) if self.notes and known else {}
        self.items: dict[str, Any] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items if not evaluate_skip_marks(item)}
        try:
            self._run_as_is([item for test, item in self.items.items() if test not in self.seen])
        finally:
            self.seen = {test: seen for test, seen in self.seen.items() if test in self.items}
            if self.notes:
                self.notes.write_bytes(pickle.dumps(self.seen))
        loaded()
        gc.collect()
        gc.freeze()  # so that forks share what stands here
        self.work(self)
        return True

    def _run_as_is(self, items: list[Any]) -> None:
        """Every test once, noting what it reaches."""
        now = Seen()
        facts.watch(lambda op, keys: now.facts.update((op, key) for key in keys))
        _watch_layers(lambda name: now.layers.add(name))
        for i, item in enumerate(items):
            now.__init__()  # type: ignore[misc]
            start = time.process_time()
            sys.settrace(_tracer(self.files, now.lines))
            red = _is_red(item, items[i + 1] if i + 1 < len(items) else None)
            sys.settrace(None)
            if red:
                raise SystemExit(f"{item.nodeid} fails without a mutant")
            now.seconds = time.process_time() - start
            self.seen[item.nodeid] = Seen(**vars(now))
        facts.unwatch()
        _watch_layers(None)

    def killer(self, apply: Callable[[], None], tests: Iterable[str]) -> str | None:
        """The first test that turns red once `apply` was called; None if none does.

        Runs in a fork of this process: what is broken there stays whole here.
        """
        order = list(tests)
        if not order:
            return None
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            said: str | Exception | None
            try:
                apply()
                said = next((test for test in order if _is_red(self.items[test], None)), None)
            except BaseException as error:  # the check itself is broken, not the code that it checks
                said = RuntimeError(f"{type(error).__name__}: {error}")
            os.write(writer, pickle.dumps(said))
            os._exit(0)
        os.close(writer)
        answer = os.read(reader, 1 << 16)  # not until its end: a fork for another mutant may hold it open
        os.close(reader)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return f"(died of signal {os.WTERMSIG(status)})"
        killer = pickle.loads(answer)
        if isinstance(killer, Exception):
            raise killer
        return killer


def _is_red(item: Any, following: Any) -> bool:
    signal.alarm(LIMIT)
    for value in list(vars(item.module).values()):
        if hasattr(value, "cache_clear"):  # what an earlier run left there knows of no mutant
            value.cache_clear()
    item._initrequest()
    item.stash.setdefault(tmppath_result_key, {})  # what `tmp_path` reads of a report
    state = item.session._setupstate
    try:  # pytest's own protocol, without its report: writing down a traceback takes longer than a test
        state.setup(item)
        item.runtest()
    except pytest.skip.Exception:
        return False
    except (Exception, pytest.fail.Exception) as error:
        return "autograd's threading" not in str(error)  # which torch refuses in a fork: that is no mutant's
    finally:
        state.teardown_exact(following)
        signal.alarm(0)
    return False


def _tracer(files: set[str], lines: set[tuple[str, int]]) -> Callable[..., Any]:
    """Notes the lines that run in some files."""

    def inside(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return inside

    def entered(frame: FrameType, event: str, _: Any) -> Any:
        return inside if frame.f_code.co_filename in files else None

    return entered


def _watch_layers(met: Callable[[str], None] | None) -> None:
    """Tell the class of each layer that the rewrite copies."""
    module = sys.modules["fxprune.passes.shrinking.steps.describe_layers"]

    def telling(layer: Any) -> Any:
        entry = native(layer)
        if entry is not None and met is not None:
            met(next(cls.__name__ for cls in type(layer).__mro__ if cls in NATIVE))
        return entry

    module.native = native if met is None else telling  # type: ignore[attr-defined]


def by_reach(seen: dict[str, Seen], what: str) -> dict[Any, list[str]]:
    """For each fact, line or layer: the tests that reach it."""
    found: dict[Any, list[str]] = defaultdict(list)
    for test, reached in seen.items():
        for thing in getattr(reached, what):
            found[thing].append(test)
    return found
