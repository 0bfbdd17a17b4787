"""Which inputs a model takes: what is recorded on it, what its layers tell, and a trial of either."""
