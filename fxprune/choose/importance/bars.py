"""Progress bars: shown to people who want them, and never in a file."""

from __future__ import annotations

__all__ = ["hidden"]


def hidden(progress: bool) -> bool | None:
    """Return what tqdm's `disable` is: None leaves it to whether a terminal shows the bar."""
    return None if progress else True
