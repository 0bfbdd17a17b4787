"""Changes of basis: weights that compute the same in other coordinates."""
