"""Score: how much each element of each group matters."""
