"""Survivors that no test can kill, or need not, each with the reason."""

_NO_LOSS = "dropping it loses nothing: it only keeps more whole than it must"

EXPLAINED = {
    "any: whole[0]": f"{_NO_LOSS} (a False adds nothing to any)",
    "cumsum: whole[0]": f"{_NO_LOSS} (a zero adds nothing to a running sum)",
    **dict.fromkeys(
        ["arange: out[-1]", "linspace: out[-1]", "logspace: out[-1]", "range: out[-1]"],
        "dropping it changes nothing: its axis is a new one as it is",
    ),
    "grid_sample: whole[2]": f"{_NO_LOSS} (the rows that are asked for are the rows of the result)",
    "grid_sample: whole[3]": f"{_NO_LOSS} (the columns that are asked for are the columns of the result)",
    "split_with_sizes: target": "it is always called with a list of sizes, which is rewritten in place",
    "passes/canonicalise.py: canonicalise: without module.graph.lint()": "it only checks",
    "passes/lift_modules.py: _lift: without module.graph.erase_node(node)": "dead code goes at the end",
    "scatter_add: whole[3]": "said twice, beside the input and beside the source",
    "passes/propagate_values.py: __init__: without self.extra_traceback = False": "only the text of an error",
    "passes/regroup_heads.py: __init__: without super().__init__({}, {})": "what it sets is never asked for",
    "passes/shrink.py: shrink: without graph.lint()": "it only checks",
    **dict.fromkeys(
        [
            "passes/remove_noise.py: remove_noise: without module.graph.eliminate_dead_code()",
            "passes/remove_noise.py: remove_noise: without module.graph.erase_node(node)",
            "passes/split_fused.py: split_fused: without module.graph.eliminate_dead_code()",
            "passes/sums_to_means.py: sums_to_means: without module.graph.erase_node(node)",
        ],
        "dead code goes at the end",
    ),
    "rules/modules.py: Embedding.num_embeddings stays": "the words are whole, so that it never changes",
    **dict.fromkeys(
        [
            "cuda: rule",
            "certify/__init__.py: _same_draws: "
            "without torch.cuda.default_generators[device.index or 0].manual_seed(0)",
        ],
        "needs a GPU to be called",
    ),
}
