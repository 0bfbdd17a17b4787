"""Options that several commands share, as decorators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["model_options", "options", "output_options", "timing_options"]

Decorator = Callable[[Any], Any]


def options(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


output_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
    click.option("--quiet", "-q", is_flag=True, help="No progress and no warnings."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
"""How a command speaks."""

model_options = options(
    click.option("--pretrained", is_flag=True, help="With the library's published weights."),
    click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE.safetensors",
        help="With these weights.",
    ),
    click.option("--input-size", metavar="C,H,W", help="For a model that records its input nowhere."),
    click.option(
        "--capture",
        type=click.Choice(["auto", "symbolic", "export"]),
        default="auto",
        help="How the graph is captured.",
    ),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
)
"""How a model is made."""

timing_options = options(
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in a call."),
    click.option("--threads", type=click.IntRange(1), help="Threads of a call; all by default."),
    click.option("--runs", type=click.IntRange(1), default=11, show_default=True, help="Calls of each."),
)
"""How time is measured."""
