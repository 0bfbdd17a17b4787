"""Prune, certify and tabulate some models of a library: `python examples/zoo_run.py 'timm:test_*'`."""

import argparse
from pathlib import Path

import fxprune.certify.zoo
from fxprune.result.saved.model_specs import expand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", default=["timm:test_vit", "timm:test_convnext"])
    parser.add_argument("--table", type=Path, default=Path("zoo.csv"), help="is resumed if it is there")
    options = parser.parse_args()

    specs = [spec for pattern in options.patterns for spec in expand(pattern)]
    for result in fxprune.certify.zoo.run(specs, options.table, workers=1):
        left = "" if result.params_left is None else f"{result.params_left:.0%} of the parameters left"
        print(f"{result.model:28} {result.outcome:10} {left}  {result.note}".rstrip())


if __name__ == "__main__":
    main()
