"""Tell a model's own source files from those of libraries and of tracing."""

from __future__ import annotations

import sys
import sysconfig
import types
from pathlib import Path

import torch

__all__ = ["OURS", "is_users", "line_of_error", "users_frame", "users_level"]

# Folders, not words of a path: a model may live in a folder that is named as we are.
OURS = f"{Path(__file__).parents[1]}/"
_TORCHS = f"{torch.__path__[0]}/"
_PYTHONS = f"{sysconfig.get_path('stdlib')}/"
_MADE = ("<eval_with_key", "<frozen")  # what is typed in is in `<stdin>` or `<ipython-input-1>`


def is_users(file: str) -> bool:
    """Is it neither torch's, nor Python's, nor ours, nor code made on the way?"""
    if file.startswith((_TORCHS, OURS, *_MADE)):
        return False
    return not file.startswith(_PYTHONS) or "-packages/" in file  # which may stand in Python's folder


def users_frame(frame: types.FrameType | None) -> types.FrameType | None:
    """Return the innermost frame of the user's code, from one on outwards."""
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def users_level() -> int:
    """Return the `stacklevel` at which a warning shows the line of the user who called us.

    Of the caller of this function; its own level is 1.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and not is_users(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


def line_of_error(error: BaseException) -> str:
    """Find the last line of the user's (or their library's) code that an error passed through, if any."""
    frame, where = error.__traceback__, ""
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if is_users(file):
            where = f"{file}:{frame.tb_lineno}"
        frame = frame.tb_next
    return where
