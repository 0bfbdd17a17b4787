"""What is removed: heads or head dims, which of them, how many, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from helpers import images, mlp, randomise, small_hf_vit, small_vit, widths
from torch import Tensor, nn

import fxprune

QKV, PROJ = "blocks.0.attn.qkv", "blocks.0.attn.proj"


def pruned_vit(model: nn.Module, ratio: float = 0.5, **options: object) -> nn.Module:
    return fxprune.prune(model, ratio, example_inputs=images(), **options)


def kept_in(pruned: nn.Module) -> dict[str, Tensor]:
    """Group name -> indices."""
    return {name: choice.indices for name, choice in fxprune.plan_of(pruned).groups.items()}


def raise_rows(weight: Tensor, rows: list[int], factor: float = 10.0) -> None:
    with torch.no_grad():
        weight[rows] *= factor


# ---------------------------------------------------------------- heads or head dims


@pytest.mark.parametrize(
    ("attention", "heads", "head_dim"),
    [("auto", 6, 4), ("heads", 6, 4), ("head_dim", 12, 2)],
)
def test_twelve_heads_at_a_half(attention: str, heads: int, head_dim: int) -> None:
    model = small_vit(depth=1, num_heads=12)
    pruned = pruned_vit(model, attention=attention)
    assert_attention(pruned, heads, head_dim)
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize(
    ("attention", "heads", "head_dim"),
    [("auto", 3, 8), ("heads", 2, 16), ("head_dim", 3, 8)],
)
def test_three_heads_at_a_half(attention: str, heads: int, head_dim: int) -> None:
    model = small_vit(depth=1, num_heads=3)
    pruned = pruned_vit(model, attention=attention)
    assert_attention(pruned, heads, head_dim)
    assert fxprune.verify(model, pruned) < 1e-8


class Multiplied(nn.Module):
    """A residual width of which a depthwise convolution makes two maps per channel, as in PiT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 15, 3), nn.Conv2d(15, 15, 1)
        self.pool, self.head = nn.Conv2d(15, 30, 3, 2, groups=15), nn.Conv2d(30, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mix(x).relu()
        return self.head(self.pool(x)).mean((2, 3))


@pytest.mark.parametrize("attention", ["auto", "heads", "head_dim"])
def test_a_multiplier_of_channels_is_no_head_dim(attention: str) -> None:
    model = randomise(Multiplied().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=images(2, 8), attention=attention)
    assert widths(pruned)["stem.weight"] == (8, 3, 3, 3)
    assert widths(pruned)["pool.weight"] == (16, 1, 3, 3)
    assert fxprune.verify(model, pruned) < 1e-8


class Experts(nn.Module):
    """A convolution whose weight is mixed of four for every image, as flat rows (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(16, 4, 1)
        self.route = nn.Linear(12, 4)
        self.experts = nn.Parameter(torch.zeros(4, 16 * 12 * 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        b, c, h, w = x.shape
        weight = (self.route(x.mean((2, 3))).sigmoid() @ self.experts).view(b * 16, c, 3, 3)
        x = nn.functional.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b)
        return self.head(x.view(b, 16, h, w).relu()).mean((2, 3))


def test_both_widths_of_a_flattened_weight_shrink() -> None:
    model = randomise(Experts().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=images(2, 8))
    assert widths(pruned)["experts"] == (2, 8 * 6 * 9)
    assert fxprune.verify(model, pruned) < 1e-8


def assert_attention(pruned: nn.Module, heads: int, head_dim: int) -> None:
    assert widths(pruned)[f"{QKV}.weight"] == (3 * heads * head_dim, 24)
    assert widths(pruned)[f"{PROJ}.weight"] == (24, heads * head_dim)


@pytest.mark.parametrize(
    ("attention", "wanted"), [("auto", "blocks.0.attn.heads"), ("head_dim", "blocks.0.attn.head_dim")]
)
def test_only_one_of_the_two_shrinks(attention: str, wanted: str) -> None:
    kept = kept_in(pruned_vit(small_vit(depth=1), attention=attention))
    assert set(kept) == {"embed", wanted, "blocks.0.mlp.hidden"}


def test_separate_query_key_and_value_layers_lose_the_same_heads() -> None:
    model = small_hf_vit()
    pruned = fxprune.prune(model, 0.5, attention="heads")
    rows = [
        dimensions[0]
        for name, dimensions in fxprune.plan_of(pruned).kept.items()
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        or name.endswith(("query.weight", "key.weight", "value.weight"))
    ]
    assert len(rows) == 3
    for kept in rows:
        assert torch.equal(kept, rows[0])
        heads = kept.view(2, 12)
        assert torch.equal(heads, heads[:, :1] // 12 * 12 + torch.arange(12))


# ---------------------------------------------------------------- which of them


WANTED = {"first": [0, 1, 2, 3, 4, 5], "last": [6, 7, 8, 9, 10, 11], "odd": [1, 3, 5, 7, 9, 11]}
PER_HEAD = torch.tensor([WANTED["first"], WANTED["last"], WANTED["odd"], WANTED["last"]])


def vit_whose_heads_differ(**options: object) -> nn.Module:
    """In block 0 the rows PER_HEAD of each head's queries, keys and values are ten times the rest."""
    model = small_vit(depth=1, **options)
    rows = [
        part * 48 + head * 12 + d for part in range(3) for head in range(4) for d in PER_HEAD[head].tolist()
    ]
    raise_rows(model.get_parameter(f"{QKV}.weight"), rows)
    raise_rows(model.get_parameter(f"{QKV}.bias"), rows)
    return model


def test_each_head_keeps_head_dims_of_its_own(capture: str) -> None:
    model = vit_whose_heads_differ()
    pruned = pruned_vit(model, attention="head_dim", capture=capture)
    assert torch.equal(kept_in(pruned)["blocks.0.attn.head_dim"], PER_HEAD)

    columns = (torch.arange(4)[:, None] * 12 + PER_HEAD).flatten()
    kept = fxprune.plan_of(pruned).kept
    assert torch.equal(kept[f"{PROJ}.weight"][1], columns)
    assert torch.equal(kept[f"{QKV}.weight"][0], torch.cat([columns, columns + 48, columns + 96]))
    assert fxprune.verify(model, pruned) < 1e-8


def test_heads_with_a_common_norm_keep_the_same_head_dims(capture: str) -> None:
    model = vit_whose_heads_differ(qk_norm=True)
    pruned = pruned_vit(model, attention="head_dim", capture=capture)
    (kept,) = (k for name, k in kept_in(pruned).items() if "attn" in name)
    assert kept.shape == (6,)
    # Dims 7, 9 and 11 are large in three heads of four, 6, 8 and 10 in two, the rest in one or two.
    assert {7, 9, 11} <= {*kept.tolist()}

    rows = (torch.arange(12)[:, None] * 12 + kept).flatten()
    state, original = pruned.state_dict(), model.state_dict()
    assert torch.equal(state[f"{QKV}.weight"], original[f"{QKV}.weight"][rows][:, kept_in(pruned)["embed"]])
    assert torch.equal(state["blocks.0.attn.q_norm.weight"], original["blocks.0.attn.q_norm.weight"][kept])
    assert fxprune.verify(model, pruned) < 1e-8


class Averaged(nn.Module):
    """No weight has the head dim alone, but a value does: the mean over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x).unflatten(-1, (4, 8))
        return self.fc2((x * x.mean(1, keepdim=True)).flatten(1))


def test_heads_that_are_averaged_keep_the_same_head_dims(capture: str) -> None:
    model, x = randomise(Averaged()), torch.randn(2, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention="head_dim", capture=capture)
    (kept,) = kept_in(pruned).values()
    assert kept.shape == (4,)
    assert fxprune.verify(model, pruned) < 1e-8


def test_the_largest_channels_are_kept() -> None:
    model = small_vit()
    hidden = [*range(1, 192, 2)]
    raise_rows(model.get_parameter("blocks.1.mlp.fc1.weight"), hidden)
    embed = [*range(24, 48)]
    raise_rows(model.get_parameter("blocks.0.mlp.fc2.weight"), embed, 100.0)
    heads = [1, 2]
    rows = [part * 48 + h * 12 + d for part in range(3) for h in heads for d in range(12)]
    raise_rows(model.get_parameter(f"{QKV}.weight"), rows)

    kept = kept_in(pruned_vit(model))
    assert kept["blocks.1.mlp.hidden"].tolist() == hidden
    assert kept["embed"].tolist() == embed
    assert kept["blocks.0.attn.heads"].tolist() == heads


@pytest.mark.parametrize("layer", ["0.weight", "0.bias", "2.weight"])
def test_one_large_channel_is_kept_wherever_it_is_large(layer: str) -> None:
    model = mlp(hidden=16)
    with torch.no_grad():
        model.get_parameter(layer).select(-1 if layer == "2.weight" else 0, 11).fill_(100.0)
    pruned = fxprune.prune(model, 0.9, example_inputs=torch.randn(2, 6))
    (kept,) = kept_in(pruned).values()
    assert kept.numel() == 2
    assert 11 in kept.tolist()


def test_equal_channels_are_removed_from_the_end() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    (kept,) = kept_in(fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 6))).values()
    assert kept.tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("ratio", "left"), [(0.01, 16), (0.1, 14), (0.3, 11), (0.5, 8), (0.9, 2), (0.999, 1)]
)
def test_counts_are_rounded_and_at_least_one_is_left(ratio: float, left: int) -> None:
    pruned = fxprune.prune(mlp(hidden=16), ratio, example_inputs=torch.randn(2, 6))
    assert widths(pruned)["0.weight"] == (left, 6)


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
@pytest.mark.parametrize("multiple", [4, 8, 16])
def test_round_to_gives_multiples(attention: str, multiple: int) -> None:
    model = small_vit(depth=1, num_heads=6)
    pruned = pruned_vit(model, 0.3, round_to=multiple, attention=attention)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Linear):
            assert module.in_features % multiple == 0, name
            assert module.out_features % multiple == 0 or name == "head", name
    fc1 = pruned.get_submodule("blocks.0.mlp.fc1")
    for found, before in [(fc1.in_features, 48), (fc1.out_features, 192)]:
        assert 0.7 * before - 0.5 <= found < 0.7 * before + multiple
    assert fxprune.verify(model, pruned) < 1e-8


def test_round_to_more_than_there_is_keeps_all() -> None:
    pruned = fxprune.prune(mlp(hidden=16), 0.5, example_inputs=torch.randn(2, 6), round_to=64)
    assert widths(pruned)["0.weight"] == (16, 6)


# ---------------------------------------------------------------- what is left alone


def whole_modules(pruned: nn.Module, model: nn.Module) -> set[str]:
    """The modules that own weights, all of which kept their shapes."""
    before, after = widths(model), widths(pruned)
    owners = {name.rpartition(".")[0] for name in before}
    return {
        owner
        for owner in owners
        if all(after[n] == shape for n, shape in before.items() if n.rpartition(".")[0] == owner)
    }


def test_excluded_modules_stay_whole_and_the_rest_shrinks() -> None:
    model = small_vit()
    pruned = pruned_vit(model, exclude="blocks.0.mlp.*")
    assert {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"} <= whole_modules(pruned, model)
    shapes = widths(pruned)
    assert shapes["blocks.1.mlp.fc1.weight"] == (96, 48)  # what is coupled with it: the residual width
    assert shapes["blocks.0.attn.qkv.weight"] == (72, 48)
    assert shapes["norm.weight"] == (48,)
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize(
    "exclude", ["blocks.0", ["blocks.0.*"], ("blocks.0.attn", "blocks.0.mlp"), "*.0.*", "blocks.[0]"]
)
def test_excluding_a_block(exclude: str) -> None:
    model = small_vit()
    pruned = pruned_vit(model, exclude=exclude)
    names = {n for n, m in model.named_modules() if n.startswith("blocks.0.") and isinstance(m, nn.Linear)}
    assert names <= whole_modules(pruned, model)
    assert widths(pruned)["blocks.1.mlp.fc1.weight"] == (96, 48)


def test_excluding_an_attention_keeps_heads_and_head_dims() -> None:
    model = small_vit()
    for attention in ("heads", "head_dim"):
        pruned = pruned_vit(model, exclude=["blocks.0.attn.qkv"], attention=attention)
        assert {QKV, PROJ} <= whole_modules(pruned, model)
        assert widths(pruned)["blocks.1.attn.qkv.weight"] == (72, 48)


def test_ratio_zero_with_an_exclude_pattern_removes_nothing() -> None:
    model = small_vit(depth=1)
    assert fxprune.plan_of(pruned_vit(model, 0.0, exclude="blocks.0")).groups == {}


class Shared(nn.Module):
    """Heads whose queries go through one map for all heads: still one width, of which one factor goes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mix, self.head = nn.Linear(24, 72), nn.Parameter(torch.zeros(6, 6)), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q @ self.mix) @ k.transpose(-2, -1)).softmax(-1)
        return self.head((attention @ v).transpose(1, 2).reshape(*x.shape[:2], 24))


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_a_map_that_heads_share_does_not_part_heads_from_head_dims(attention: str) -> None:
    model = randomise(Shared().eval())
    pruned = fxprune.prune(model, 0.5, attention=attention, example_inputs=torch.zeros(2, 5, 24))
    assert widths(pruned)["head.weight"] == (4, 12)
    assert fxprune.verify(model, pruned) < 1e-8
