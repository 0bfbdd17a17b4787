"""Reports and explanations."""
