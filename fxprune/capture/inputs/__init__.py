"""Find inputs that a model takes: what is recorded on it, what its layers tell, and a trial of either."""

from fxprune.graph.example import Example  # where pickles of format 1 look for it

__all__ = ["Example"]
