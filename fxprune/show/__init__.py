"""Show: pictures and reports."""
