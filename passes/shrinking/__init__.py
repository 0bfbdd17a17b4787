"""Passes that shrink a graph and its weights: each returns the graph module that it made."""
