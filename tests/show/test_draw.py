"""Pictures without a browser: words, the tree, static files, charts, the notebook table, and errors."""

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import images, mlp, small_conv, small_hf_vit, small_swin, small_vit
from torch import fx, nn

import fxprune
from fxprune import Analysis
from fxprune.analysis.words import Words
from fxprune.errors import DrawError, OptionError, PatternError, PlanError
from fxprune.show.pictures.scene import scene_of
from fxprune.show.pictures.tree import Tree, collapsed, opened_at_first

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="needs graphviz's dot on the PATH")


def labels(analysis: Analysis) -> dict[str, str]:
    """Node name or weight name -> its label."""
    words = Words(analysis)
    out = {node.name: "".join(w.text for w in words.value(node)) for node in analysis.axes}
    return out | {name: words.tensor(axes) for name, axes in analysis.weights.items()}


# ---------------------------------------------------------------- words


def test_words_of_a_vision_transformer(vit_analysis: Analysis) -> None:
    found = labels(vit_analysis)
    expected = {
        "x": "b 3 32 32",
        "patch_embed_proj": "b embed h w",
        "pos_embed": "1 n embed",
        "blocks_0_norm1": "b n embed",
        "blocks_0_attn_qkv": "b n (3 heads head_dim)",
        "permute": "3 b heads n head_dim",
        "unbind": "3 x b heads n head_dim",
        "scaled_dot_product_attention": "b heads n head_dim",
        "blocks_0_mlp_fc1": "b n hidden",
        "head": "b out",
        "patch_embed.proj.weight": "embed 3 8 8",
        "blocks.0.attn.qkv.weight": "(3 heads head_dim) embed",
        "blocks.0.attn.proj.weight": "embed (heads head_dim)",
        "head.weight": "out embed",
    }
    assert {name: found[name] for name in expected} == expected


def test_words_of_windows_and_position_tables() -> None:
    found = labels(fxprune.analyze(small_swin(), example_inputs=images()))
    assert found["layers.0.blocks.0.attn.relative_position_bias_table"] == "49 heads"
    assert found["layers_0_blocks_0_attn_qkv"] == "(b n) n (3 heads head_dim)"
    assert found["layers_1_downsample_reduction"].endswith(" embed")


def test_two_groups_of_one_role_in_one_tensor_are_told_apart() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8)
            self.out, self.other = nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pair = self.first(x)[:, :, None] * self.second(x)[:, None, :]
            return self.out(pair.sum(1)) + self.other(pair.sum(2))

    found = labels(fxprune.analyze(Bilinear(), example_inputs=torch.randn(2, 4)))
    assert found["mul"] == "b hidden hidden2"


# ---------------------------------------------------------------- the tree of modules


@pytest.mark.parametrize("make", [small_vit, small_swin, small_hf_vit, small_conv])
def test_every_weight_and_every_call_has_one_row_inside_its_module(make: object) -> None:
    analysis = fxprune.analyze(make(), example_inputs=images())  # type: ignore[operator]
    tree = Tree.of(analysis)

    weights = [row.path for row in tree.rows if row.kind == "weight"]
    assert sorted(weights) == sorted(analysis.weights)
    called = [row.path for row in tree.rows if row.kind == "layer"]
    targets = [str(n.target) for n, values in analysis.axes.items() if n.op == "call_module" and values]
    assert called == targets
    for row in tree.rows:
        above = [outer.path for outer in tree.above(row)]
        assert row.kind != "layer" or all(row.path.startswith(f"{path}.") for path in above)
        assert all(other.index > row.index for other in tree.below(row))
    assert all(source < target for source, target, _ in tree.wires)


def test_wires_follow_values_through_what_has_no_row(vit_analysis: Analysis) -> None:
    tree = Tree.of(vit_analysis)
    wires = {(tree.rows[a].name, tree.rows[b].name) for a, b, _ in tree.wires}
    assert ("unbind", "scaled_dot_product_attention") in wires
    assert ("head", "output") in wires
    assert not any("getattr" in pair for pair in wires)


def test_closed_modules_are_one_node_and_wires_end_at_them() -> None:
    analysis = fxprune.analyze(small_vit(depth=12), example_inputs=images())
    tree = Tree.of(analysis)
    graph = collapsed(tree, opened_at_first(tree))
    names = {tree.name(tree.rows[i]) for i in graph}
    assert {"blocks.0", "blocks.11", "patch_embed", "norm", "head"} <= names
    assert "blocks" not in names
    assert "qkv" not in names
    ends = {(tree.name(tree.rows[a]), tree.name(tree.rows[b])) for a, b in graph.edges()}
    assert ("blocks.0", "blocks.1") in ends
    assert ("blocks.11", "norm") in ends


# ---------------------------------------------------------------- sizes before and after


@pytest.mark.parametrize("heads", [4, 2])
def test_a_pruned_model_alone_gives_every_original_shape(heads: int) -> None:
    """Of two heads one is left, which is no axis any more: its sites still say what they were."""
    model = small_vit(num_heads=heads)
    pruned = fxprune.prune(model, 0.5, example_inputs=images())
    scene = scene_of(pruned)

    original, now = model.state_dict(), pruned.state_dict()
    assert scene.analysis.weights.keys() == now.keys()
    for name in now:
        assert scene.shape(name) == (tuple(original[name].shape), tuple(now[name].shape)), name
    drawn = {g.name: (scene.before(g.atom), scene.after(g.atom)) for g in scene.groups}
    plan = fxprune.plan_of(pruned).groups
    assert {name: drawn[name] for name in plan} == {name: (k.size, k.count) for name, k in plan.items()}
    sites = {g.name: {*g.sites} for g in scene.groups}
    for group in fxprune.analyze(model, example_inputs=images()).groups:
        if group.name in plan:
            assert sites[group.name] == {*group.sites}


def test_drawing_leaves_the_pruned_model_as_it_was(vit_half: fx.GraphModule, tmp_path: Path) -> None:
    code, notes = vit_half.code, [dict(node.meta) for node in vit_half.graph.nodes]
    fxprune.draw(vit_half, tmp_path / "x.html")
    assert vit_half.code == code
    assert [dict(node.meta) for node in vit_half.graph.nodes] == notes


@needs_dot
def test_a_pickled_model_keeps_its_modules_whole(vit_half: fx.GraphModule, tmp_path: Path) -> None:
    """Its nodes have forgotten where they stood; what stands around them still says it."""
    again = pickle.loads(pickle.dumps(vit_half))
    trees = [Tree.of(scene_of(model).analysis) for model in (vit_half, again)]
    modules = [[row.path for row in tree.rows if row.kind == "module"] for tree in trees]
    assert modules[0] == modules[1]
    fxprune.draw(again, tmp_path / "block.svg", modules="blocks.0")


# ---------------------------------------------------------------- files


def test_the_page_is_one_file_that_asks_for_nothing(vit_analysis: Analysis, tmp_path: Path) -> None:
    page = fxprune.draw(vit_analysis, tmp_path / "vit.html").read_text()
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", markup)
    assert "blocks.0.attn.qkv.weight" in page


@needs_dot
def test_a_block_as_svg_holds_its_layers_axes_and_shapes(
    vit: nn.Module, vit_half: fx.GraphModule, tmp_path: Path
) -> None:
    options = {"pruned": vit_half, "modules": "blocks.0", "example_inputs": images()}
    picture = fxprune.draw(vit, tmp_path / "block.svg", **options).read_text()
    text = re.sub(r"<[^>]+>|\s|&#160;", " ", picture)
    for expected in ("qkv", "proj", "fc1", "fc2", "head_dim", "192→96"):
        assert expected in text, expected
    assert "patch_embed" not in text
    assert "blocks.1.attn" not in text


@needs_dot
def test_static_pictures_in_every_format(
    vit_analysis: Analysis, vit_half: fx.GraphModule, tmp_path: Path
) -> None:
    begins = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    for view in ("graph", "coupling", "kept"):
        for suffix, begin in begins.items():
            path = tmp_path / f"{view}{suffix}"
            fxprune.draw(vit_analysis, path, view=view, pruned=vit_half, modules="blocks.1")
            assert path.read_bytes().startswith(begin)


def test_the_coupling_map_names_groups_and_the_layers_that_carry_them(
    vit_analysis: Analysis, tmp_path: Path
) -> None:
    text = fxprune.draw(vit_analysis, tmp_path / "map.svg", view="coupling").read_text()
    for expected in (*(group.name for group in vit_analysis.prunable), "blocks.0.attn.qkv", "pos_embed"):
        assert expected in text, expected


def test_kept_bars_count_every_parameter(tmp_path: Path) -> None:
    model = small_vit()
    pruned = fxprune.prune(model, 0.5, example_inputs=images())
    text = fxprune.draw(pruned, tmp_path / "kept.svg", view="kept").read_text()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned))
    assert f"{after:,} of {before:,} parameters kept" in text
    qkv = [m.get_submodule("blocks.0.attn.qkv") for m in (model, pruned)]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in qkv]
    assert f"{counts[0]:,} → {counts[1]:,}" in text


def test_kept_bars_of_layers_without_weights_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 4)).eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(1, 6))
    with pytest.raises(OptionError, match="no layer there has a weight"):
        fxprune.draw(pruned, tmp_path / "kept.svg", view="kept", modules="1")
    assert not [*tmp_path.iterdir()]


def test_a_notebook_shows_the_groups_as_a_table(vit_analysis: Analysis) -> None:
    table = vit_analysis._repr_html_()
    assert table.count("<tr") == 1 + len(vit_analysis.groups)
    assert "blocks.0.attn.heads" in table
    assert "frozen: taken apart element by element" in table
    assert "#8a93a3" in table  # grey for what is frozen


# ---------------------------------------------------------------- errors


def test_unknown_suffixes_views_and_modules_are_refused(vit_analysis: Analysis, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"picture\.jpeg: view='graph' is drawn as \.html, \.svg"):
        fxprune.draw(vit_analysis, tmp_path / "picture.jpeg")
    with pytest.raises(OptionError, match="view='tree': one of 'graph', 'coupling', 'kept'"):
        fxprune.draw(vit_analysis, tmp_path / "x.svg", view="tree")
    with pytest.raises(OptionError, match="view='kept' needs a pruned model"):
        fxprune.draw(vit_analysis, tmp_path / "x.svg", view="kept")
    with pytest.raises(PatternError, match=r"modules='layers\.\*' matches no module.*patch_embed"):
        fxprune.draw(vit_analysis, tmp_path / "x.html", modules="layers.*")
    with pytest.raises(OptionError, match="this is a str"):
        fxprune.draw("deit", tmp_path / "x.html")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_plan_of_another_model_is_refused(vit_analysis: Analysis, tmp_path: Path) -> None:
    pruned = fxprune.prune(mlp(), 0.5, example_inputs=torch.randn(2, 6))
    with pytest.raises(PlanError, match="the plan is for another model"):
        fxprune.draw(vit_analysis, tmp_path / "x.html", pruned=pruned)


def test_a_missing_dot_says_what_to_install(
    vit_analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DrawError, match="'dot' is not on the PATH: install graphviz"):
        fxprune.draw(vit_analysis, tmp_path / "x.svg")


@pytest.mark.parametrize(
    ("name", "view", "package"),
    [("x.html", "graph", "bokeh"), ("x.svg", "graph", "graphviz"), ("x.svg", "coupling", "matplotlib")],
)
def test_a_missing_package_names_the_extra(
    vit_analysis: Analysis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    view: str,
    package: str,
) -> None:
    import sys

    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DrawError, match=rf"needs the package {package}.*pip install 'fxprune\[draw\]'"):
        fxprune.draw(vit_analysis, tmp_path / name, view=view)
