"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile

__all__ = ["TEMPORARY", "write_whole"]

TEMPORARY = ".fxprune-"  # how the names begin of what an interrupted write leaves behind


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file beside its final place, then move it there: a kill leaves the old or the new."""
    data = content.encode() if isinstance(content, str) else content
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.NamedTemporaryFile("wb", dir=folder, delete=False, prefix=TEMPORARY, suffix=".tmp") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
