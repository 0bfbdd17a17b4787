"""Analyse: which dimensions of a model's weights are coupled, and which must stay whole."""
