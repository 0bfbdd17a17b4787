"""form="module": an instance of the user's own class on sliced weights.

Propose, then prove; `own_class` is the way in.  The numbers that a module's code reads (`slots`) may have
become other ones (`sizes`, `proposals`); of those that no run reads, the source says which are widths
(`code_widths`, `code_terms`), and methods that read what it does not tell are refused (`doubtful`,
`refusing`).  First the instance is traced, and its graph held against the pruned one (`traced`,
`same_graph`).  Where that settles nothing, the instance runs beside the pruned graph (`find`, `watch`), and
the first difference says which module's numbers to try anew (`search`), those that its code computes as
well (`spellings`, `calls`).  A module that no numbers mend is replaced by its part of the graph
(`boundaries`, `parts`), the root by a `forward` (`root_forward`); a scale that follows a shrunk head_dim is
folded into the query, or the key (`scales`).  What was found by running is proved on a copy (`proof`);
train mode and the configuration follow (`training`, `configuration`).  Nothing here knows the name of a
model or of an attribute.
"""
