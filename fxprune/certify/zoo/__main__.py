"""`python -m fxprune.certify.zoo 'timm:*deit*'`: check models, keep the table, print its summary."""

from __future__ import annotations

import argparse
import sys

from fxprune.certify.zoo import coverage, table
from fxprune.certify.zoo.result import EXCLUDED
from fxprune.certify.zoo.run import run
from fxprune.result.saved import model_specs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fxprune.certify.zoo", description="Prune and certify many models."
    )
    parser.add_argument("specs", nargs="+", help="timm:NAME, torchvision:PATTERN*, package.module:*, ...")
    parser.add_argument("--table", default="zoo.csv", help="the CSV file to resume and to add to")
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one model")
    parser.add_argument("--again", action="store_true", help="also check what passed before")
    parser.add_argument("--summary", help="write the whole table's summary between the marks of this file")
    options = parser.parse_args(arguments)
    specs = [spec for pattern in options.specs for spec in model_specs.expand(pattern)]
    results = run(specs, options.table, workers=options.workers, limit=options.limit, again=options.again)
    print(table.summary(results))
    if options.summary:
        table.write_summary(options.summary, table.summary(table.read(options.table).values()))
    print(coverage.summary(coverage.read(options.table)))
    failed = [r for r in results if not r.passed and r.outcome != EXCLUDED]
    for result in failed:
        print(f"{result.model}: {result.note}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
