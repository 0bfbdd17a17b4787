"""Capture by symbolic tracing."""
