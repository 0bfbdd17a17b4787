"""Graph -> graph rewrites, one per file, file name = pass name.  Analysis and decisions live in `fxprune`."""

if __name__ == "passes":
    raise ImportError("this folder is the package fxprune.passes: import it as that")
