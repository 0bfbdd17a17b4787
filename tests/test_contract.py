"""What `prune` promises: whose weights the result has, and that it is a normal module."""

import copy
import math
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import timm
import torch
from helpers import (
    CAPTURES,
    assert_same,
    images,
    mlp,
    parameter_count,
    randomise,
    run,
    small_conv,
    small_hf_vit,
    small_swin,
    small_torchvision_vit,
    small_vit,
    tensors_of,
    widths,
)
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import CertificateError

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def pruned_by_half(model: nn.Module, x: Any = None, **options: Any) -> fx.GraphModule:
    x = images() if x is None else x
    return fxprune.prune(model, 0.5, example_inputs=x, **options)


@pytest.fixture(scope="module", params=CAPTURES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, fx.GraphModule]:
    """A small ViT and its half, once per capture.  Copy before you change either."""
    model = small_vit(depth=1)
    return model, pruned_by_half(model, capture=request.param)


# ---------------------------------------------------------------- the input shape


def timm_model() -> nn.Module:
    sizes = {"patch_size": 56, "embed_dim": 48, "depth": 1, "num_heads": 4}
    return randomise(timm.create_model("vit_tiny_patch16_224", **sizes).eval())


@pytest.mark.parametrize(
    ("build", "size"), [(timm_model, 224), (small_hf_vit, 32), (small_torchvision_vit, 224)]
)
def test_no_example_inputs_where_the_library_records_a_shape(
    build: Callable[[], nn.Module], size: int
) -> None:
    model = build()
    pruned = fxprune.prune(model, ratio=0.5)
    assert isinstance(pruned, fx.GraphModule)
    assert parameter_count(pruned) < parameter_count(model)
    assert fxprune.verify(model, pruned) < 1e-8
    wanted = [t.shape for t in tensors_of(run(model, images(5, size)))]
    assert [t.shape for t in tensors_of(run(pruned, images(5, size)))] == wanted


class Blend(nn.Module):
    """Two inputs and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(4, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor, gate: Tensor | None = None) -> Tensor:
        x = self.left(a) + self.right(b)
        return self.out(torch.tanh(x if gate is None else x * gate))


def test_example_inputs_may_be_a_tuple_with_keyword_arguments(capture: str) -> None:
    model = randomise(Blend())
    a, b, gate = torch.randn(3, 6), torch.randn(3, 4), torch.randn(3, 1)
    example: dict[str, Any] = {"example_inputs": (a, b), "example_kwargs": {"gate": gate}}

    whole = fxprune.prune(model, 0.0, capture=capture, **example)
    assert_same(run(whole, a, b, gate=gate), run(model, a, b, gate=gate), 1e-6)

    pruned = fxprune.prune(model, 0.5, capture=capture, **example)
    assert pruned.out.in_features == 8
    assert fxprune.verify(model, pruned) < 1e-8
    assert fxprune.verify(model, pruned, **example) < 1e-8


def test_example_inputs_may_be_a_tensor(capture: str) -> None:
    model = mlp(hidden=16)
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(3, 6), capture=capture)
    assert widths(pruned)["0.weight"] == (8, 6)


def test_keyword_arguments_alone_are_enough() -> None:
    model = randomise(Blend())
    example = {"a": torch.randn(3, 6), "b": torch.randn(3, 4)}
    pruned = fxprune.prune(model, 0.5, example_kwargs=example)
    assert pruned.out.in_features == 8
    assert run(pruned, **example).shape == (3, 3)


# ---------------------------------------------------------------- the ratio


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_ratio_is_the_fraction_removed_along_every_prunable_axis(ratio: float) -> None:
    keep = 1 - ratio
    model = small_vit()
    pruned = fxprune.prune(model, ratio, example_inputs=images())

    embed, hidden = int(48 * keep), int(192 * keep)
    for block in pruned.blocks.children():
        assert block.norm1.normalized_shape == (embed,)
        assert (block.attn.qkv.in_features, block.attn.qkv.out_features) == (embed, 3 * embed)
        assert (block.attn.proj.in_features, block.attn.proj.out_features) == (embed, embed)
        assert (block.mlp.fc1.in_features, block.mlp.fc1.out_features) == (embed, hidden)
        assert (block.mlp.fc2.in_features, block.mlp.fc2.out_features) == (hidden, embed)
    assert (pruned.patch_embed.proj.in_channels, pruned.patch_embed.proj.out_channels) == (3, embed)
    assert (pruned.head.in_features, pruned.head.out_features) == (embed, 10)

    left = parameter_count(pruned.blocks) / parameter_count(model.blocks)
    assert left == pytest.approx(keep**2, abs=0.02)


def test_ratio_zero_is_a_no_op_in_value_that_shares_no_memory(capture: str) -> None:
    model = small_vit(depth=1)
    same = fxprune.prune(model, 0.0, example_inputs=images(), capture=capture)
    assert_same(run(same, images(3)), run(model, images(3)), 1e-6)
    assert fxprune.plan_of(same).groups == {}
    assert fxprune.plan_of(same).kept == {}

    original = model.state_dict()
    for name, tensor in same.state_dict().items():
        assert torch.equal(tensor, original[name])
        assert tensor.data_ptr() != original[name].data_ptr()


# ---------------------------------------------------------------- the weights


@pytest.mark.parametrize("build", [small_vit, small_swin, small_conv])
def test_every_tensor_is_the_index_select_that_the_plan_says(
    build: Callable[..., nn.Module], capture: str
) -> None:
    model = build()
    pruned = pruned_by_half(model, capture=capture)
    assert_is_the_planned_part(pruned, model)


def test_every_tensor_is_the_index_select_that_the_plan_says_of_hugging_face_models() -> None:
    model = small_hf_vit()
    assert_is_the_planned_part(fxprune.prune(model, 0.5), model)


def assert_is_the_planned_part(pruned: fx.GraphModule, model: nn.Module) -> None:
    kept = fxprune.plan_of(pruned).kept
    original, state = model.state_dict(), pruned.state_dict()
    assert state.keys() == original.keys()
    assert kept.keys() <= original.keys()
    for name, tensor in state.items():
        wanted = original[name]
        for dim, indices in enumerate(kept.get(name, ())):
            if indices is not None:
                wanted = wanted.index_select(dim, indices)
        assert torch.equal(tensor, wanted), name
    assert any(state[name].shape != original[name].shape for name in kept)


def test_kept_indices_are_sorted_int64_one_per_dimension_or_none(
    pair: tuple[nn.Module, fx.GraphModule],
) -> None:
    model, pruned = pair
    original = model.state_dict()
    for name, dimensions in fxprune.plan_of(pruned).kept.items():
        assert isinstance(dimensions, tuple)
        assert len(dimensions) == original[name].ndim
        assert any(indices is not None for indices in dimensions)
        for size, indices in zip(original[name].shape, dimensions, strict=True):
            if indices is None:
                continue
            assert indices.dtype == torch.int64
            assert indices.ndim == 1
            assert torch.equal(indices, indices.unique(sorted=True))
            assert indices.min() >= 0
            assert indices.max() < size
            assert len(indices) < size


class Invents(nn.Module):
    """Constants, an unsaved buffer and an unused layer: none of them is in the result's state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 4)
        self.unused = nn.Linear(3, 3)
        self.register_buffer("unsaved", torch.ones(16), persistent=False)
        self.plain = torch.full((6,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.plain + torch.arange(6, device=x.device) + torch.tensor([0.5])
        return self.fc2(self.fc1(x) * self.unsaved)


def test_state_has_no_name_that_the_original_lacks(capture: str) -> None:
    model = randomise(Invents())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 6), capture=capture)
    assert pruned.state_dict().keys() <= model.state_dict().keys()
    assert {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"} <= pruned.state_dict().keys()
    assert fxprune.verify(model, pruned) < 1e-8


class Recurrent(nn.Module):
    """One layer applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.step = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.step(self.step(x).relu()))


def test_a_module_used_twice_is_one_module_still(capture: str) -> None:
    model = randomise(Recurrent())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 6), capture=capture)
    assert widths(pruned)["step.0.weight"] == (8, 8)
    assert_is_the_planned_part(pruned, model)
    assert fxprune.verify(model, pruned) < 1e-8


class Tied(nn.Module):
    """Two names for one Parameter, both in use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.down(self.up(x).relu()))


class TiedModules(nn.Module):
    """Two names for one module, one of them not in use."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 16), nn.Linear(16, 4)])
        self.head = self.layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers[0](x).relu())


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (Tied, ("up.weight", "down.weight")),
        (TiedModules, ("head.weight", "layers.1.weight")),
        (TiedModules, ("head.bias", "layers.1.bias")),
    ],
)
def test_two_names_for_one_parameter_stay_two_names_for_one(
    build: type[nn.Module], names: tuple[str, str], capture: str
) -> None:
    model = randomise(build())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 6), capture=capture)
    state = pruned.state_dict(keep_vars=True)
    assert state[names[0]] is state[names[1]]
    assert isinstance(state[names[0]], nn.Parameter)
    assert_is_the_planned_part(pruned, model)
    assert fxprune.verify(model, pruned) < 1e-8


def test_an_alias_of_a_buffer_stays_one_too() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    model.register_buffer("mean", model[1].running_mean)
    randomise(model.eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 6))
    state = pruned.state_dict(keep_vars=True)
    assert state["mean"] is state["1.running_mean"]


# ---------------------------------------------------------------- the given model


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_untouched(capture: str, training: bool) -> None:
    model = small_torchvision_vit(dropout=0.1).train(training)
    model.encoder.eval()  # a mode of its own
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, output = snapshot(model), run(model, images(2, 224))

    pruned = fxprune.prune(model, 0.5, capture=capture)
    fxprune.verify(model, pruned)

    assert_unchanged(model, before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert_same(run(model, images(2, 224)), output, 0)


def test_a_hugging_face_model_is_untouched() -> None:
    model = small_hf_vit().train()
    before, output = snapshot(model), run(model, images())
    fxprune.prune(model, 0.5)
    assert_unchanged(model, before)
    assert_same(run(model, images()), output, 0)


Snapshot = dict[str, dict[str, Any]]


def snapshot(model: nn.Module) -> Snapshot:
    """Every attribute of every module: flags, hooks, parameters, plain Python state."""

    def held(value: Any) -> Any:
        return copy.copy(value) if isinstance(value, (dict, list, set)) else value

    return {
        path: {name: held(value) for name, value in vars(module).items()}
        for path, module in model.named_modules(remove_duplicate=False)
    }


def assert_unchanged(model: nn.Module, before: Snapshot) -> None:
    after = snapshot(model)
    assert after.keys() == before.keys()
    for path, attributes in before.items():
        assert after[path].keys() == attributes.keys(), path
        for name, value in attributes.items():
            now = after[path][name]
            if isinstance(value, dict):
                assert now.keys() == value.keys(), (path, name)
                assert all(now[key] is value[key] for key in value), (path, name)
            else:
                assert now is value or (not isinstance(value, Tensor) and now == value), (path, name)
    assert not any(
        hooks
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_the_result_is_the_original_with_zeroed_channels_and_norms_over_the_kept(
    attention: str, capture: str
) -> None:
    """Without the certificate: weights zeroed by hand, and a layer norm written out."""
    model = small_vit(depth=1).double()
    pruned = pruned_by_half(model, images().double(), attention=attention, capture=capture)
    kept = fxprune.plan_of(pruned).kept
    masked = copy.deepcopy(model)
    for name, tensor in masked.state_dict().items():
        for dim, indices in enumerate(kept.get(name, ())):
            if indices is not None:
                gone = sorted({*range(tensor.shape[dim])} - {*indices.tolist()})
                tensor.index_fill_(dim, torch.tensor(gone), 0)
    for name, norm in list(masked.named_modules()):
        if isinstance(norm, nn.LayerNorm):
            masked.set_submodule(name, NormOverKept(norm, kept[f"{name}.weight"][0]))

    x = images(3).double()
    assert_same(run(pruned, x), run(masked, x), 1e-12)
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-12


class NormOverKept(nn.Module):
    """A layer norm whose mean and variance leave out the channels that are not kept."""

    def __init__(self, norm: nn.LayerNorm, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        part = x[..., self.kept]
        mean = part.mean(-1, keepdim=True)
        variance = part.var(-1, unbiased=False, keepdim=True)
        normal = (x - mean) / (variance + self.norm.eps).sqrt()
        return normal * self.norm.weight + self.norm.bias


class Opaque(nn.Module):
    """A function in the middle that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.special.airy_ai(self.fc2(self.fc1(x).relu())))


def test_what_is_not_understood_stays_whole_for_a_recorded_reason(capture: str) -> None:
    model, x = randomise(Opaque()), torch.randn(3, 6)
    analysis = fxprune.analyze(model, example_inputs=x, capture=capture)
    (group,) = analysis.group_of("fc2.weight[0]")
    assert group.frozen is not None
    assert "airy_ai has no rule" in str(group.frozen)
    assert "test_contract.py" in str(group.frozen)

    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert widths(pruned)["fc1.weight"] == (8, 6)
    assert widths(pruned)["fc2.weight"] == (16, 8)
    assert fxprune.verify(model, pruned) < 1e-8


# ---------------------------------------------------------------- a normal module: state


def test_any_batch_size(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    _, pruned = pair
    x = images(5)
    together = run(pruned, x)
    assert together.shape == (5, 10)
    for batch in (1, 3):
        assert_same(run(pruned, x[:batch]), together[:batch])


def test_train_and_eval_flags_are_those_of_the_model(capture: str) -> None:
    model = small_conv(dropout=0.1).train()
    model.stem.eval()
    model.drop.eval()
    pruned = pruned_by_half(model, capture=capture)
    assert pruned.training
    flags = {path: module.training for path, module in model.named_modules()}
    found = {path: module.training for path, module in pruned.named_modules() if path in flags}
    assert {"stem.1", "drop", "widen.1", "mix.1"} <= found.keys()
    assert found == {path: flags[path] for path in found}

    assert not any(module.training for module in pruned.eval().modules())
    assert all(module.training for module in pruned.train().modules())


def test_requires_grad_is_that_of_each_parameter(capture: str) -> None:
    model = small_conv()
    frozen = {"widen.0.weight", "mix.1.bias", "head.weight"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    pruned = pruned_by_half(model, capture=capture)
    found = {name for name, p in pruned.named_parameters() if not p.requires_grad}
    assert found == frozen
    assert {n for n, _ in pruned.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert {n for n, _ in pruned.named_buffers()} == {n for n, _ in model.named_buffers()}


def test_a_bfloat16_model_stays_one(capture: str) -> None:
    model = small_vit(depth=1).to(torch.bfloat16)
    x = images().to(torch.bfloat16)
    pruned = pruned_by_half(model, x, capture=capture)
    assert {t.dtype for t in pruned.state_dict().values()} == {torch.bfloat16}
    assert run(pruned, x).dtype == torch.bfloat16
    assert_is_the_planned_part(pruned, model)
    assert fxprune.verify(model, pruned) < 1e-8


def test_a_model_on_meta_is_analysed_and_pruned_without_values(capture: str) -> None:
    with torch.device("meta"):
        model = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=4, num_classes=10
        )
    x = torch.empty(2, 3, 32, 32, device="meta")
    pruned = pruned_by_half(model, x, capture=capture)
    assert {t.device.type for t in (*pruned.parameters(), *pruned.buffers())} == {"meta"}
    assert run(pruned, x).shape == (2, 10)
    for choice in fxprune.plan_of(pruned).groups.values():
        assert torch.equal(choice.indices, torch.arange(choice.size // 2))
    with pytest.raises(CertificateError, match=r"meta.*no values.*materialise"):
        fxprune.verify(model, pruned)


# ---------------------------------------------------------------- a normal module: copies


def test_deepcopy(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    _, pruned = pair
    clone = copy.deepcopy(pruned)
    assert_same(run(clone, images()), run(pruned, images()), 0)
    assert_same_plan(clone, pruned)
    with torch.no_grad():
        clone.head.weight.zero_()
    assert pruned.head.weight.abs().max() > 0


def test_pickle(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    model, pruned = pair
    clone = pickle.loads(pickle.dumps(pruned))
    assert_same(run(clone, images(3)), run(pruned, images(3)), 0)
    assert widths(clone) == widths(pruned)
    assert_same_plan(clone, pruned)
    assert fxprune.verify(model, clone) < 1e-8


def test_pickle_keeps_modes_and_random_layers() -> None:
    model = small_conv(dropout=0.3).train()
    for capture in CAPTURES:
        pruned = pruned_by_half(model, capture=capture)
        clone = pickle.loads(pickle.dumps(pruned))
        assert clone.training
        assert_same(run(clone, images()), run(pruned, images()), 0)
        assert_same(run(clone.eval(), images()), run(pruned.eval(), images()), 0)


def test_saved_with_torch_and_loaded_again(pair: tuple[nn.Module, fx.GraphModule], tmp_path: Path) -> None:
    _, pruned = pair
    torch.save(pruned, tmp_path / "pruned.pt")
    clone = torch.load(tmp_path / "pruned.pt", weights_only=False)
    assert_same(run(clone, images()), run(pruned, images()), 0)
    assert_same_plan(clone, pruned)


def assert_same_plan(a: fx.GraphModule, b: fx.GraphModule) -> None:
    first, second = fxprune.plan_of(a), fxprune.plan_of(b)
    assert str(first) == str(second)
    assert first.kept.keys() == second.kept.keys()
    for name, dimensions in first.kept.items():
        for one, other in zip(dimensions, second.kept[name], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


# ---------------------------------------------------------------- a normal module: training


def test_an_optimiser_step_changes_every_parameter(
    pair: tuple[nn.Module, fx.GraphModule],
) -> None:
    pruned = copy.deepcopy(pair[1]).train()
    before = {name: p.detach().clone() for name, p in pruned.named_parameters()}
    optimiser = torch.optim.SGD(pruned.parameters(), lr=0.1)
    pruned(images()).square().sum().backward()
    optimiser.step()
    for name, parameter in pruned.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_hooks_on_submodules_fire(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    pruned = copy.deepcopy(pair[1])
    seen: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, output.shape)

    names = ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "norm", "head"]
    for name in names:
        pruned.get_submodule(name).register_forward_hook(note(name))
    run(pruned, images(3))
    assert list(seen) == names
    assert seen["blocks.0.attn.qkv"] == (3, 17, 72)
    assert seen["blocks.0.mlp.fc1"] == (3, 17, 96)


# ---------------------------------------------------------------- a normal module: compilers


def test_torch_compile(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    _, pruned = pair
    torch._dynamo.reset()
    compiled = torch.compile(pruned, backend="aot_eager", fullgraph=True)
    assert_same(run(compiled, images(3)), run(pruned, images(3)))


def test_torch_export(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    _, pruned = pair
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(pruned, (images(),), dynamic_shapes=dynamic)
    assert_same(run(exported.module(), images(5)), run(pruned, images(5)))


def test_onnx(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    _, pruned = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            pruned, (images(),), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (name,) = (given.name for given in session.get_inputs())
    (output,) = session.run(None, {name: images(5).numpy()})
    assert_same(torch.from_numpy(output), run(pruned, images(5)))


def test_a_result_can_be_pruned_again(pair: tuple[nn.Module, fx.GraphModule]) -> None:
    _, pruned = pair
    again = pruned_by_half(pruned)
    assert again.blocks.get_submodule("0").mlp.fc1.out_features == 48
    assert fxprune.verify(pruned, again) < 1e-8


# ---------------------------------------------------------------- a normal module: .to


class Numbered(nn.Module):
    """Code that asks for the dtype and device of its input and of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.to(self.conv.weight.dtype)).flatten(2).transpose(1, 2)
        n = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        x = self.norm(x + n[:, None] * torch.full((1,), 0.1, dtype=x.dtype, device=x.device))
        return self.head(x.mean(1))


class Weighted(nn.Module):
    """Makes a table anew in each call, of which a result holds what it kept."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * torch.linspace(0, 1, 16))


def test_what_no_file_holds_outlives_empty_weights(capture: str) -> None:
    """`to_empty` leaves memory as it is found; weights are loaded then, tables that code makes are not."""
    x = torch.randn(2, 8)
    pruned = fxprune.prune(randomise(Weighted().eval()), 0.5, example_inputs=x, capture=capture)
    wanted, state = run(pruned, x), copy.deepcopy(pruned.state_dict())
    with torch.no_grad():
        pruned._apply(lambda t: torch.full_like(t, torch.nan if t.is_floating_point() else 0))
    pruned.load_state_dict(state)
    assert_same(run(pruned, x), wanted, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("build", "capture"),
    [
        (small_vit, "symbolic"),
        (small_swin, "symbolic"),
        (small_hf_vit, "export"),
        (Numbered, "symbolic"),
        (Numbered, "export"),
    ],
)
def test_to_another_dtype(build: Callable[..., nn.Module], capture: str, dtype: torch.dtype) -> None:
    pruned = pruned_by_half(build(), capture=capture)
    (wanted,) = tensors_of(run(pruned, images()))
    (got,) = tensors_of(run(pruned.to(dtype), images().to(dtype)))
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    assert_same(got.float(), wanted, tolerance)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize(
    ("build", "capture"),
    [
        (small_vit, "symbolic"),
        (small_swin, "symbolic"),
        (small_swin, "export"),
        (small_hf_vit, "export"),
        (Numbered, "symbolic"),
        (Numbered, "export"),
    ],
)
def test_to_cuda_before_or_after(build: Callable[..., nn.Module], capture: str) -> None:
    model = build().double()
    x = images(3).double()
    here = pruned_by_half(model, x, capture=capture)
    wanted = run(here, x)
    moved = run(copy.deepcopy(here).cuda(), x.cuda())
    assert_same([t.cpu() for t in tensors_of(moved)], wanted, 1e-10)

    there = pruned_by_half(copy.deepcopy(model).cuda(), x.cuda(), capture=capture)
    assert {t.device.type for t in (*there.parameters(), *there.buffers())} == {"cuda"}
    assert_same([t.cpu() for t in tensors_of(run(there, x.cuda()))], wanted, 1e-10)
    assert_same_plan(there, here)
    assert fxprune.verify(model.cuda(), there) < 1e-8


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("build", [small_vit, small_swin, small_conv])
def test_data_on_cuda(build: Callable[..., nn.Module], scope: str) -> None:
    """Scores, bases and the re-fit are worked out where the model is, or brought to where they meet."""
    model = build().double().cuda()
    data = [images(16).double().cuda() for _ in range(3)]
    pruned = fxprune.prune(model, 0.5, data=data, scope=scope, importance_options={"progress": False})
    assert fxprune.verify(model, pruned) < 1e-8


# ---------------------------------------------------------------- a normal module: image size


@pytest.mark.slow
def test_the_image_size_stays_dynamic_where_the_model_allows_it() -> None:
    model = randomise(timm.create_model("pvt_v2_b0").eval())
    x = torch.randn(2, 3, 288, 352)

    whole = fxprune.prune(model, 0.0)
    assert_same(run(whole, x), run(model, x))

    pruned = fxprune.prune(model, 0.5)
    assert run(pruned, x).shape == (2, 1000)
    assert math.isfinite(run(pruned, x).sum().item())
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8


class WithState(nn.Sequential):
    """What can't be copied, and an output that is no tensor."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"scores": super().forward(x), "count": x.shape[0], "name": "scores", "none": None}


def test_a_model_may_hold_a_lock_and_return_numbers(capture: str) -> None:
    model, x = randomise(WithState()), torch.randn(3, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert pruned.get_submodule("0").weight.shape == (8, 6)
    assert fxprune.verify(model, pruned) < 1e-8
    scores = pruned(x).pop("scores")
    assert scores.shape == (3, 4)
    assert pruned(x) == {"scores": ANY, "count": 3, "name": "scores", "none": None}
