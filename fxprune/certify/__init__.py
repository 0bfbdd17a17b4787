"""Certify: prove in float64 that a pruned model computes what its masked original does."""
