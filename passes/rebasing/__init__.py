"""Changes of basis: weights that compute the same in other coordinates, on the same graph."""
