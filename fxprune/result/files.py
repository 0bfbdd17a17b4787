"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets

__all__ = ["TEMPORARY", "write_whole"]

TEMPORARY = ".fxprune-"  # how the names begin of what an interrupted write leaves behind


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file beside its final place, then move it there: a kill leaves the old or the new."""
    data = content.encode() if isinstance(content, str) else content
    folder = os.path.dirname(os.path.abspath(path))
    beside = os.path.join(folder, f"{TEMPORARY}{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
