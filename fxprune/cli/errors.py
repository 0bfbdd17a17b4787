"""How the command line ends: one line on stderr and an exit code, or a traceback on request."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import click

from fxprune.errors import FxpruneError

__all__ = ["FAILED", "USAGE", "ended"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130  # (130: as shells report an interrupt, 128 + SIGINT)


def ended(command: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run a command and return the exit code: 0, 1 if it failed, 2 for wrong usage, 130 if interrupted."""
    debug = "--debug" in arguments
    before, warnings.showwarning = warnings.showwarning, _one_line
    try:
        result = command()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "fxprune"
        return _said(f"{error.format_message()} ({path} --help says more)", USAGE)
    except click.ClickException as error:
        return _said(error.format_message(), FAILED)
    except (click.Abort, KeyboardInterrupt):
        return _said("interrupted", INTERRUPTED)
    except FxpruneError as error:
        if debug:
            traceback.print_exc()
        return _said(str(error), FAILED)
    except Exception as error:  # a bug, or what a library raised: never a page of traceback unasked
        if debug:
            traceback.print_exc()
        return _said(f"{type(error).__name__}: {error} (--debug shows the traceback)", FAILED)
    finally:
        warnings.showwarning = before
    return result if isinstance(result, int) else 0


def _said(text: str, code: int) -> int:
    click.echo(f"fxprune: {' '.join(text.split())}", err=True)
    return code


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"fxprune: warning: {' '.join(str(message).split())}", file=file or sys.stderr)
