"""`fxprune inspect` and `fxprune explain`: what is coupled with what, and why."""

from __future__ import annotations

import json
from typing import Any

import click

import fxprune
from fxprune.cli.models import subject
from fxprune.cli.options import model_options, original_option, output_options
from fxprune.cli.progress import progress

__all__ = ["explain", "inspect_model"]


def _analysis(what: str, quiet: bool, options: dict[str, Any]) -> fxprune.Analysis:
    with progress(quiet) as step:
        step(f"building {what}")
        made = subject(what, **options)
        step("analysing")
        return fxprune.analyze(made.model, **made.options)


@click.command(
    "inspect",
    epilog="\b\nExamples:\n  fxprune inspect timm:swin_tiny_patch4_window7_224\n  fxprune inspect deit-half",
)
@click.argument("what", metavar="MODEL|FOLDER")
@original_option
@model_options
@output_options
def inspect_model(what: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """List the groups of coupled dimensions of MODEL or FOLDER, and why some are frozen."""
    analysis = _analysis(what, quiet, options)
    if not as_json:
        click.echo(str(analysis))
        for note in analysis.notes:
            click.echo(f"note: {note}")
        return
    groups = [
        {
            "name": group.name,
            "size": group.size,
            "role": group.role,
            "sites": list(map(str, group.sites)),
            **_what_may_change(group),
        }
        for group in analysis.groups
    ]
    record = {"capture": analysis.capture, "notes": analysis.notes, "groups": groups}
    click.echo(json.dumps(record, indent=1))


@click.command(
    epilog="""\b
Examples:
  fxprune explain timm:deit_small_patch16_224 blocks.3.attn.qkv
  fxprune explain torchvision:swin_t features.1.0.attn.relative_position_bias_table
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.argument("name")
@original_option
@model_options
@output_options
def explain(what: str, name: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show what may shrink in NAME (a module, weight or group), and with what."""
    found = fxprune.explain(_analysis(what, quiet, options), name)
    if not as_json:
        click.echo(str(found))
        return
    groups = [{"name": g.name, "size": g.size, **_what_may_change(g)} for g in found.groups]
    click.echo(json.dumps({"weights": found.weights, "groups": groups, "text": found.text}, indent=1))


def _what_may_change(group: fxprune.Group) -> dict[str, str | None]:
    return {
        "frozen": str(group.frozen) if group.frozen else None,
        "freedom": str(group.freedom),
        "limited_by": str(group.limited_by) if group.limited_by else None,
    }
