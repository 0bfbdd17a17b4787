"""Passes that bring every capture to one form, before anything shrinks."""
