"""`fxprune draw`: a model, or what is left of it, as a picture."""

from __future__ import annotations

import json
from typing import Any

import click

import fxprune
from fxprune.cli.models import is_saved, subject
from fxprune.cli.options import model_options, original_option, output_options
from fxprune.cli.progress import progress

__all__ = ["draw"]


@click.command(
    epilog="""\b
Examples:
  fxprune draw timm:deit_small_patch16_224 deit.html
  fxprune draw deit-half block.svg --modules blocks.3
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--view", help="What to draw: graph, coupling or kept.")
@click.option("--modules", multiple=True, metavar="PATTERN", help="Only these; may be repeated.")
@original_option
@model_options
@output_options
def draw(
    what: str,
    file: str,
    view: str | None,
    modules: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Draw MODEL, or a saved FOLDER with the sizes before, into FILE: .html, .svg, .png or .pdf."""
    extra: dict[str, Any] = {k: v for k, v in {"view": view, "modules": list(modules)}.items() if v}
    with progress(quiet) as step:
        step(f"drawing {what}")
        made = subject(what, **options)
        drawn = made.model if is_saved(what) else fxprune.analyze(made.model, **made.options)
        fxprune.draw(drawn, file, **extra)
    if as_json:
        click.echo(json.dumps({"file": file}))
