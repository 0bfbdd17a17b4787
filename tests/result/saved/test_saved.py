"""Saved models: read back as they were, whole or not at all, and nothing run that a file names."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from helpers import (
    assert_same,
    images,
    mlp,
    randomise,
    run,
    small_conv,
    small_hf_vit,
    small_vit,
    tensors_of,
)
from test_families import FAMILIES, TABLE
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import FileError
from fxprune.result.fingerprint import graph_digest, json_digest
from fxprune.result.own_calls import UnevenParts
from fxprune.result.own_code import OwnCode, Spelling
from fxprune.result.own_spelling import Place
from fxprune.result.pruned_module import record_of
from fxprune.result.saved import folder as folders
from fxprune.result.saved import model_specs
from fxprune.result.saved.check import check_rewrite
from fxprune.result.saved.own_data import own_data, own_from
from fxprune.result.saved.recipe import rebuild
from fxprune.result.saved.tensors import assign, named_tensors

VECTORS = torch.randn(3, 6)


def every_tensor(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names, those that no state_dict holds too."""
    parameters = module.named_parameters(remove_duplicate=False)
    return dict([*parameters, *module.named_buffers(remove_duplicate=False)])


def assert_same_model(got: fx.GraphModule, wanted: fx.GraphModule) -> None:
    """The same code, tensors, sharing, modes and plan."""
    assert graph_digest(got) == graph_digest(wanted)
    first, second = every_tensor(got), every_tensor(wanted)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.requires_grad == second[name].requires_grad, name
        assert torch.equal(tensor, second[name]), name
    assert list(got.state_dict()) == list(wanted.state_dict())
    assert shared(first) == shared(second)
    assert [m.training for m in got.modules()] == [m.training for m in wanted.modules()]
    assert str(fxprune.plan_of(got)) == str(fxprune.plan_of(wanted))


def shared(tensors: dict[str, Tensor]) -> set[frozenset[str]]:
    """Which names lead to one tensor."""
    names: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), set()).add(name)
    return set(map(frozenset, names.values()))


def outputs(module: fx.GraphModule) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    example = module.record.example.map(lambda t: torch.randn(t.shape, generator=generator))
    return tensors_of(run(module, *example.args, **example.kwargs))


def there_and_back(pruned: fx.GraphModule, folder: Path, model: Any = None, **options: Any) -> fx.GraphModule:
    with warnings.catch_warnings():
        if model is not None:
            warnings.simplefilter("ignore")  # that load will need the model
        else:
            warnings.simplefilter("error", UserWarning)
        fxprune.save(pruned, folder, **options)
    assert sorted(p.name for p in folder.iterdir()) == ["fxprune.json", "model.safetensors"]
    loaded = fxprune.load(folder, model)
    assert_same_model(loaded, pruned)
    return loaded


# ---------------------------------------------------------------- round trips


def quick(seconds: float) -> list[Any]:
    """The families; those whose analysis takes longer are marked slow."""
    return [
        pytest.param(s, marks=[pytest.mark.slow] if (TABLE[s].seconds or 99) > seconds else [])
        for s in FAMILIES
    ]


@pytest.mark.parametrize("spec", quick(0.35))
def test_every_family(spec: str, tmp_path: Path) -> None:
    pruned = fxprune.prune(randomise(model_specs.build(spec)))
    loaded = there_and_back(pruned, tmp_path / "saved")
    for got, wanted in zip(outputs(loaded), outputs(pruned), strict=True):
        assert torch.equal(got, wanted)
    record = (tmp_path / "saved/fxprune.json").stat().st_size
    assert record < (tmp_path / "saved/model.safetensors").stat().st_size / 100


def test_loaded_weights_lie_as_others_do(tmp_path: Path) -> None:
    """On whole cache lines; a file's own memory is not, and some processors' kernels then round otherwise."""
    loaded = there_and_back(fxprune.prune(randomise(timm.create_model("test_vit2"))), tmp_path)
    assert {t.data_ptr() % 64 for t in loaded.state_dict().values()} == {0}


def other_libraries() -> list[Any]:
    """Hugging Face, torchvision's backbones, vit-pytorch; most of them slow.

    What vit-pytorch builds is saved in one way, by its factory: one in three of its small models.
    """
    rows = [row for spec, row in TABLE.items() if spec.startswith("zoo_models:") and row.passed]
    rows = [row for row in rows if (row.params or 99) < 50]
    small = [row.model for row in rows if (row.seconds or 9) < 0.3 and (row.params or 9) < 3]
    by_factory = [spec for spec in small if spec.startswith("zoo_models:vit_pytorch")]
    quick = {*small} - {*by_factory} | {*by_factory[::3]}
    return [pytest.param(row.model, marks=[] if row.model in quick else [pytest.mark.slow]) for row in rows]


@pytest.mark.parametrize("spec", other_libraries())
def test_every_other_library(spec: str, tmp_path: Path) -> None:
    """What a configuration describes is built from it; for the rest the caller names the factory."""
    pruned = fxprune.prune(randomise(model_specs.build(spec)))
    named = pruned.record.origin["config"] is not None
    there_and_back(pruned, tmp_path, None if named else spec)


@pytest.mark.parametrize(
    "make",
    [
        small_hf_vit,
        lambda: randomise(model_specs.build("torchvision:mobilenet_v3_small")),
        lambda: randomise(timm.create_model("test_vit2", num_classes=7, in_chans=1)),
        lambda: randomise(timm.create_model("test_convnext2", num_classes=0, global_pool="")),
    ],
    ids=["hugging face", "torchvision", "other classes and channels", "features"],
)
def test_how_the_original_is_built_is_found_out(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    channels = next(model.parameters()).new_zeros(2, 1, 160, 160)
    inputs = channels if getattr(model, "num_classes", 0) == 7 else None
    pruned = fxprune.prune(model, 0.5, example_inputs=inputs, outputs="prune")
    loaded = there_and_back(pruned, tmp_path)
    assert fxprune.verify(model, loaded, example_inputs=inputs) < 1e-8


def test_windows_and_masks_that_no_state_dict_holds(tmp_path: Path) -> None:
    model = randomise(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 2, 1, 1), embed_dim=24))
    pruned = fxprune.prune(model)
    constants = every_tensor(pruned).keys() - pruned.state_dict().keys()
    assert constants  # relative positions, and masks of shifted windows
    options = {"depths": [1, 2, 1, 1], "embed_dim": 24}
    loaded = there_and_back(
        pruned, tmp_path, build="timm:swin_tiny_patch4_window7_224", build_options=options
    )
    assert_same(run(loaded, images(1, 224)), run(pruned, images(1, 224)), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_conv().to(dtype)
    pruned = fxprune.prune(model, example_inputs=images().to(dtype))
    there_and_back(pruned, tmp_path / "before", small_conv())
    there_and_back(pruned.float(), tmp_path / "after", small_conv())


def test_modes_and_frozen_weights(tmp_path: Path) -> None:
    pruned = fxprune.prune(small_vit().train(), example_inputs=images())
    pruned.get_submodule("blocks.0.mlp.fc1").eval()
    pruned.get_submodule("patch_embed.proj").requires_grad_(False)
    there_and_back(pruned, tmp_path, small_vit())


def test_counters_and_statistics_of_a_trained_model(tmp_path: Path) -> None:
    pruned = fxprune.prune(small_conv(), example_inputs=images()).train()
    pruned(images())
    loaded = there_and_back(pruned, tmp_path, small_conv())
    assert loaded.state_dict()["stem.1.num_batches_tracked"] == 1


class Tied(nn.Module):
    """One table that reads and writes; a constant that the constructor computes; a whole-number buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 16)
        self.back = nn.Linear(6, 16)
        self.back.weight = self.inner.weight
        self.out = nn.Linear(16, 4)
        self.register_buffer("scales", torch.linspace(1, 2, 16), persistent=False)
        self.register_buffer("order", torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.inner(x) * self.scales).relu() + self.back(x)
        return self.out(hidden)[:, self.order]


def test_tied_weights_and_constants(tmp_path: Path) -> None:
    pruned = fxprune.prune(randomise(Tied()), example_inputs=VECTORS)
    with torch.device("meta"):
        outline = Tied()
    loaded = there_and_back(pruned, tmp_path, outline)
    assert loaded.get_parameter("back.weight") is loaded.get_parameter("inner.weight")
    outline.scales = torch.linspace(1, 2, 16)  # some constructors fill a buffer whatever the device
    loaded = there_and_back(pruned, tmp_path, outline)
    assert loaded.get_parameter("back.weight") is loaded.get_parameter("inner.weight")
    assert outline.scales.device.type == "cpu"
    assert_same(run(loaded, VECTORS), run(pruned, VECTORS), 0)


def test_what_was_loaded_is_saved_again(tmp_path: Path) -> None:
    pruned = fxprune.prune(randomise(timm.create_model("test_convnext")))
    loaded = there_and_back(pruned, tmp_path / "first")
    there_and_back(loaded, tmp_path / "second")


def test_loading_changes_neither_the_model_given_nor_the_random_state(tmp_path: Path) -> None:
    model = small_vit().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.warns(UserWarning, match="need model="):
        fxprune.save(fxprune.prune(small_vit(depth=2), example_inputs=images()), tmp_path)
    torch.manual_seed(3)
    fxprune.load(tmp_path, model)
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert check_rewrite(tmp_path, model).exact
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Picked(nn.Module):
    """Positions to pick are an input: zeros would pick one place again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.head(self.body(x).relu()[:, places])


def test_whole_numbers_of_an_example_are_kept(tmp_path: Path) -> None:
    places = torch.tensor([2, 0, 1])
    pruned = fxprune.prune(Picked().eval(), example_inputs=(torch.randn(2, 3, 6), places))
    with pytest.warns(UserWarning, match="need model="):
        fxprune.save(pruned, tmp_path)
    loaded = fxprune.load(tmp_path, Picked())
    assert torch.equal(record_of(loaded).example.args[1], record_of(pruned).example.args[1])
    assert torch.equal(record_of(loaded).example.args[1], places)


def test_what_a_width_makes_in_code_is_read_as_it_was_before_it_was_written() -> None:
    place = Place("forward", (1, 2), (1, 3), "x.chunk", "", "uneven")
    own = OwnCode(spellings=(Spelling("a", place, 4, UnevenParts(1, (2, 3))),))
    assert own_from(own_data(own)) == own_from(json.loads(json.dumps(own_data(own)))) == own


# ---------------------------------------------------------------- an original that no file can build


def test_an_unknown_original_is_asked_for(tmp_path: Path) -> None:
    pruned = fxprune.prune(mlp(), example_inputs=VECTORS)
    with pytest.warns(UserWarning, match=r"Sequential.*model=.*build="):
        fxprune.save(pruned, tmp_path)
    with pytest.raises(FileError, match=r"Sequential.*model="):
        fxprune.load(tmp_path)
    assert_same_model(fxprune.load(tmp_path, mlp()), pruned)


def test_code_that_a_file_names_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spoils.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    fxprune.save(fxprune.prune(mlp(), example_inputs=VECTORS), tmp_path / "saved", build="spoils:make")
    with pytest.raises(FileError, match=r"spoils:make.*not run.*model="):
        fxprune.load(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()


def test_a_spec_that_the_caller_names_is_built(tmp_path: Path) -> None:
    pruned = fxprune.prune(mlp(), example_inputs=VECTORS)
    fxprune.save(pruned, tmp_path, build="helpers:mlp")
    assert_same_model(fxprune.load(tmp_path, "helpers:mlp"), pruned)


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("timm:test_vit", {"pretrained": True}, "pretrained"),
        ("timm:test_vit", {"checkpoint_path": "x.pth"}, "checkpoint_path"),
        ("timm:test_vit", {"cache_dir": "x"}, "cache_dir"),
        ("timm:test_vit", {"norm_layer": "https://example.com/x"}, "example"),
        ("timm:hf-hub:owner/name", {}, "code"),
        ("timm:local-dir:/tmp", {}, "code"),
        ("timm:no_such_model", {}, "no_such_model"),
        ("torchvision:vit_b_16", {"weights": "DEFAULT"}, "weights"),
        ("hf:owner/name", {}, "code"),
        ("hf:no_such_type", {}, "no_such_type"),
        ("os:system", {"command": "true"}, "code"),
    ],
)
def test_a_recipe_that_would_fetch_or_run_something(spec: str, options: Any, says: str) -> None:
    with pytest.raises(FileError, match=says):
        rebuild({"from": spec, "options": options}, "meta")


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("ViTModel", {"model_type": "no_such_type"}, "no_such_type"),
        ("pipeline", {"model_type": "vit"}, "pipeline"),
        ("AutoModel", {"model_type": "vit"}, "AutoModel"),
        ("ViTModel", {"model_type": "vit", "kernel": "hf-hub:owner/name"}, "hf-hub"),
    ],
)
def test_a_configuration_that_would_fetch_or_run_something(
    kind: str, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(FileError, match=says):
        rebuild({"from": f"hf:{kind}", "options": {}, "config": config}, "meta")


def test_kernels_of_a_hub_are_no_attention_of_a_file() -> None:
    config = {"model_type": "vit", "attn_implementation": "owner/kernel", "auto_map": {"x": "y"}}
    model = rebuild({"from": "hf:ViTModel", "config": {**config, "attention": "owner/kernel"}}, "meta")
    assert "/" not in str(model.config._attn_implementation)


def test_a_recipe_for_another_model_is_refused_when_saving(tmp_path: Path) -> None:
    pruned = fxprune.prune(timm.create_model("test_convnext"))
    with pytest.raises(FileError, match=r"test_convnext2.*other names or shapes"):
        fxprune.save(pruned, tmp_path / "saved", build="timm:test_convnext2")
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
def test_options_that_change_the_function_and_not_the_weights(tmp_path: Path) -> None:
    model = timm.create_model("test_convnext", conv_mlp=False, norm_eps=0.5)
    pruned = fxprune.prune(randomise(model))
    with pytest.warns(UserWarning, match="computes something else"):
        fxprune.save(pruned, tmp_path)
    with pytest.raises(FileError, match="computes something else"):
        fxprune.load(tmp_path, timm.create_model("test_convnext"))
    there_and_back(pruned, tmp_path, build="timm:test_convnext", build_options={"norm_eps": 0.5})


def test_options_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="build="):
        fxprune.save(fxprune.prune(mlp(), example_inputs=VECTORS), tmp_path, build_options={"hidden": 3})


# ---------------------------------------------------------------- damage


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fxprune.save(fxprune.prune(mlp(), example_inputs=VECTORS), tmp_path / "saved", build="helpers:mlp")
    return tmp_path / "saved"


def test_truncated_weights(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"model\.safetensors is truncated.*" + str(len(whole))):
            fxprune.load(saved, mlp())


def test_edited_weights(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"model\.safetensors was changed"):
        fxprune.load(saved, mlp())


def test_weights_of_another_save(saved: Path, tmp_path: Path) -> None:
    other = fxprune.prune(mlp(), 0.25, example_inputs=VECTORS)
    fxprune.save(other, tmp_path / "other", build="helpers:mlp")
    os.replace(tmp_path / "other/model.safetensors", saved / "model.safetensors")
    with pytest.raises(FileError, match=r"model\.safetensors"):
        fxprune.load(saved, mlp())


def test_a_truncated_record(saved: Path) -> None:
    path = saved / "fxprune.json"
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"fxprune\.json"):
            fxprune.load(saved, mlp())


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'{"format": "fxprune-9"}', bytes(range(256))])
def test_a_file_that_is_no_record(saved: Path, content: bytes) -> None:
    (saved / "fxprune.json").write_bytes(content)
    with pytest.raises(FileError, match=r"fxprune\.json"):
        fxprune.load(saved, mlp())


def test_an_edited_record(saved: Path) -> None:
    record = json.loads((saved / "fxprune.json").read_text())
    (group,) = record["plan"]["groups"].values()
    group["kept"] = "qqo=" if group["kept"] != "qqo=" else "VVU="  # as many, but others
    (saved / "fxprune.json").write_text(json.dumps(record))
    with pytest.raises(FileError, match="was edited since it was saved"):
        fxprune.load(saved, mlp())


def test_a_record_that_was_edited_with_care(saved: Path) -> None:
    """Even with a digest that fits, what does not belong together is refused."""
    record = json.loads((saved / "fxprune.json").read_text())
    del record["digest"]
    (group,) = record["plan"]["groups"].values()
    group["kept"] = "wAA="  # two of sixteen
    record["digest"] = json_digest(record)
    (saved / "fxprune.json").write_text(json.dumps(record))
    with pytest.raises(FileError, match="something else"):
        fxprune.load(saved, mlp())


def test_tensors_that_do_not_fit_the_module() -> None:
    module = nn.Linear(2, 3)
    right = named_tensors(module)
    for wrong, says in [
        ({}, "lacks bias, weight"),
        ({**right, "other": torch.ones(1)}, "does not, other"),
        ({**right, "bias": torch.ones(4)}, r"bias is stored as \(4,\), .* leaves \(3,\)"),
    ]:
        with pytest.raises(FileError, match=says):
            assign(module, wrong, set())


@pytest.mark.parametrize("name", ["fxprune.json", "model.safetensors"])
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileError, match=f"holds no {name}"):
        fxprune.load(saved, mlp())


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no folder.*hf-hub:owner/name"):
        fxprune.load(tmp_path / "nothing")


@pytest.mark.parametrize("model", [mlp(hidden=24), nn.Linear(6, 4), small_conv()])
def test_another_model(saved: Path, model: nn.Module) -> None:
    with pytest.raises(FileError, match="not the architecture"):
        fxprune.load(saved, model)


def test_a_model_without_values(tmp_path: Path) -> None:
    with torch.device("meta"):
        outline = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4))
    pruned = fxprune.prune(outline, 0.5, example_inputs=VECTORS.to("meta"), importance="random")
    with pytest.raises(FileError, match="meta"):
        fxprune.save(pruned, tmp_path)


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="can't be written"):
        fxprune.save(fxprune.prune(mlp(), example_inputs=VECTORS), tmp_path / "file", build="helpers:mlp")


# ---------------------------------------------------------------- killed while writing


def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Forty kills at random moments of steady writing; what is there then always fits together."""
    values = [{"value": torch.full((100_000,), float(i))} for i in range(8)]
    folders.write_folder(tmp_path, {"value": 0}, values[0])
    delays = torch.rand(40, generator=torch.Generator().manual_seed(0)).mul_(0.05).tolist()
    found = []
    for delay in delays:
        started, tell = os.pipe()
        writer = os.fork()
        if writer == 0:
            while True:
                for i, tensors in enumerate(values):
                    folders.write_folder(tmp_path, {"value": i}, tensors)
                    os.write(tell, b"!")
        os.read(started, 1)
        time.sleep(delay)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        os.close(started)
        os.close(tell)
        record = folders.read_record(tmp_path)
        tensors = folders.read_tensors(tmp_path, record, "cpu")
        assert torch.equal(tensors["value"], values[record["value"]]["value"])
        found.append(record["value"])
    assert len(set(found)) > 2  # kills came at different times


@pytest.mark.parametrize("step", ["save_file", "write_whole", "replace", "_tidy"])
def test_a_failure_at_each_step(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = ({"value": torch.full((5,), float(i))} for i in range(2))
    folders.write_folder(tmp_path, {"value": 0}, old)

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    place = {"save_file": safetensors.torch, "replace": os}.get(step, folders)
    with monkeypatch.context() as patch:
        patch.setattr(place, step, killed)
        with pytest.raises(KeyboardInterrupt):
            folders.write_folder(tmp_path, {"value": 1}, new)
    record = folders.read_record(tmp_path)
    wanted = new if record["value"] else old
    assert torch.equal(folders.read_tensors(tmp_path, record, "cpu")["value"], wanted["value"])

    folders.write_folder(tmp_path, {"value": 2}, new)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fxprune.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("before", "after"), [("old", "new"), ("old", None), (None, "new"), ("same", "same")]
)
@pytest.mark.parametrize("step", ["save_file", "write_whole", "replace", "settle_images", "unlink", "_tidy"])
def test_a_kill_leaves_images_that_fit_the_record(
    before: str | None, after: str | None, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"value": torch.zeros(5)}
    folders.write_folder(tmp_path, {"value": 0}, tensors, folders.Images(before))

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    place = {"save_file": safetensors.torch, "replace": os, "unlink": Path}.get(step, folders)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(place, step, killed)
        folders.write_folder(tmp_path, {"value": 1}, tensors, folders.Images(after))
    record = folders.read_record(tmp_path)
    folders.settle_images(tmp_path, record)
    found = tmp_path / folders.PREPROCESSOR
    assert (found.read_text() if found.exists() else None) == (after if record["value"] else before)
    found.write_text("edited")
    folders.settle_images(tmp_path, record)
    assert found.read_text() == "edited"


def test_a_kill_between_the_record_and_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one moment at which model.safetensors is the old one, and the record the new one."""
    old, new = ({"value": torch.full((5,), float(i))} for i in range(2))
    folders.write_folder(tmp_path, {"value": 0}, old)
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == "model.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folders.write_folder(tmp_path, {"value": 1}, new)
    record = folders.read_record(tmp_path)
    assert record["value"] == 1
    assert torch.equal(folders.read_tensors(tmp_path, record, "cpu")["value"], new["value"])
    assert torch.equal(safetensors.torch.load_file(tmp_path / "model.safetensors")["value"], old["value"])


# ---------------------------------------------------------------- the hub's layout


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache as huggingface_hub lays it out, read without a network."""
    from huggingface_hub import constants

    pruned = fxprune.prune(randomise(timm.create_model("test_convnext")))
    repository = tmp_path / "models--owner--half"
    snapshot = repository / "snapshots" / ("a" * 40)
    fxprune.save(pruned, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert_same_model(fxprune.load("hf-hub:owner/half"), pruned)
    assert_same_model(fxprune.load(f"hf-hub:owner/half@{'a' * 40}"), pruned)
    with pytest.raises(FileError, match="hf-hub:owner/none"):
        fxprune.load("hf-hub:owner/none")
    with pytest.raises(FileError, match="hf-hub:a/b/c"):
        fxprune.load("hf-hub:a/b/c")
