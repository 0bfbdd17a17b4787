"""Survivors that no test can kill, or need not, each with the reason."""

_NO_LOSS = "dropping it loses nothing: it only freezes more than it must"

EXPLAINED = {
    "any: frozen[0]": f"{_NO_LOSS} (a False adds nothing to any)",
    "cumsum: frozen[0]": f"{_NO_LOSS} (a zero adds nothing to a running sum)",
    **dict.fromkeys(
        ["arange: out[-1]", "linspace: out[-1]", "logspace: out[-1]", "range: out[-1]"],
        "dropping it changes nothing: its axis is a new one as it is",
    ),
    "grid_sample: frozen[2]": f"{_NO_LOSS} (the rows that are asked for are the rows of the result)",
    "grid_sample: frozen[3]": f"{_NO_LOSS} (the columns that are asked for are the columns of the result)",
    "split_with_sizes: target": "it is always called with a list of sizes, which is rewritten in place",
    "passes/canonical/canonicalise.py: canonicalise: without module.graph.lint()": "it only checks",
    "scatter_add: frozen[3]": "said twice, beside the input and beside the source",
    "graph/values.py: __init__: without self.extra_traceback = False": "only the text of an error",
    "passes/shrinking/regroup_heads.py: __init__: without super().__init__({}, {})": "nobody asks for it",
    "passes/shrinking/shrink.py: shrink: without graph.lint()": "it only checks",
    **dict.fromkeys(
        [
            "passes/canonical/lift_modules.py: _lift: without module.graph.erase_node(node)",
            "passes/canonical/remove_noise.py: remove_noise: without module.graph.eliminate_dead_code()",
            "passes/canonical/remove_noise.py: remove_noise: without module.graph.erase_node(node)",
            "passes/canonical/split_fused.py: split_fused: without module.graph.eliminate_dead_code()",
            "passes/canonical/sums_to_means.py: sums_to_means: without module.graph.erase_node(node)",
        ],
        "dead code goes at the end",
    ),
    "rules/modules.py: Embedding.num_embeddings stays": "the words are frozen, so that it never changes",
    "cuda: rule": "needs a GPU to be called",
}
