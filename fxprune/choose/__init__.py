"""Decide: score every channel and choose which stay."""
