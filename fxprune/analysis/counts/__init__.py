"""Numbers that count what a statistic runs over, so that they follow what is kept of it."""
