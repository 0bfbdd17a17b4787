"""The program `fxprune`: a group of commands, each in a file of its own."""

from __future__ import annotations

import sys

import click

import fxprune
from fxprune.cli.bench import bench
from fxprune.cli.draw import draw
from fxprune.cli.errors import ended
from fxprune.cli.evaluate import evaluate
from fxprune.cli.export import export
from fxprune.cli.finetune import finetune
from fxprune.cli.inspect import explain, inspect_model
from fxprune.cli.prune import prune
from fxprune.cli.verify import verify
from fxprune.cli.zoo import zoo

__all__ = ["app", "run"]

SPECS = """A MODEL is timm:deit_small_patch16_224, torchvision:vit_b_16, hf:vit or hf:owner/name, or
package.module:factory, any callable that returns a model.  A FOLDER is one that `prune --out` or
fxprune.save wrote, or hf-hub:owner/name."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
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


for command in (prune, finetune, inspect_model, explain, draw, verify, evaluate, bench, export, zoo):
    app.add_command(command)
