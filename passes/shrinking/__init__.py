"""Passes that make a smaller graph, or give it other names and scales.

Each returns a graph module of its own, but `fold_scales`, which changes the one that it is given.
"""
