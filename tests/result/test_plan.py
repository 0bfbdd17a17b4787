"""Plans are data: printed, saved, loaded, and applied to another model of the same architecture."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from helpers import assert_same, images, randomise, run, small_vit
from torch import fx, nn

import fxprune
from fxprune.errors import PlanError
from fxprune.result.plan import plan_from


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_vit(depth=1)


@pytest.fixture(scope="module", params=["heads", "head_dim"])
def pruned(model: nn.Module, request: pytest.FixtureRequest) -> fx.GraphModule:
    return fxprune.prune(model, 0.5, example_inputs=images(), attention=request.param)


def assert_equal_plans(first: fxprune.Plan, second: fxprune.Plan) -> None:
    assert list(first.groups) == list(second.groups)
    for name, kept in first.groups.items():
        other = second.groups[name]
        assert (kept.size, kept.count) == (other.size, other.count)
        assert kept.indices.dtype == other.indices.dtype == torch.int64
        assert torch.equal(kept.indices, other.indices)
    assert first.kept.keys() == second.kept.keys()
    for name, dimensions in first.kept.items():
        assert isinstance(second.kept[name], tuple)
        for one, other in zip(dimensions, second.kept[name], strict=True):
            assert (one is None) == (other is None)
            assert one is None or (one.dtype == other.dtype and torch.equal(one, other))


def test_a_saved_plan_is_loaded_as_it_was(pruned: fx.GraphModule, tmp_path: Path) -> None:
    plan = fxprune.plan_of(pruned)
    plan.save(tmp_path / "plan.json")
    assert_equal_plans(fxprune.Plan.load(tmp_path / "plan.json"), plan)
    plan.save(str(tmp_path / "text.json"))
    assert_equal_plans(fxprune.Plan.load(str(tmp_path / "text.json")), plan)


def test_a_plan_is_plain_json(pruned: fx.GraphModule, tmp_path: Path) -> None:
    plan = fxprune.plan_of(pruned)
    plan.save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["format"] == "fxprune-plan-2"
    assert record["groups"]["embed"]["size"] == 48
    assert positions(record["groups"]["embed"]["kept"]) == plan.groups["embed"].indices.tolist()
    choice, *others = record["weights"]["patch_embed.proj.weight"]
    assert positions(record["indices"][choice]) == plan.groups["embed"].indices.tolist()
    assert others == [None, None, None]


def positions(bits: str) -> list[int]:
    """The format as it is documented: base64, the first element in the highest bit."""
    flags = "".join(f"{byte:08b}" for byte in base64.b64decode(bits))
    return [i for i, flag in enumerate(flags) if flag == "1"]


def test_a_plan_is_read_in_the_first_format_too(pruned: fx.GraphModule, tmp_path: Path) -> None:
    plan = fxprune.plan_of(pruned)
    weights = {n: [None if d is None else d.tolist() for d in dims] for n, dims in plan.kept.items()}
    groups = {n: {"size": k.size, "kept": k.indices.tolist()} for n, k in plan.groups.items()}
    record = {"format": "fxprune-plan-1", "groups": groups, "weights": weights}
    (tmp_path / "plan.json").write_text(json.dumps(record))
    assert_equal_plans(fxprune.Plan.load(tmp_path / "plan.json"), plan)


def test_a_plan_is_small_beside_the_weights(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224")
    pruned = fxprune.prune(model, 0.5, attention="head_dim")
    fxprune.plan_of(pruned).save(tmp_path / "plan.json")
    weights = sum(t.numel() * t.element_size() for t in pruned.state_dict().values())
    assert (tmp_path / "plan.json").stat().st_size < weights / 100


def test_saving_replaces_the_file_whole_and_leaves_nothing_beside_it(
    pruned: fx.GraphModule, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("x" * 1_000_000)
    fxprune.plan_of(pruned).save(path)
    fxprune.Plan.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_saving_where_it_can_not_be_saved_leaves_the_old_file(pruned: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    broken = fxprune.Plan({"embed": fxprune.Kept(object(), torch.arange(2))})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_applies_to_a_fresh_model(
    model: nn.Module, pruned: fx.GraphModule, capture: str, tmp_path: Path
) -> None:
    fxprune.plan_of(pruned).save(tmp_path / "plan.json")
    plan = fxprune.Plan.load(tmp_path / "plan.json")
    fresh = randomise(copy.deepcopy(model), seed=5)
    applied = fxprune.apply(fresh, plan, example_inputs=images(), capture=capture)

    assert_equal_plans(fxprune.plan_of(applied), plan)
    assert fxprune.verify(fresh, applied) < 1e-8
    state = fresh.state_dict()
    for name, tensor in applied.state_dict().items():
        wanted = state[name]
        for dim, indices in enumerate(plan.kept.get(name, ())):
            wanted = wanted if indices is None else wanted.index_select(dim, indices)
        assert torch.equal(tensor, wanted)


def test_a_plan_applied_to_the_same_model_gives_the_same_result(
    model: nn.Module, pruned: fx.GraphModule
) -> None:
    again = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=images())
    assert_same(run(again, images(3)), run(pruned, images(3)), 0)


def test_a_pruned_state_dict_loads_into_a_fresh_model_of_the_same_plan(
    model: nn.Module, pruned: fx.GraphModule
) -> None:
    other = randomise(copy.deepcopy(model), seed=5)
    shell = fxprune.apply(other, fxprune.plan_of(pruned), example_inputs=images())
    shell.load_state_dict(pruned.state_dict())
    assert_same(run(shell, images(3)), run(pruned, images(3)), 0)


def test_a_plan_with_a_choice_per_head_does_not_fit_heads_that_share_one() -> None:
    per_head = fxprune.prune(small_vit(depth=1), 0.5, example_inputs=images(), attention="head_dim")
    shared = small_vit(depth=1, qk_norm=True)
    plan = fxprune.plan_of(per_head)
    with pytest.raises(PlanError, match="head"):
        fxprune.apply(shared, plan, example_inputs=images())


def test_a_plan_prints_as_a_table(model: nn.Module) -> None:
    pruned = fxprune.prune(model, 0.5, example_inputs=images(), attention="head_dim")
    lines = str(fxprune.plan_of(pruned)).splitlines()
    assert [line.split() for line in lines] == [
        ["group", "size", "kept"],
        ["embed", "48", "24"],
        ["blocks.0.attn.head_dim", "12", "6"],
        ["blocks.0.mlp.hidden", "192", "96"],
    ]
    assert len({len(line) for line in lines}) == 1  # columns line up


def test_an_empty_plan_prints_and_round_trips(model: nn.Module, tmp_path: Path) -> None:
    plan = fxprune.plan_of(fxprune.prune(model, 0.0, example_inputs=images()))
    assert str(plan).split() == ["group", "size", "kept"]
    plan.save(tmp_path / "plan.json")
    assert fxprune.Plan.load(tmp_path / "plan.json").groups == {}


def test_bits_beyond_the_last_element() -> None:
    groups = {"hidden": {"size": 12, "kept": "//A="}}
    assert plan_from({"format": "fxprune-plan-2", "groups": groups}).groups["hidden"].count == 12
    groups["hidden"]["kept"] = "//g="
    with pytest.raises(PlanError, match=r"hidden.*0\.\.11"):
        plan_from({"format": "fxprune-plan-2", "groups": groups})
