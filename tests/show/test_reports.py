"""Reports and explanations: right figures, in every form, and words that name what is coupled."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import (
    counted_macs,
    images,
    mlp,
    parameter_count,
    small_conv,
    small_hf_vit,
    small_swin,
    small_vit,
)
from torch import fx, nn

import fxprune
from fxprune.errors import OptionError, PlanError

VECTORS = torch.randn(3, 6)


@pytest.fixture(scope="module")
def report(vit: nn.Module, vit_half: fx.GraphModule) -> fxprune.Report:
    return fxprune.report(vit, vit_half)


# ---------------------------------------------------------------- figures


def test_totals(vit: nn.Module, vit_half: fx.GraphModule, report: fxprune.Report) -> None:
    assert report.parameters == (parameter_count(vit), parameter_count(vit_half))
    assert report.heads == (8, 4)  # two blocks
    assert report.latency is None
    assert report.certificate is None
    assert report.batch == 1


def test_macs_are_those_of_the_layers(report: fxprune.Report) -> None:
    def vit(embed: int, heads: int, hidden: int, tokens: int = 17, head_dim: int = 12) -> int:
        """A patch embedding, two blocks, a head of ten classes; counted by hand."""
        attention = embed * 4 * heads * head_dim * tokens + 2 * tokens * tokens * heads * head_dim
        return 16 * 3 * 64 * embed + 2 * (attention + 2 * tokens * embed * hidden) + embed * 10

    assert report.macs == (vit(48, 4, 192), vit(24, 2, 96))


def test_figures_of_a_group(report: fxprune.Report) -> None:
    groups = {group.name: group for group in report.groups}
    hidden = groups["blocks.0.mlp.hidden"]
    assert hidden.width == (192, 96)
    assert hidden.parameters == (2 * 48 * 192 + 192, 2 * 24 * 96 + 96)
    assert hidden.macs == (17 * 2 * 48 * 192, 17 * 2 * 24 * 96)
    heads = groups["blocks.1.attn.heads"]
    assert heads.role == "heads"
    assert heads.parameters == (4 * 48 * 48 + 144, 4 * 24 * 24 + 72)


@pytest.mark.parametrize("make", [small_conv, small_swin, small_hf_vit])
def test_macs_are_those_that_the_models_themselves_need(make: Any) -> None:
    model = make().requires_grad_(False)
    pruned = fxprune.prune(model, 0.5, example_inputs=images())
    wanted = tuple(counted_macs(module, images(1)) for module in (model, pruned))
    assert fxprune.report(model, pruned).macs == wanted


def test_a_larger_batch_costs_more(vit: nn.Module, vit_half: fx.GraphModule, report: Any) -> None:
    larger = fxprune.report(vit, vit_half, batch=4)
    assert larger.macs == tuple(4 * macs for macs in report.macs)
    given = fxprune.report(vit, vit_half, example_inputs=images(4))
    assert (given.macs, given.batch) == (larger.macs, 4)


class Squeezes(nn.Module):
    """Drops the tokens' dimension, and that of one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 32), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x).mean(1, keepdim=True).squeeze())


@pytest.mark.parametrize("form", ["graph", "module"])
def test_a_result_that_refuses_one_sample_is_counted_on_its_example(form: str) -> None:
    model = Squeezes()
    for given in ({"ratio": 0.5}, {"ratio": 0.5, "target": "macs"}):
        pruned = fxprune.prune(model, example_inputs=torch.randn(2, 4, 12), form=form, **given)
        report = fxprune.report(model, pruned)
        assert report.batch == 2 and 0.4 < report.macs[1] / report.macs[0] < 0.6


def test_latency_and_certificate() -> None:
    model = mlp(hidden=4096)
    pruned = fxprune.prune(model, 0.9, example_inputs=VECTORS)
    threads = torch.get_num_threads()
    report = fxprune.report(model, pruned, latency=True, certificate=True, batch=256, threads=1, runs=5)
    assert report.latency is not None and min(report.latency) > 0  # a full machine turns their order
    assert report.certificate is not None and report.certificate < 1e-8
    assert (report.batch, report.threads) == (256, 1)
    assert torch.get_num_threads() == threads


def test_a_report_changes_nothing(vit: nn.Module) -> None:
    pruned = fxprune.prune(vit, 0.5, example_inputs=images()).train()
    pruned.get_submodule("blocks.0.mlp.fc1").eval()
    before = {n: (p.clone(), p.requires_grad) for n, p in pruned.named_parameters()}
    modes = [m.training for m in pruned.modules()]
    fxprune.report(vit, pruned, latency=True, runs=1)
    assert [m.training for m in pruned.modules()] == modes
    for name, p in pruned.named_parameters():
        assert torch.equal(p, before[name][0]) and p.requires_grad == before[name][1]


# ---------------------------------------------------------------- forms


def test_json(report: fxprune.Report) -> None:
    record = json.loads(report.to_json())
    assert record["parameters"] == list(report.parameters)
    assert [g["name"] for g in record["groups"]] == [g.name for g in report.groups]


def test_a_certificate_that_saw_nothing_says_so() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) * 0

    model = Silent().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=VECTORS)
    found = fxprune.report(model, pruned, certificate=True)
    assert "saw nothing: every output is zero" in found.to_markdown()
    read = json.loads(found.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read["certificate"] is None and "saw nothing" in read["certified"]


def test_markdown(report: fxprune.Report) -> None:
    lines = report.to_markdown().splitlines()
    assert any(line.startswith("| blocks.0-1.mlp.hidden (x2) | 192 -> 96 | 37.2k -> 94") for line in lines)
    assert "| parameters | 67.3k | 19.8k | 0.29 |" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {5}


def test_what_code_says_is_no_markup(report: fxprune.Report) -> None:
    found = replace(report, spelled=("a[/x] | [dim]b",))
    line = next(line for line in found.to_markdown().splitlines() if "[dim]b" in line)
    assert line.replace("\\|", "").count("|") == 5
    assert "[dim]b" in str(found) and "a[/x]" in str(found)


def test_html(report: fxprune.Report) -> None:
    page = report._repr_html_()
    assert "<td>blocks.0-1.mlp.hidden (x2)</td><td>192 -&gt; 96</td>" in page
    assert page.count("<tr>") == page.count("</tr>") == 3 + 1 + 5  # groups, the rest, heads and totals


def test_a_table_on_a_terminal(report: fxprune.Report) -> None:
    text = str(report)
    assert "blocks.0-1.mlp.hidden (x2)" in text
    assert "192 -> 96" in text
    assert "\x1b" not in text  # no colours where it is no terminal


@pytest.mark.parametrize(("format", "start"), [("json", "{"), ("markdown", "**"), ("table", "Vision")])
def test_the_form_asked_for(vit: nn.Module, vit_half: fx.GraphModule, format: str, start: str) -> None:
    assert str(fxprune.report(vit, vit_half, format=format)).startswith(start)


def test_a_form_that_there_is_none_of(vit: nn.Module, vit_half: fx.GraphModule) -> None:
    with pytest.raises(OptionError, match=r"format='pdf'.*'markdown'"):
        fxprune.report(vit, vit_half, format="pdf")


def test_a_report_on_what_was_not_pruned(vit: nn.Module) -> None:
    with pytest.raises(PlanError, match="carries no plan"):
        fxprune.report(vit, fx.symbolic_trace(mlp()))


# ---------------------------------------------------------------- explanations


def test_explain_a_module(vit_analysis: fxprune.Analysis) -> None:
    found = fxprune.explain(vit_analysis, "blocks.1.attn.qkv")
    assert found.weights["blocks.1.attn.qkv.weight"] == ("(3 heads head_dim)", "embed")
    assert found.weights["blocks.1.attn.qkv.bias"] == ("(3 heads head_dim)",)
    text = str(found)
    assert "3 is frozen: taken apart element by element at unbind_1 (attention.py:" in text
    assert "heads may shrink: 4 elements, group blocks.1.attn.heads" in text
    assert "each of blocks.1.attn.heads keeps a choice of its own" in text
    assert "blocks.1.attn.qkv.weight[0] with blocks.1.attn.proj.weight[1]: blocks_1_attn_qkv (" in text
    assert "scaled_dot_product_attention_1 (attention.py:" in text
    assert "embed may shrink: 48 elements, group embed\n  coupled with 26 other dimensions" in text


def test_explain_says_which_bases_are_allowed(vit_analysis: fxprune.Analysis) -> None:
    text = str(fxprune.explain(vit_analysis, "blocks.1.attn.qkv"))
    assert "change of basis: rotation, by layer_norm at blocks_0_norm1" in text
    assert "embed (rotation, keeping the vector of ones): patch_embed.proj.weight[0]" in text
    assert "folded first: blocks.0.norm1.weight, " in text
    pairs, values = (f"blocks.1.attn.head_dim:{i} (any): blocks.1.attn.qkv.weight[0] part" for i in (0, 1))
    assert f"{pairs} 0" in text and f"{values} 2" in text
    assert "by the inverse of its transpose: blocks.1.attn.proj.weight[1]" in text
    hidden = str(fxprune.explain(vit_analysis, "blocks.0.mlp.hidden"))
    assert "change of basis: permutation, by gelu at blocks_0_mlp_act" in hidden


def test_explain_a_weight_and_one_of_its_dimensions(vit_analysis: fxprune.Analysis) -> None:
    whole = fxprune.explain(vit_analysis, "head.weight")
    assert [g.role for g in whole.groups] == ["output", "embed"]
    assert "out is frozen: reaches the output" in str(whole)
    assert [g.role for g in fxprune.explain(vit_analysis, "head.weight[1]").groups] == ["embed"]


def test_explain_a_group(vit_analysis: fxprune.Analysis) -> None:
    found = fxprune.explain(vit_analysis, "blocks.0.mlp.hidden")
    assert [g.name for g in found.groups] == ["blocks.0.mlp.hidden"]
    assert list(found.weights) == [f"blocks.0.mlp.{n}" for n in ("fc1.bias", "fc1.weight", "fc2.weight")]
    assert "blocks_0_mlp_fc1 (mlp.py:" in str(found)


def test_options_beside_an_analysis_are_refused(vit_analysis: fxprune.Analysis) -> None:
    with pytest.raises(OptionError, match="example_inputs: for a model that is to be analysed"):
        fxprune.explain(vit_analysis, "norm", example_inputs=torch.zeros(1, 3, 32, 32))


def test_explain_a_model_by_itself() -> None:
    text = str(fxprune.explain(mlp(), "0", example_inputs=VECTORS))
    assert "0.weight [16, 6]: hidden 6" in text
    assert "6 is frozen: input" in text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blocks.1.attn.qvk", "'blocks.1.attn.qkv'"),
        ("blocks.1.mlp.hiden", "'blocks.1.mlp.hidden'"),
        ("nothing of the kind", "close are"),
        ("blocks.0.mlp.act", "without weights"),
    ],
)
def test_explain_what_there_is_none_of(vit_analysis: fxprune.Analysis, name: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        fxprune.explain(vit_analysis, name)


def test_columns_add_up_and_equal_blocks_are_one_row() -> None:
    model = small_vit(depth=3)
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 3, 32, 32))
    found = fxprune.report(model, pruned)
    for i in (0, 1):
        assert sum(g.parameters[i] for g in found.groups) <= found.parameters[i]
        assert sum(g.macs[i] for g in found.groups) <= found.macs[i]
    rest = found.parameters[0] - sum(g.parameters[0] for g in found.groups)
    assert rest == model.head.bias.numel()  # what no group that shrank carries
    text = found.to_markdown()
    assert "blocks.0-2.mlp.hidden (x3)" in text and "blocks.1.mlp" not in text
    assert "the rest" in text and "fine-tune, or the accuracy is gone" in text


def test_blocks_that_differ_have_rows_of_their_own() -> None:
    model = small_vit(depth=3)
    options = {"example_inputs": torch.randn(2, 3, 32, 32), "ratios": {"blocks.1.mlp.*": 0.25}}
    text = fxprune.report(model, fxprune.prune(model, 0.5, **options)).to_markdown()
    assert "blocks.0,2.mlp.hidden (x2)" in text and "blocks.1.mlp.hidden |" in text


def test_a_model_that_is_whole_is_not_said_to_be_ruined() -> None:
    model = small_vit()
    pruned = fxprune.prune(model, 0.0, example_inputs=torch.randn(2, 3, 32, 32))
    assert "accuracy" not in fxprune.report(model, pruned).to_markdown()


def test_what_an_instance_refuses_is_said() -> None:
    """Nothing proved a number that only another argument leads to, nor one that a method alone reads."""

    class Levelled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.most = 96, 96
            self.fc1, self.fc2 = torch.nn.Linear(8, 96), torch.nn.Linear(96, 8)

        def forward(self, x: torch.Tensor, level: int = 0) -> torch.Tensor:
            x = self.fc1(x).relu()
            return self.fc2(x / self.width if level > 0 else x)

        def scaled(self, x: torch.Tensor) -> torch.Tensor:
            return self(x) * self.most

    model = Levelled().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 8), form="module")
    found = fxprune.report(model, pruned)
    assert "raises: other arguments of the model: its code may read width then" in found.to_markdown()
    assert "raises: scaled: it reads most" in found.to_markdown() and len(found.to_dict()["refused"]) == 2
