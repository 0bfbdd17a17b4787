"""form="module": an instance of the user's own class on sliced weights.

Propose, then prove.  The numbers that a module's code reads (`slots`) may have become other ones (`sizes`);
the instance runs beside the pruned graph (`watch`), and the first difference says which module's numbers to
try anew (`search`).  A module that no numbers mend is replaced by its part of the graph (`boundaries`,
`parts`), and a scale that follows a shrunk head_dim is folded into the query (`scales`).  Nothing here knows
the name of a model or of an attribute.
"""
