"""The commands.  Each builds what its arguments name, calls one public function, and prints.

One file, since the commands share their options and helpers, and are read side by side.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console

import fxprune
from fxprune.certify.randomise import randomise
from fxprune.cli.errors import FAILED, ended
from fxprune.cli.images import batches_from
from fxprune.cli.models import Made, device_of, is_saved, made
from fxprune.cli.options import model_options, output_options, timing_options
from fxprune.saved import model_specs
from fxprune.saved.folder import read_record
from fxprune.saved.hub import local_folder
from fxprune.saved.load import original_of
from fxprune.saved.replay import replayed

__all__ = ["app", "run"]


def _ratios(given: tuple[str, ...]) -> dict[str, float]:
    """`blocks.0.*=0.25`, as often as it was given."""
    try:
        return {pattern: float(ratio) for pattern, ratio in (text.rsplit("=", 1) for text in given)}
    except ValueError:
        hint = "write PATTERN=RATIO such as 'blocks.0.*=0.25'"
        raise click.BadParameter(hint, param_hint="--ratios") from None


def _floor(context: click.Context, option: click.Parameter, text: str | None) -> int | float | None:
    """A whole number counts elements, any other is a share."""
    try:
        return None if text is None else int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}: a number of elements, or a share such as 0.1") from None


SPECS = """A MODEL is timm:deit_small_patch16_224, torchvision:vit_b_16, hf:vit or hf:owner/name, or
package.module:factory, any callable that returns a model."""


def run(arguments: list[str] | None = None) -> int:
    """The whole program; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return ended(lambda: app.main(arguments, "fxprune", standalone_mode=False), arguments)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  fxprune prune timm:deit_small_patch16_224 --pretrained --out deit-half
  fxprune explain timm:deit_small_patch16_224 blocks.3.attn.qkv
  fxprune bench deit-half --batch 16
Completion for bash, zsh or fish:
  eval "$(_FXPRUNE_COMPLETE=bash_source fxprune)"
""",
    help=f"Structured pruning of any traceable vision transformer.\n\n{SPECS}",
)
@click.version_option(fxprune.__version__, package_name="fxprune")
def app() -> None:
    pass


@app.command(
    epilog="""\b
Examples:
  fxprune prune timm:deit_small_patch16_224 --pretrained --out deit-half
  fxprune prune timm:deit_small_patch16_224 --pretrained --data images/ --ratio 0.3 --out deit-70
  fxprune prune mymodels:make --checkpoint best.safetensors --input-size 3,64,64 --out small
"""
)
@click.argument("model")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The folder to write.")
@click.option("--ratio", type=float, default=0.5, show_default=True, help="The fraction to remove.")
@click.option("--target", help="What ratio is a fraction of: channels, params, macs or latency.")
@click.option("--like", metavar="MODEL", help="Prune to the widths of this smaller model.")
@click.option("--scope", help="Rank channels: uniform, global or isomorphic.")
@click.option("--depth", type=float, help="The fraction of residual branches to remove.")
@click.option("--data", type=click.Path(exists=True, file_okay=False), help="A folder of images to rank by.")
@click.option("--images", type=click.IntRange(1), default=256, show_default=True, help="How many of them.")
@click.option("--importance", help="magnitude, kl, kl-exact, taylor, activation or random.")
@click.option("--attention", help="Remove whole heads, head_dim inside each, or auto.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Modules that stay whole; may be repeated.")
@click.option("--ratios", multiple=True, metavar="PATTERN=R", help="Own ratio of some groups; repeatable.")
@click.option("--steps", type=click.IntRange(1), help="Prune in so many steps, each scored anew.")
@click.option(
    "--floor", metavar="N|SHARE", callback=_floor, help="What each group keeps: a count, or a share."
)
@click.option("--round-to", type=int, help="Keep widths that are multiples of this.")
@click.option(
    "--outputs",
    metavar="keep|prune|NAME,..",
    help="Outputs that stay whole: all (keep), none (prune), or those of these names.",
)
@click.option("--certify", is_flag=True, help="Verify the result in float64.")
@model_options
@output_options
def prune(
    model: str,
    out: str,
    ratio: float,
    data: str | None,
    images: int,
    like: str | None,
    certify: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **others: Any,
) -> int:
    """Prune MODEL and save the result to a folder."""
    about_model = {name: others.pop(name) for name in _MODEL_OPTIONS}
    if (others["outputs"] or "keep") not in ("keep", "prune"):
        others["outputs"] = others["outputs"].split(",")
    others["ratios"] = _ratios(others.pop("ratios")) or None
    options = {name: value for name, value in others.items() if value not in (None, ())}
    with _speaking(quiet) as step:
        step(f"building {model}")
        dense = made(model, **about_model)
        if like is not None:
            options["like"] = model_specs.build(like)
        if data is not None:
            step(f"reading images of {data}")
            options["data"] = batches_from(data, dense.model, dense.options, images, 16)
        step("pruning")
        pruned = fxprune.prune(dense.model, ratio, **dense.options, **options)
        step(f"writing {out}")
        own = model.partition(":")[0] not in ("timm", "torchvision", "hf")
        fxprune.save(pruned, out, build=model if own else None)
        step("measuring")
        found = fxprune.report(dense.model, pruned, certificate=certify)
    if as_json:
        click.echo(json.dumps({"out": out, **found.to_dict()}, indent=1))
    elif not quiet:
        click.echo(str(found))
        click.echo(f"saved to {out}")
    return FAILED if found.certificate is not None and not _exact(found.certificate) else 0


_MODEL_OPTIONS = ("pretrained", "checkpoint", "input_size", "capture", "device")


@app.command("inspect", epilog="\b\nExample:\n  fxprune inspect timm:swin_tiny_patch4_window7_224")
@click.argument("model")
@model_options
@output_options
def inspect_model(model: str, as_json: bool, quiet: bool, debug: bool, **options: Any) -> None:
    """List MODEL's groups of coupled dimensions, and why some must stay whole."""
    analysis = _analysis(model, quiet, options)
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
            "whole": str(group.frozen) if group.frozen else None,
        }
        for group in analysis.groups
    ]
    record = {"capture": analysis.capture, "notes": analysis.notes, "groups": groups}
    click.echo(json.dumps(record, indent=1))


@app.command(
    epilog="""\b
Examples:
  fxprune explain timm:deit_small_patch16_224 blocks.3.attn.qkv
  fxprune explain torchvision:swin_t features.1.0.attn.relative_position_bias_table
"""
)
@click.argument("model")
@click.argument("name")
@model_options
@output_options
def explain(model: str, name: str, as_json: bool, quiet: bool, debug: bool, **options: Any) -> None:
    """Say what may shrink in NAME (a module, weight or group of MODEL), and with what."""
    found = fxprune.explain(_analysis(model, quiet, options), name)
    if not as_json:
        click.echo(str(found))
        return
    groups = [{"name": g.name, "size": g.size, "whole": str(g.frozen or "") or None} for g in found.groups]
    click.echo(json.dumps({"weights": found.weights, "groups": groups, "text": found.text}, indent=1))


@app.command(
    epilog="""\b
Examples:
  fxprune draw timm:deit_small_patch16_224 deit.html
  fxprune draw deit-half block.svg --modules blocks.3
"""
)
@click.argument("model")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--view", help="What to draw: graph, coupling or kept.")
@click.option("--modules", multiple=True, metavar="PATTERN", help="Only these; may be repeated.")
@model_options
@output_options
def draw(
    model: str,
    file: str,
    view: str | None,
    modules: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Draw MODEL (or a saved folder) into FILE: .html, .svg or .png."""
    with _speaking(quiet) as step:
        step(f"drawing {model}")
        what = fxprune.load(model) if is_saved(model) else _analysis(model, quiet, options)
        extra: dict[str, Any] = {k: v for k, v in {"view": view, "modules": list(modules)}.items() if v}
        fxprune.draw(what, file, **extra)
    if as_json:
        click.echo(json.dumps({"file": file}))


@app.command(
    epilog="""\b
Examples:
  fxprune verify deit-half
  fxprune verify deit-half --model timm:deit_small_patch16_224 --pretrained
"""
)
@click.argument("folder")
@click.option("--model", metavar="MODEL", help="The original, for a folder that can't say how to build it.")
@click.option("--pretrained", is_flag=True, help="Compare with the library's published weights.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE.safetensors",
    help="Compare with these weights of the original.",
)
@click.option("--device", default="cpu", show_default=True)
@output_options
def verify(
    folder: str,
    model: str | None,
    pretrained: bool,
    checkpoint: str | None,
    device: str,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Check a saved FOLDER: its digests, and in float64 that its rewrite is exact.

    With --pretrained or --checkpoint the saved weights are compared with those of the original, which
    they equal as long as the result was not trained; else the rewrite is proven on random weights.
    """
    weights = pretrained or checkpoint is not None
    if weights and model is None:
        raise click.UsageError("--pretrained and --checkpoint need --model, whose weights they are")
    with _speaking(quiet) as step:
        step(f"loading {folder}")
        pruned = fxprune.load(folder, model, device=device_of(device))
        if weights:
            assert model is not None
            dense = made(model, pretrained=pretrained, checkpoint=checkpoint, device=device).model
            subject = pruned
        else:
            record = read_record(local_folder(folder))
            dense = randomise(original_of(record, model)).to(device_of(device))
            subject = replayed(dense, record, fxprune.DEFAULT_RULES)
        step("verifying")
        error = fxprune.verify(dense, subject)
    what = "its own weights" if weights else "random weights"
    if as_json:
        click.echo(
            json.dumps({"folder": folder, "error": float(error), "exact": error.exact, "weights": what})
        )
    elif not quiet:
        click.echo(
            f"{folder}: whole and unedited; {error.words}, "
            f"largest relative error {float(error):.1e} on {what}"
        )
    return 0 if error.exact else FAILED


@app.command(
    epilog="""\b
Examples:
  fxprune bench deit-half --batch 16 --threads 1
  fxprune bench timm:deit_small_patch16_224 --ratio 0.3
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.option("--ratio", type=float, default=0.5, show_default=True, help="For a MODEL: what to remove.")
@click.option("--model", metavar="MODEL", help="The original, for a folder that can't say how to build it.")
@timing_options
@model_options
@output_options
def bench(
    what: str,
    ratio: float,
    model: str | None,
    batch: int,
    threads: int | None,
    runs: int,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Measure a saved FOLDER, or MODEL pruned by --ratio, beside the original."""
    with _speaking(quiet) as step:
        step(f"building {what}")
        if is_saved(what):
            where = device_of(options["device"])
            pruned = fxprune.load(what, model, device=where)
            dense = original_of(read_record(local_folder(what)), model).to(where)
        else:
            given = made(what, **options)
            dense = given.model
            pruned = fxprune.prune(dense, ratio, **given.options)
        step("measuring")
        found = fxprune.report(dense, pruned, latency=True, batch=batch, threads=threads, runs=runs)
    click.echo(found.to_json() if as_json else str(found))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    epilog="\b\nExample:\n  fxprune zoo 'timm:*deit*' --table zoo.csv",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def zoo(arguments: tuple[str, ...]) -> int:
    """Prune and certify many models, and keep a table of them."""
    from fxprune.zoo.__main__ import main

    try:
        return main(list(arguments))
    except SystemExit as stop:  # argparse's way to say that usage was wrong, or that it has shown its help
        return stop.code if isinstance(stop.code, int) else FAILED


# ---------------------------------------------------------------- what the commands share


def _analysis(model: str, quiet: bool, options: dict[str, Any]) -> fxprune.Analysis:
    with _speaking(quiet) as step:
        step(f"building {model}")
        dense: Made = made(model, **options)
        step("analysing")
        return fxprune.analyze(dense.model, **dense.options)


def _exact(error: float) -> bool:
    return error <= fxprune.Certificate.tolerance


@contextlib.contextmanager
def _speaking(quiet: bool) -> Iterator[Any]:
    """A line on stderr for each step of long work; a spinner where stderr is a terminal."""
    console = Console(stderr=True, quiet=quiet)
    with warnings.catch_warnings(), console.status("") as status:
        if quiet:
            warnings.simplefilter("ignore")

        def step(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"{text} ...", highlight=False, soft_wrap=True)

        yield step
