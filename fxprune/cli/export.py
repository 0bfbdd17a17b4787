"""`fxprune export`: a saved folder or a model as an ONNX file."""

from __future__ import annotations

import json
from typing import Any

import click

from fxprune.capture.example_of import example_of
from fxprune.cli.models import subject
from fxprune.cli.options import original_option, output_options, weights_options
from fxprune.cli.progress import progress
from fxprune.result.forms import is_result
from fxprune.result.pruned_module import record_of
from fxprune.result.saved.onnx_file import write_onnx

__all__ = ["export"]


@click.command(
    epilog="""\b
Examples:
  fxprune export deit-half --onnx half.onnx
  fxprune export timm:deit_small_patch16_224 --pretrained --onnx dense.onnx
"""
)
@click.argument("what", metavar="MODEL|FOLDER")
@click.option(
    "--onnx", required=True, type=click.Path(dir_okay=False, writable=True), help="The file to write."
)
@original_option
@weights_options
@click.option("--input-size", metavar="C,H,W", help="For a model that records its input nowhere.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@output_options
def export(what: str, onnx: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write FOLDER or MODEL as an ONNX file that takes any batch size, and run the file to compare it.

    Needs the extra: pip install 'fxprune[onnx]'.
    """
    with progress(quiet) as step:
        step(f"building {what}")
        made = subject(what, **options)
        example = example_of(made.model, made.options.get("example_inputs"))
        step(f"exporting to {onnx}")
        dynamic = record_of(made.model).dynamic if is_result(made.model) else True
        written = write_onnx(made.model, example, onnx, dynamic=dynamic)
    if as_json:
        record = {"file": onnx, "inputs": written.inputs, "outputs": written.outputs, "error": written.error}
        click.echo(json.dumps(record, indent=1))
    elif not quiet:
        for name, shape in (*written.inputs.items(), *written.outputs.items()):
            click.echo(f"{name}: {shape}")
        error = "onnxruntime is not installed, so the file was not run to compare it"
        if written.error is not None:
            error = f"run by onnxruntime it differs from the model by {written.error:.1e}"
        click.echo(f"{onnx}: {error}")
