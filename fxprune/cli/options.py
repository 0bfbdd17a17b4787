"""Options that several commands share, as decorators; options without effect are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

__all__ = [
    "Decorator",
    "data_options",
    "given",
    "model_options",
    "options",
    "original_option",
    "output_options",
    "refuse",
    "size_option",
    "timing_options",
    "weights_options",
]

Decorator = Callable[[Any], Any]


def options(*decorators: Decorator) -> Decorator:
    """Make one decorator of several options, in the order in which help shows them."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def given(name: str) -> bool:
    """Did the user write this option of the running command, or is its value the default?"""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse(why: str, *names: str) -> None:
    """End the running command if the user wrote options that would have no effect.

    Raises:
        UsageError: names those that were written, and says why they would have none.
    """
    parameters = click.get_current_context().command.params
    written = [p.opts[0] for p in parameters if p.name in names and given(p.name)]
    if written:
        raise click.UsageError(f"{', '.join(written)} would have no effect: {why}")


output_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
    click.option("--quiet", "-q", is_flag=True, help="No progress and no warnings."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)
"""How a command speaks; `--debug` is read where commands end."""

weights_options = options(
    click.option("--pretrained", is_flag=True, help="With the library's published weights."),
    click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE.safetensors",
        help="With these weights.",
    ),
)
"""What a model weighs."""

_device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
size_option = click.option(
    "--input-size", metavar="C,H,W", help="For a model that records its input nowhere."
)

model_options = options(
    weights_options,
    size_option,
    click.option(
        "--capture",
        type=click.Choice(["auto", "symbolic", "export"]),
        default="auto",
        show_default=True,
        help="How the graph is captured.",
    ),
    _device,
)
"""How a model is made."""

original_option = click.option(
    "--model", metavar="MODEL", help="The original, for a FOLDER that can't say how to build it."
)

data_options = options(
    click.option(
        "--data",
        required=True,
        type=click.Path(exists=True, file_okay=False),
        help="A folder with a subfolder of images for each class.",
    ),
    click.option("--images", type=click.IntRange(1), help="At most so many of them; all by default."),
    click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Images in a call."),
    weights_options,
    size_option,
    _device,
)
"""Labelled images, and the model that is to predict them."""

timing_options = options(
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in a call."),
    click.option("--threads", type=click.IntRange(1), help="Threads of a call; all by default."),
    click.option("--runs", type=click.IntRange(1), default=11, show_default=True, help="Calls of each."),
)
"""How time is measured."""
