"""`fxprune prune`: prune a model and save the result."""

from __future__ import annotations

import json
from typing import Any

import click

import fxprune
from fxprune.cli.errors import FAILED
from fxprune.cli.images import batches_from
from fxprune.cli.models import build_of, refuse_overwriting, subject
from fxprune.cli.options import given, model_options, original_option, output_options, refuse
from fxprune.cli.preprocessing import normalisation_options, preprocessing_of
from fxprune.cli.progress import progress
from fxprune.result.saved import model_specs
from fxprune.result.saved.save import save_with_images

__all__ = ["prune"]


def _ratios(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, float] | None:
    """Parse `blocks.0.*=0.25`, as often as it was given."""
    try:
        return {pattern: float(ratio) for pattern, ratio in (t.rsplit("=", 1) for t in texts)} or None
    except ValueError:
        raise click.BadParameter("write PATTERN=RATIO such as 'blocks.0.*=0.25'") from None


def _floor(context: click.Context, option: click.Parameter, text: str | None) -> int | float | None:
    """Parse a floor: a whole number counts elements, any other is a share."""
    try:
        return None if text is None else int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}: a number of elements, or a share such as 0.1") from None


def _outputs(context: click.Context, option: click.Parameter, text: str | None) -> str | list[str] | None:
    """Parse keep, prune, or names with commas between them."""
    return text if text in (None, "keep", "prune") else text.split(",")


@click.command(
    epilog="""\b
Examples:
  fxprune prune timm:deit_small_patch16_224 --pretrained --out deit-half
  fxprune prune timm:deit_small_patch16_224 --pretrained --data images/ --ratio 0.3 --out deit-70
  fxprune prune mymodels:make --checkpoint best.safetensors --input-size 3,64,64 --out small
  fxprune prune deit-half --ratio 0.2 --out deit-smaller
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The folder to write.")
@click.option("--ratio", type=float, default=0.5, show_default=True, help="The fraction to remove.")
@click.option("--target", help="What ratio is a fraction of: channels, params, macs or latency.")
@click.option("--like", metavar="MODEL", help="Prune to the widths of this smaller model.")
@click.option("--scope", help="Rank channels: uniform, global or isomorphic.")
@click.option("--depth", type=float, help="The fraction of residual branches to remove.")
@click.option("--data", type=click.Path(exists=True, file_okay=False), help="A folder of images to rank by.")
@click.option("--images", type=click.IntRange(1), default=256, show_default=True, help="How many of them.")
@click.option("--importance", help="magnitude, kl, kl-exact, taylor, activation or random.")
@click.option("--basis", help="With --data: principal, or given to select among the channels that there are.")
@click.option("--no-refit", is_flag=True, help="With --data: keep the weights as selected, solve none again.")
@click.option("--attention", help="Remove whole heads, head_dim inside each, auto, or merge heads.")
@click.option("--split-qkv", is_flag=True, help="Let queries, keys and values have widths of their own.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Modules that stay whole; may be repeated.")
@click.option(
    "--ratios", multiple=True, metavar="PATTERN=R", callback=_ratios, help="Own ratio of groups; repeatable."
)
@click.option("--steps", type=click.IntRange(1), help="Prune in so many steps, each scored anew.")
@click.option(
    "--floor", metavar="N|SHARE", callback=_floor, help="What each group keeps: a count, or a share."
)
@click.option("--round-to", type=int, help="Keep widths that are multiples of this.")
@click.option(
    "--outputs",
    metavar="keep|prune|NAME,..",
    callback=_outputs,
    help="Outputs that stay whole: all (keep), none (prune), or those of these names.",
)
@click.option("--form", help="graph, or module: an instance of the model's own class.")
@click.option("--certify", is_flag=True, help="Verify the result in float64.")
@normalisation_options
@original_option
@model_options
@output_options
def prune(
    what: str,
    out: str,
    ratio: float,
    data: str | None,
    images: int,
    like: str | None,
    certify: bool,
    no_refit: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    as_json: bool,
    quiet: bool,
    **others: Any,
) -> int:
    """Prune MODEL and save the result to a folder; or a saved FOLDER once more."""
    if data is None:
        refuse("it counts the images of --data, which is missing", "images")
        refuse("coordinates are chosen on --data, which is missing", "basis")
        refuse("layers are solved again on --data, which is missing", "no_refit")
        refuse("they are of the images of --data, which is missing", "mean", "std")
    if like is not None:
        refuse("--like decides widths, heads and depth by a smaller model", "ratio")
    refuse_overwriting(out, what)
    about_model = {name: others.pop(name) for name in _MODEL_OPTIONS}
    options = {name: value for name, value in others.items() if given(name)}
    with progress(quiet) as step:
        step(f"building {what}")
        dense = subject(what, **about_model)
        if like is not None:
            options["like"] = model_specs.build(like)
        pixels = preprocessing_of(what, dense.model, mean, std)
        if data is not None:  # in batches of 16 images
            options["data"], words = batches_from(data, dense.model, dense.options, pixels, images, 16)
            step(f"images of {data}: {words}")
        if no_refit:
            options["refit"] = False
        step("pruning")
        pruned = fxprune.prune(dense.model, ratio, **dense.options, **options)
        step(f"writing {out}")
        save_with_images(pruned, out, build_of(what), pixels.text)
        step("measuring")
        found = fxprune.report(dense.model, pruned, certificate=certify)
    if as_json:
        click.echo(json.dumps({"out": out, **json.loads(found.to_json())}, indent=1))
    elif not quiet:
        click.echo(str(found))
        click.echo(f"saved to {out}")
    exact = found.certificate is None or found.certificate <= fxprune.Certificate.tolerance
    return 0 if exact else FAILED


_MODEL_OPTIONS = ("model", "pretrained", "checkpoint", "input_size", "capture", "device")
