"""Passes that shrink a graph and its weights."""
