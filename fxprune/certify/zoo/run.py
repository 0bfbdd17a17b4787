"""Many models side by side: a process each, a time limit each, resumable, the table written as it grows."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures import as_completed

from tqdm import tqdm

from fxprune.certify.zoo import coverage, table
from fxprune.certify.zoo.check import check
from fxprune.certify.zoo.result import FAILED, Result

__all__ = ["run"]


def run(
    specs: Iterable[str],
    path: str | os.PathLike[str],
    *,
    workers: int = 2,
    limit: float = 900,
    again: bool = False,
) -> list[Result]:
    """Check every model that the table at `path` does not hold as passed, and add it there.

    Args:
        specs: `timm:resnet18`, `package.module:factory`, ...
        path: the CSV file; rows of other models stay as they are.  The ops that were met, and the rule
            that served each, stand beside it (`fxprune.certify.zoo.coverage`).
        workers: processes side by side, one thread each.
        limit: seconds for one model, after which it counts as failed.
        again: check those that passed before, too.

    Returns:
        The rows of `specs`.
    """
    from pebble import ProcessPool

    specs = list(dict.fromkeys(specs))
    rows, ops = table.read(path), coverage.read(path)
    due = [spec for spec in specs if again or spec not in rows or not rows[spec].passed]
    # A process is renewed now and then: what a library caches for each model adds up.
    with ProcessPool(workers, max_tasks=20, context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.schedule(check, args=[spec], timeout=limit): spec for spec in due}
        bar = tqdm(as_completed(running), total=len(due), initial=0, unit="model")
        try:
            for done in bar:
                row = _result(done, running[done], limit)
                rows[row.model] = row
                table.write(path, rows.values())
                if row.ops:
                    ops[row.model] = row.ops
                    coverage.write(path, ops)
                failed = sum(not rows[s].passed for s in specs if s in rows)
                bar.set_postfix(failed=failed, last=row.model)
        except BaseException:
            pool.stop()
            raise
    return [rows[spec] for spec in specs]


def _result(done: object, spec: str, limit: float) -> Result:
    try:
        return done.result()  # type: ignore[attr-defined]
    except OutOfTime:
        return Result(spec, FAILED, note=f"took more than {limit:.0f} s")
    except Exception as error:  # the process died: out of memory, a crash in native code
        return Result(spec, FAILED, note=f"its process died: {error!r}")
