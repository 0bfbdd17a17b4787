"""Bad input: which error, and does its text say what is wrong and where?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from helpers import CAPTURES, images, mlp, small_vit
from torch import Tensor, fx, nn

import fxprune
from fxprune import errors

VECTORS = torch.randn(3, 6)


def test_every_error_is_an_fxprune_error() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), fxprune.FxpruneError)


# ---------------------------------------------------------------- what is no model, no data


@pytest.mark.parametrize("model", ["timm:deit", [nn.Linear(2, 2)], lambda x: x, None])
@pytest.mark.parametrize("example", [None, torch.zeros(2, 3)])
def test_what_is_no_model(model: Any, example: Tensor | None) -> None:
    for function in (fxprune.prune, fxprune.analyze, fxprune.trace):
        with pytest.raises(errors.OptionError, match=r"model is a torch\.nn\.Module, and was given"):
            function(model, example_inputs=example)


def test_an_exported_program_is_no_model() -> None:
    program = torch.export.export(mlp(), (VECTORS,))
    with pytest.raises(errors.OptionError, match="the module that it was exported from"):
        fxprune.prune(program, example_inputs=VECTORS)


def test_a_shape_is_no_input() -> None:
    with pytest.raises(errors.ExampleInputError, match=r"torch\.zeros\(2, 6\)"):
        fxprune.prune(mlp(), example_inputs=(2, 6))


def test_a_model_that_takes_numbers_is_no_mistake() -> None:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.out = nn.Linear(1, 8), nn.Linear(8, 2)

        def forward(self, h: int, w: int) -> Tensor:
            return self.out(self.line(torch.ones(h * w, 1)).relu())

    model = Grid()
    pruned = fxprune.prune(model, example_inputs=(2, 3))
    assert pruned.line.out_features == 4


def test_a_data_set_is_no_batches() -> None:
    data = torch.utils.data.TensorDataset(VECTORS, torch.zeros(3))
    with pytest.raises(errors.DataError, match=r"not a TensorDataset.* wrap it in a DataLoader"):
        fxprune.prune(mlp(), example_inputs=VECTORS, data=data)


# ---------------------------------------------------------------- options


class Untouchable(nn.Module):
    """No work is done on it."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("it was called")


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1, float("nan"), float("inf"), True, "0.5", None])
def test_a_ratio_outside_its_range(ratio: Any) -> None:
    with pytest.raises(errors.OptionError, match=re.escape(f"ratio={ratio!r}") + r".*\[0, 1\)"):
        fxprune.prune(Untouchable(), ratio, example_inputs=VECTORS)


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("capture", "guess", ["'auto'", "'symbolic'", "'export'"]),
        ("attention", "neurons", ["'auto'", "'heads'", "'head_dim'"]),
        ("round_to", 0, ["whole number", "at least 1"]),
        ("round_to", 1.5, ["whole number", "at least 1"]),
        ("round_to", True, ["whole number", "at least 1"]),
    ],
)
def test_an_unknown_option(option: str, value: Any, known: list[str]) -> None:
    with pytest.raises(errors.OptionError) as raised:
        fxprune.prune(Untouchable(), 0.5, example_inputs=VECTORS, **{option: value})
    assert f"{option}={value!r}" in str(raised.value)
    for word in known:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        (
            "ratio",
            torch.zeros(2, 3, 64, 64),
            r"ratio is a number.*Tensor of shape \(2, 3, 64, 64\).*example_inputs=",
        ),
        ("ratio", nn.Linear(3, 4), r"ratio is a number.*a model \(Linear\).*like="),
        ("ratio", (torch.zeros(2, 3, 8, 8),), r"ratio is a number.*Tensor of shape"),
        ("ratio", np.full((9, 9), 0.5), r"ratio=a ndarray of shape \(9, 9\)"),
        ("depth", torch.zeros(64, 64), r"depth=a Tensor of shape \(64, 64\)"),
        ("floor", torch.zeros(64, 64), "floor=a Tensor of shape"),
        ("round_to", list(range(5000)), "round_to=a list of 5000"),
        ("target", torch.zeros(64, 64), "target=a Tensor"),
        ("steps", nn.Linear(3, 4), "steps=a model"),
        ("attention", "x" * 500, "attention=a str:"),
    ],
)
def test_no_value_is_printed_whole(option: str, value: Any, says: str) -> None:
    with pytest.raises(errors.OptionError, match=says) as caught:
        fxprune.prune(small_vit(), **{"ratio": 0.5, "example_inputs": images(), option: value})
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


def test_options_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="ratio"):
        fxprune.prune(Untouchable(), 2)


@pytest.mark.parametrize("pattern", ["blocks.7.*", "0.weight", "fc"])
def test_an_exclude_pattern_that_matches_nothing(pattern: str) -> None:
    with pytest.raises(errors.PatternError) as raised:
        fxprune.prune(mlp(), 0.5, example_inputs=VECTORS, exclude=["0", pattern])
    assert repr(pattern) in str(raised.value)
    assert "'0'" in str(raised.value)  # what modules are called


# ---------------------------------------------------------------- the input


def test_an_unknown_input_shape() -> None:
    with pytest.raises(errors.ExampleInputError) as raised:
        fxprune.prune(mlp())
    assert "Sequential" in str(raised.value)
    assert "example_inputs=" in str(raised.value)


@pytest.mark.parametrize("capture", ["auto", *CAPTURES])
def test_example_inputs_that_the_model_rejects(capture: str) -> None:
    with pytest.raises(errors.ExampleInputError) as raised:
        fxprune.prune(mlp(), 0.5, example_inputs=torch.randn(3, 7), capture=capture)
    assert "example_inputs=" in str(raised.value)
    assert "rejects" in str(raised.value)


@pytest.mark.parametrize("capture", ["auto", *CAPTURES])
def test_images_of_a_size_that_the_model_rejects(capture: str) -> None:
    with pytest.raises(errors.ExampleInputError, match="rejects"):
        fxprune.prune(small_vit(depth=1), 0.5, example_inputs=images(2, 30), capture=capture)


@pytest.mark.parametrize("capture", ["auto", *CAPTURES])
def test_a_missing_argument(capture: str) -> None:
    with pytest.raises(errors.ExampleInputError):
        fxprune.prune(nn.Bilinear(6, 6, 4), 0.5, example_inputs=VECTORS, capture=capture)


def test_example_inputs_of_a_type_that_is_none() -> None:
    with pytest.raises(errors.ExampleInputError, match="not dict; keyword arguments go to example_kwargs="):
        fxprune.prune(mlp(), 0.5, example_inputs={"input": VECTORS})


# ---------------------------------------------------------------- the model


class Decides(nn.Module):
    """Which layer comes next depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if x.sum() > 0:
            x = x.relu()
        return self.fc2(x)


def test_a_model_that_no_capture_takes() -> None:
    with pytest.raises(errors.CaptureError) as raised:
        fxprune.prune(Decides(), 0.5, example_inputs=VECTORS)
    text = str(raised.value)
    assert "Decides" in text
    symbolic, export = re.findall(r"^ *(symbolic|export): (.+)$", text, re.MULTILINE)
    assert (symbolic[0], export[0]) == ("symbolic", "export")
    for _, reason in (symbolic, export):
        assert f"{Path(__file__).name}:{line_of('if x.sum() > 0')}" in reason


def line_of(code: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.strip().startswith(code))


def test_one_capture_gives_its_own_reason_only(capture: str) -> None:
    with pytest.raises(errors.CaptureError) as raised:
        fxprune.prune(Decides(), 0.5, example_inputs=VECTORS, capture=capture)
    (other,) = {*CAPTURES} - {capture}
    assert f"{capture}: " in str(raised.value)
    assert f"{other}: " not in str(raised.value)


def test_nothing_prunable() -> None:
    with pytest.raises(errors.NothingPrunableError, match="reaches the output"):
        fxprune.prune(nn.Linear(6, 4), 0.5, example_inputs=VECTORS)


def test_nothing_prunable_since_all_is_excluded() -> None:
    with pytest.raises(errors.NothingPrunableError, match="excluded"):
        fxprune.prune(mlp(), 0.5, example_inputs=VECTORS, exclude="*")


def test_a_parametrised_weight() -> None:
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(errors.UnsupportedModuleError) as raised:
        fxprune.prune(model, 0.5, example_inputs=VECTORS)
    assert "0 has a parametrised weight (weight)" in str(raised.value)
    assert "remove_parametrizations" in str(raised.value)


@pytest.mark.parametrize(
    ("apply", "undo"),
    [
        (nn.utils.weight_norm, "nn.utils.remove_weight_norm"),
        (nn.utils.spectral_norm, "nn.utils.remove_spectral_norm"),
        (lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5), "nn.utils.prune.remove"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_a_hook_computes(apply: Callable[[nn.Module], object], undo: str) -> None:
    model = mlp()
    apply(model[0])
    with pytest.raises(errors.UnsupportedModuleError, match=rf"^0 has its weight from .*{undo} on it first"):
        fxprune.prune(model, 0.5, example_inputs=VECTORS)


def test_a_lazy_layer() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(errors.UnsupportedModuleError, match=r"^0 is a lazy layer .* call the model once"):
        fxprune.prune(model, 0.5, example_inputs=VECTORS)


def test_a_weight_that_calls_write() -> None:
    model = nn.Sequential(nn.Embedding(9, 6, max_norm=1.0), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    kept = model[0].weight.detach().clone()
    with pytest.raises(errors.UnsupportedModuleError, match=r"^0 has max_norm=1, which writes .* to None"):
        fxprune.prune(model, 0.5, example_inputs=torch.arange(9).view(1, 9))
    assert torch.equal(model[0].weight, kept)


def test_torchscript() -> None:
    with pytest.raises(
        errors.UnsupportedModuleError, match=r"is TorchScript.*: prune the module that it was"
    ):
        fxprune.prune(torch.jit.trace(mlp(), VECTORS), 0.5, example_inputs=VECTORS)


def test_what_torch_compile_returned() -> None:
    model = mlp()
    with pytest.raises(errors.UnsupportedModuleError, match=r"^OptimizedModule .*_orig_mod\), and compile"):
        fxprune.prune(torch.compile(model, backend="eager"), 0.5, example_inputs=VECTORS)
    part = nn.Sequential(nn.Linear(6, 6), torch.compile(model, backend="eager"))
    with pytest.raises(errors.UnsupportedModuleError, match=r"^1 is what torch\.compile returned"):
        fxprune.prune(part, 0.5, example_inputs=VECTORS)


def test_a_model_that_is_compiled_in_place() -> None:
    model = mlp()
    model.compile(backend="eager")
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=VECTORS)) < 1e-8


def test_a_parametrised_weight_can_be_made_plain() -> None:
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert fxprune.prune(model, 0.5, example_inputs=VECTORS)(VECTORS).shape == (3, 4)


@pytest.mark.parametrize(
    ("register", "kind"),
    [
        ("register_forward_hook", "forward hook"),
        ("register_forward_pre_hook", "forward pre hook"),
        ("register_full_backward_hook", "backward hook"),
        ("register_full_backward_pre_hook", "backward pre hook"),
    ],
)
def test_a_hook(register: str, kind: str) -> None:
    model = mlp()
    getattr(model[2], register)(lambda *given: None)
    with pytest.raises(errors.UnsupportedModuleError) as raised:
        fxprune.prune(model, 0.5, example_inputs=VECTORS)
    assert f"2 carries a {kind}" in str(raised.value)
    assert "remove it" in str(raised.value)


def doubled(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


class LibraryBlock(nn.Sequential):
    pass


def test_a_hook_of_the_models_own_library_is_part_of_its_code(
    capture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Hugging Face's backbones collect hidden states."""
    monkeypatch.setattr(LibraryBlock, "__module__", "library.blocks")
    monkeypatch.setattr(doubled, "__module__", "library.hooks")
    model = nn.Sequential(nn.Linear(6, 16), LibraryBlock(nn.GELU(), nn.Linear(16, 16)), nn.Linear(16, 4))
    model[1].register_forward_hook(doubled)
    pruned = fxprune.prune(model, 0.5, example_inputs=VECTORS, capture=capture)
    assert pruned.get_submodule("1.1").weight.shape == (8, 8)
    assert fxprune.verify(model, pruned) < 1e-8  # which runs the model itself, hook and all
    assert any("hooks" in note for note in fxprune.analyze(model, example_inputs=VECTORS).notes)

    monkeypatch.setattr(doubled, "__module__", "script")
    with pytest.raises(errors.UnsupportedModuleError, match="1 carries a forward hook"):
        fxprune.prune(model, 0.5, example_inputs=VECTORS)


# ---------------------------------------------------------------- strict


class TwoUnknowns(nn.Module):
    """Two functions that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.special.airy_ai(self.fc1(x))
        x = torch.special.spherical_bessel_j0(x)
        return self.fc3(self.fc2(x).relu())


def test_strict_names_every_op_without_a_rule_at_once(capture: str) -> None:
    with pytest.raises(errors.MissingRuleError) as raised:
        fxprune.prune(TwoUnknowns(), 0.5, example_inputs=VECTORS, capture=capture, strict=True)
    text = str(raised.value)
    assert "airy_ai" in text
    assert "spherical_bessel_j0" in text
    assert "extended(" in text

    pruned = fxprune.prune(TwoUnknowns(), 0.5, example_inputs=VECTORS, capture=capture)
    assert pruned.fc3.in_features == 8


def test_strict_is_silent_where_every_op_has_a_rule() -> None:
    fxprune.prune(mlp(), 0.5, example_inputs=VECTORS, strict=True)


# ---------------------------------------------------------------- plans


def plan_for(model: nn.Module) -> fxprune.Plan:
    return fxprune.plan_of(fxprune.prune(model, 0.5, example_inputs=VECTORS))


def test_a_plan_for_a_model_of_other_widths() -> None:
    with pytest.raises(errors.PlanError) as raised:
        fxprune.apply(mlp(hidden=24), plan_for(mlp(hidden=16)), example_inputs=VECTORS)
    text = str(raised.value)
    assert "another model" in text
    assert "hidden" in text  # the group
    assert "24" in text
    assert "16" in text


def test_a_plan_for_a_model_of_other_groups() -> None:
    deeper = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    (group, *_) = plan_for(deeper).groups
    with pytest.raises(errors.PlanError, match=rf"another model.*'{re.escape(group)}'"):
        fxprune.apply(nn.Linear(6, 4), plan_for(deeper), example_inputs=VECTORS)


def test_verify_with_another_model() -> None:
    pruned = fxprune.prune(mlp(hidden=16), 0.5, example_inputs=VECTORS)
    with pytest.raises(errors.PlanError, match="another model"):
        fxprune.verify(mlp(hidden=24), pruned)


@pytest.mark.parametrize("model", [mlp(), fx.symbolic_trace(mlp())])
def test_plan_of_a_module_that_was_not_pruned(model: Any) -> None:
    with pytest.raises(errors.PlanError, match=f"{type(model).__name__}.*no plan.*fxprune.prune"):
        fxprune.plan_of(model)


def test_verify_a_module_that_was_not_pruned() -> None:
    with pytest.raises(errors.PlanError, match="no plan"):
        fxprune.verify(mlp(), fx.symbolic_trace(mlp()), example_inputs=VECTORS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    plan_for(mlp()).save(path)
    return path


def test_a_truncated_plan_file(saved: Path) -> None:
    whole = saved.read_text()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        saved.write_text(whole[:length])
        with pytest.raises(errors.PlanError, match=r"plan\.json"):
            fxprune.Plan.load(saved)


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "7", "{}", '{"format": "fxprune-plan-2"}', '{"format": "fxprune-plan-1"}', "\x00\x01"],
)
def test_a_file_that_is_no_plan(saved: Path, text: str) -> None:
    saved.write_text(text)
    with pytest.raises(errors.PlanError, match=r"plan\.json"):
        fxprune.Plan.load(saved)


def test_a_binary_file_is_no_plan(saved: Path) -> None:
    saved.write_bytes(bytes(range(256)))
    with pytest.raises(errors.PlanError, match=r"plan\.json"):
        fxprune.Plan.load(saved)


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        ([0, 1, 16], "0..15"),
        ([-1, 0, 1], "0..15"),
        ([], "at least one"),
        ([3, 3, 5], ""),
        ([0.5, 1.0], ""),
        (["a"], ""),
        ([[0, 1], [2]], ""),
        ([[0, 1], [2, 3]], "heads"),
        ([True, False] * 8, ""),
        (None, ""),
        (3, ""),
        ({"0": 1}, ""),
    ],
)
def test_an_edited_plan_file(saved: Path, indices: Any, says: str) -> None:
    record = json.loads(saved.read_text())
    (group,) = record["groups"]
    record["groups"][group]["kept"] = indices
    saved.write_text(json.dumps(record))
    with pytest.raises(errors.PlanError) as raised:
        fxprune.apply(mlp(), fxprune.Plan.load(saved), example_inputs=VECTORS)
    assert says in str(raised.value)


@pytest.mark.parametrize("size", ["16", 16.5, None, 8])
def test_an_edited_size_in_a_plan_file(saved: Path, size: Any) -> None:
    record = json.loads(saved.read_text())
    (group,) = record["groups"]
    record["groups"][group]["size"] = size
    saved.write_text(json.dumps(record))
    with pytest.raises(errors.PlanError):
        fxprune.apply(mlp(), fxprune.Plan.load(saved), example_inputs=VECTORS)


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        ("", "0..15"),  # none of them
        ("AAA=", "at least one"),
        ("gAAA", "0..15"),  # a byte too many
        ("gA==", "0..15"),  # a byte too few
        ("no base64!", ""),
    ],
)
def test_edited_bits_in_a_plan_file(saved: Path, bits: str, says: str) -> None:
    record = json.loads(saved.read_text())
    (group,) = record["groups"]
    record["groups"][group]["kept"] = bits
    saved.write_text(json.dumps(record))
    with pytest.raises(errors.PlanError) as raised:
        fxprune.Plan.load(saved)
    assert says in str(raised.value)
    assert "plan.json" in str(raised.value)


def test_a_plan_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(errors.PlanError, match=r"plan\.json"):
        fxprune.Plan.load(tmp_path / "plan.json")
