"""One graph that follows train and eval mode."""
