"""`fxprune` and `python -m fxprune`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; the packages that only it needs are the extra `[cli]`."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        sys.exit(f"fxprune: the command line needs {error.name}: pip install 'fxprune[cli]'")
    from fxprune.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
