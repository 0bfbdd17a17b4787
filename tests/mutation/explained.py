"""Survivors that no test can kill, or need not, each with the reason."""

EXPLAINED: dict[str, str] = {}
