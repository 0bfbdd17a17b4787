"""Analyse: which dimensions of a model's weights are coupled, and which are frozen."""
