"""Pruned models as files: `model.safetensors` and `fxprune.json`, without pickle.

The record says how the original is built and what the plan keeps.  Loading builds the original without
its weights, replays the plan, and compares a digest of the graph: what comes out is what was saved.
"""
