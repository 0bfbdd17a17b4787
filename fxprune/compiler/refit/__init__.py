"""Re-fit: after selection, every layer that reads a shrunk axis is solved again for what it has lost."""
