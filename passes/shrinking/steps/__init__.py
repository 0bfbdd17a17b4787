"""Steps of passes that shrink: each takes a `Draft` alone and edits it in place.

No step is a pass: between slicing the weights and writing the new sizes the graph is invalid, so that only
a whole sequence of them, `shrink` or `regroup_heads`, hands a graph on.
"""
