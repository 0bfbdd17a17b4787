"""`fxprune bench`: a pruned model's size and time beside its original's."""

from __future__ import annotations

from typing import Any

import click

import fxprune
from fxprune.cli.models import device_named, is_saved, loaded, subject
from fxprune.cli.options import model_options, original_option, output_options, refuse, timing_options
from fxprune.cli.progress import progress
from fxprune.result.saved.load import original_from

__all__ = ["bench"]


@click.command(
    epilog="""\b
Examples:
  fxprune bench deit-half --batch 16 --threads 1
  fxprune bench timm:deit_small_patch16_224 --ratio 0.3
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.option("--ratio", type=float, default=0.5, show_default=True, help="For a MODEL: what to remove.")
@timing_options
@original_option
@model_options
@output_options
def bench(
    what: str,
    ratio: float,
    batch: int,
    threads: int | None,
    runs: int,
    model: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure a saved FOLDER, or MODEL pruned by --ratio, beside what it was pruned from."""
    if is_saved(what):
        refuse("a FOLDER is pruned already", "ratio")
    with progress(quiet) as step:
        step(f"building {what}")
        if is_saved(what):
            pruned = loaded(what, model, **options)
            dense = original_from(what, model).to(device_named(options["device"]))
        else:
            given = subject(what, model=model, **options)
            dense, pruned = given.model, fxprune.prune(given.model, ratio, **given.options)
        step("measuring")
        found = fxprune.report(dense, pruned, latency=True, batch=batch, threads=threads, runs=runs)
    click.echo(found.to_json() if as_json else str(found))
