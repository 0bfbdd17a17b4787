"""Passes that shrink a graph and its weights: each returns the graph module that it made.

`shrink` slices weights and re-spells sizes in one pass, since between the two the graph is invalid; its
steps (`pin_sizes`, `respell`, `slice_weights`, `hide_forwards`) stand in files of their own, work on a graph
that is being made, and are called by what makes such a graph alone (`regroup_heads` is another).
"""
