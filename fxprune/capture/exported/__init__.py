"""Capture by torch.export."""
