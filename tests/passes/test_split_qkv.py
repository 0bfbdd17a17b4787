"""Values keep a width of their own beside that of queries and keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, images, run, small_swin, small_vit, widths
from torch import Tensor, nn

import fxprune


@pytest.mark.parametrize(
    ("make", "qkv", "capture"),
    [
        (small_vit, "blocks.1.attn.qkv", "symbolic"),
        (small_vit, "blocks.1.attn.qkv", "export"),
        (small_swin, "layers.0.blocks.0.attn.qkv", "symbolic"),
    ],
)
def test_queries_and_values_shrink_by_their_own_ratios(
    make: Callable[[], nn.Module], qkv: str, capture: str
) -> None:
    model = make()
    heads, embed = (4, 48) if make is small_vit else (2, 24)
    pruned = fxprune.prune(
        model,
        0.5,
        split_qkv=True,
        attention="head_dim",
        ratios={"*.attn.qkv.head_dim": 0.25},  # of queries and keys
        example_inputs=images(),
        capture=capture,
    )
    assert widths(pruned)[f"{qkv}.weight"] == (heads * (9 + 9 + 6), embed // 2)
    rows = fxprune.plan_of(pruned).kept[f"{qkv}.weight"][0]
    assert rows is not None and torch.equal(
        pruned.get_parameter(f"{qkv}.bias"), model.get_parameter(f"{qkv}.bias")[rows]
    )
    assert fxprune.verify(model, pruned) < 1e-8


def test_heads_go_from_all_three(capture: str) -> None:
    model = small_vit()
    pruned = fxprune.prune(
        model, 0.5, split_qkv=True, attention="heads", example_inputs=images(), capture=capture
    )
    assert widths(pruned)["blocks.0.attn.qkv.weight"] == (3 * 2 * 12, 24)
    assert fxprune.verify(model, pruned) < 1e-8


def test_cutting_changes_no_value() -> None:
    model = small_vit()
    assert_same(run(fxprune.trace(model, images(), split_qkv=True), images()), run(model, images()), 1e-5)


class Stacked(nn.Module):
    """What `takes` takes of three stacked maps."""

    def __init__(self, takes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.maps, self.head, self.takes = nn.Linear(4, 36), nn.Linear(12, 2), takes

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.takes(self.maps(x).reshape(x.shape[0], 5, 3, 12)))


def _second_and_first(t: Tensor) -> tuple[Tensor, Tensor]:
    return t[1].relu(), t[0]


@pytest.mark.parametrize(
    ("takes", "apart"),
    [
        (lambda t: t.select(2, 0) + t.select(2, 2), True),
        (lambda t: torch.sub(*_second_and_first(t.permute(2, 0, 1, 3))), True),
        (lambda t: t.permute(2, 0, 1, 3)[1].relu() - t.permute(2, 0, 1, 3)[0], False),  # two permutes
        (lambda t: t.transpose(0, 2).unbind(0)[1].transpose(0, 1), True),
        (lambda t: t.sum(2), False),
        (lambda t: t.softmax(2).unbind(2)[0], False),
    ],
)
def test_only_what_is_taken_apart_is_cut(takes: Callable[[Tensor], Tensor], apart: bool) -> None:
    model, x = Stacked(takes).double(), torch.randn(3, 5, 4, dtype=torch.float64)
    captured = fxprune.trace(model, x, split_qkv=True)
    assert any("split" in str(node.target) for node in captured.graph.nodes) == apart
    assert_same(run(captured, x), run(model, x), 1e-12)
    pruned = fxprune.prune(model, 0.5, split_qkv=True, example_inputs=x)
    assert fxprune.verify(model, pruned) < 1e-8
