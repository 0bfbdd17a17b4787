"""The pruned module and its record."""
