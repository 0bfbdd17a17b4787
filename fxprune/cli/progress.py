"""Progress of long work: a line on stderr for each step, or a spinner where stderr is a terminal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console

__all__ = ["progress", "silenced"]


@contextlib.contextmanager
def silenced(quiet: bool) -> Iterator[None]:
    """Silence warnings, if `quiet`, of work that shows how far it has come by itself."""
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that says which step begins; `quiet` silences it, and warnings."""
    console = Console(stderr=True, quiet=quiet)
    with silenced(quiet), console.status("") as status:

        def step(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"{text} ...", highlight=False, soft_wrap=True)

        yield step
