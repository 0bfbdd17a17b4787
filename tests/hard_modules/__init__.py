"""Small hand-written modules, one per trap."""

from hard_modules import convolutions, gates, layouts, library_code, mixing, norms, positions, wiring
from hard_modules.case import CASES, Case

__all__ = [
    "CASES",
    "Case",
    "convolutions",
    "gates",
    "layouts",
    "library_code",
    "mixing",
    "norms",
    "positions",
    "wiring",
]
