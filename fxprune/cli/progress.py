"""Progress of long work: a line on stderr for each step, or a spinner where stderr is a terminal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

from rich.console import Console

__all__ = ["progress"]


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that says which step begins; `quiet` silences it, and warnings."""
    console = Console(stderr=True, quiet=quiet)
    with warnings.catch_warnings(), console.status("") as status:
        if quiet:
            warnings.simplefilter("ignore")

        def step(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"{text} ...", highlight=False, soft_wrap=True)

        yield step
