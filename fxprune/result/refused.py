"""Say what an instance of the user's own class refuses to do, since nothing proved it on the new sizes."""

from __future__ import annotations

from collections.abc import Iterator

from fxprune.result.own_code import OwnCode

__all__ = ["refused_by"]


def refused_by(own: OwnCode) -> Iterator[str]:
    """List what raises in an instance, in words."""
    for path, flag, value in own.flags:
        yield f"{path}.{flag}".lstrip(".") + f" other than {value}"
    for way in own.ways:
        yield f"other arguments of {way.path or 'the model'}: its code may read {way.numbers} then"
    for path, method, numbers in own.unsure:
        yield f"{path}.{method}".lstrip(".") + f": it reads {numbers}"
    if own.untrained:
        yield f"train mode: {own.untrained}"
    if own.unsaid:
        yield f"its library's saving: {own.unsaid}"
