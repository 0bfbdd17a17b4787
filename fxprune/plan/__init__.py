"""Plans: which elements of every group are kept, as data."""
