"""Graph -> graph rewrites, one per file, file name = pass name (`rebasing/` rewrites weights alone).

Analysis and decisions live elsewhere in `fxprune`.
"""

if __name__ == "passes":
    raise ImportError("this folder is the package fxprune.passes: import it as that")
