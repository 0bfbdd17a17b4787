"""The zoo's table: a CSV file with one row per model, and its summary in Markdown."""

from __future__ import annotations

import csv
import io
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fxprune.certify.zoo.result import COLUMNS, EXCLUDED, Result
from fxprune.errors import OptionError
from fxprune.result.files import write_whole

__all__ = ["read", "rows_of", "summary", "write", "write_rows", "write_summary"]

HEADER = (
    *("library", "models", "certified", "shape-checked only (> 310 M parameters)", "failed"),
    *("symbolic", "params left", "MACs left", "seconds"),
)
MARKS = "<!-- zoo -->\n", "<!-- /zoo -->"


def rows_of(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Read the rows of a table; none where there is no file yet."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(
    path: str | os.PathLike[str], columns: Iterable[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write a table; the file appears whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def read(path: str | os.PathLike[str]) -> dict[str, Result]:
    """Return the rows by model; none where there is no file yet."""
    return {row["model"]: Result.of_row(row) for row in rows_of(path)}


def write(path: str | os.PathLike[str], results: Iterable[Result]) -> None:
    """Write all rows, sorted by model; the file appears whole or not at all."""
    write_rows(path, COLUMNS, (result.row() for result in sorted(results, key=lambda r: r.model)))


def summary(results: Iterable[Result]) -> str:
    """Sum up by library how many models pass, what they keep and how long it takes."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    by_library: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_library[result.model.partition(":")[0]].append(result)
    for library, rows in sorted(by_library.items()):
        tried = [r for r in rows if r.outcome != EXCLUDED]
        certified = sum(r.outcome == "certified" for r in tried)
        shapes_alone = sum(r.outcome == "shapes" for r in tried)
        figures = (
            _median(r.params_left for r in tried),
            _median(r.macs_left for r in tried),
            _median(r.seconds for r in tried),
        )
        symbolic = sum(r.capture == "symbolic" for r in tried)
        cells = (
            library,
            len(tried),
            certified,
            shapes_alone,
            len(tried) - certified - shapes_alone,
            symbolic,
            *figures,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _median(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.median(known):.2f}" if known else "-"


def write_summary(path: str | os.PathLike[str], text: str) -> None:
    """Put a summary between the marks of a Markdown file; the rest of it stays as it is.

    Raises:
        OptionError: the file has no marks.
    """
    page = Path(path).read_text(encoding="utf-8")
    before, start, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise OptionError(f"{path} has no lines {MARKS[0].strip()} and {MARKS[1]} to write between")
    write_whole(path, f"{before}{start}{text}\n{end}{after}")
