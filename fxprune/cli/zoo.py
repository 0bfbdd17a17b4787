"""`fxprune zoo`: prune and certify many models."""

from __future__ import annotations

import click

from fxprune.cli.errors import FAILED

__all__ = ["zoo"]


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    epilog="\b\nExample:\n  fxprune zoo 'timm:*deit*' --table zoo.csv",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def zoo(arguments: tuple[str, ...]) -> int:
    """Prune and certify many models, and keep a table of them."""
    from fxprune.certify.zoo.__main__ import main

    try:
        return main(list(arguments))
    except SystemExit as stop:  # argparse's way to say that usage was wrong, or that it has shown its help
        return stop.code if isinstance(stop.code, int) else FAILED
