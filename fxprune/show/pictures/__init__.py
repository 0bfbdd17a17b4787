"""Pictures of groups, graphs and plans."""
