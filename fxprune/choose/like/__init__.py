"""Take widths, heads and depth from a smaller model of the same architecture."""
