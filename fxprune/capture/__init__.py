"""Capture: a model becomes an FX graph, symbolically where that sees it whole, by torch.export otherwise."""
