"""What was found and what was done, in words and figures."""
