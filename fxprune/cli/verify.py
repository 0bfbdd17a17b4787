"""`fxprune verify`: prove that a saved folder is whole and exact."""

from __future__ import annotations

import json
import math

import click

from fxprune.cli.errors import FAILED
from fxprune.cli.models import device_named, original_with_weights
from fxprune.cli.options import original_option, output_options, weights_options
from fxprune.cli.progress import progress
from fxprune.result.saved.check import check_rewrite, check_weights

__all__ = ["verify"]


@click.command(
    epilog="""\b
Examples:
  fxprune verify deit-half
  fxprune verify deit-half --pretrained
  fxprune verify own-half --model mymodels:make --checkpoint best.safetensors
"""
)
@click.argument("folder")
@original_option
@weights_options
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@output_options
def verify(
    folder: str,
    model: str | None,
    pretrained: bool,
    checkpoint: str | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Check a saved FOLDER: its digests, and in float64 that its rewrite is exact.

    With --pretrained or --checkpoint the saved weights are compared with those of the original, which
    they equal as long as the result was not trained; else the rewrite is proven on random weights.
    """
    own = pretrained or checkpoint is not None
    with progress(quiet) as step:
        step(f"verifying {folder}")
        if own:
            dense = original_with_weights(
                folder, model, pretrained=pretrained, checkpoint=checkpoint, device=device
            )
            error = check_weights(folder, dense, model)
        else:
            error = check_rewrite(folder, model, device=device_named(device))
    what = "its own weights" if own else "random weights"
    if as_json:
        number = float(error) if math.isfinite(error) else None  # (JSON has no infinite numbers)
        found = {"folder": folder, "error": number, "exact": error.exact, "weights": what}
        click.echo(json.dumps(found))
    elif not quiet:
        click.echo(
            f"{folder}: whole and unedited; {error.words}, "
            f"largest relative error {float(error):.1e} on {what}"
        )
    return 0 if error.exact else FAILED
