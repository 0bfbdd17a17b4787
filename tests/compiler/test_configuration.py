"""A model of a library that saves configurations comes back from its own, or says that it can't."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import randomise, small_hf_vit, small_vit
from torch import Tensor, nn

import fxprune
from fxprune.errors import FileError
from fxprune.result.pruned_module import record_of

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layers", [1, 4])  # as many layers as heads: only one of them shrinks
def test_its_own_saving_round_trips(layers: int, tmp_path: Path) -> None:
    model = small_hf_vit(num_hidden_layers=layers)
    pruned = fxprune.prune(model, 0.5, example_inputs=IMAGES, form="module").eval()
    assert (pruned.config.hidden_size, pruned.config.num_attention_heads) == (24, 2)
    assert pruned.config.num_hidden_layers == layers and model.config.hidden_size == 48
    pruned.save_pretrained(tmp_path)
    # (from_pretrained itself changes what torch does in the process: other tests would see it)
    loaded = type(model)(type(model.config).from_pretrained(tmp_path)).eval()
    loaded.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.allclose(loaded(IMAGES).logits, pruned(IMAGES).logits, atol=1e-5)


@pytest.mark.slow
def test_sizes_that_it_cannot_say_are_refused(tmp_path: Path) -> None:
    model = small_hf_vit(num_hidden_layers=2)
    widths = {"*layers.0*": 0.25}
    pruned = fxprune.prune(model, 0.5, example_inputs=IMAGES, ratios=widths, form="module")
    assert record_of(pruned).own.is_whole and fxprune.verify(model, pruned, example_inputs=IMAGES) < 1e-8
    with pytest.raises(FileError, match=r"fxprune\.save"):
        pruned.save_pretrained(tmp_path)
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved")
    with pytest.raises(FileError, match=r"fxprune\.save"):
        loaded.save_pretrained(tmp_path)


class Sizes:
    def __init__(self, width: int, heads: int) -> None:
        self.width, self.heads = width, heads


class Attending(nn.Module):
    """A library's kind of model: built of a configuration, with a scale that it holds."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config, self.heads = config, config.heads
        self.scale = (config.width // config.heads) ** -0.5
        self.stem, self.qkv = nn.Linear(6, config.width), nn.Linear(config.width, 3 * config.width)
        self.head = nn.Linear(config.width, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.stem(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(x.transpose(1, 2).flatten(2))

    def save_pretrained(self, folder: Path) -> None:
        torch.save(self.config, folder)


class Nested:
    """A configuration of others, whose constructor writes to one and keeps the other."""

    def __init__(self, sizes: Sizes, names: dict[str, str], hidden: int = 0) -> None:
        self.sizes, self.names, self.hidden = sizes, names, hidden or 4 * sizes.width
        self.sizes.implementation = self.names["implementation"] = None


class AttendingNested(Attending):
    def __init__(self, config: Nested) -> None:
        super().__init__(config.sizes)
        self.config = config
        self.config.sizes.implementation = self.config.names["implementation"] = "fused"


@pytest.mark.parametrize("heads", [1, 2])
def test_what_a_configuration_holds_is_not_its_constructors_to_write_to(heads: int) -> None:
    model = randomise(AttendingNested(Nested(Sizes(16, heads), {})).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 3, 6), form="module")
    assert (pruned.config.sizes.width, pruned.config.hidden, model.config.hidden) == (8, 32, 64)
    for root in (model, pruned):
        assert root.config.sizes.implementation == root.config.names["implementation"] == "fused"


@pytest.mark.slow
def test_a_nested_configuration_of_a_library_keeps_its_attention() -> None:
    from transformers import CLIPConfig, CLIPForImageClassification

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    vision = {"hidden_size": 64, "image_size": 32, "patch_size": 16, **sizes}
    nested = {"vision_config": vision, "text_config": {"hidden_size": 32, **sizes}}
    config = CLIPConfig(**nested, projection_dim=32, num_labels=3)
    model = randomise(CLIPForImageClassification(config).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=IMAGES, form="module")
    for root in (model, pruned):
        assert root.config.vision_config._attn_implementation == "sdpa"
    assert pruned.config.vision_config.hidden_size == 32


@pytest.mark.parametrize(("heads", "attention"), [(1, "auto"), (4, "head_dim")])
def test_a_scale_that_its_class_computes_of_the_head_dim_is_folded(
    heads: int, attention: str, tmp_path: Path
) -> None:
    model, x = randomise(Attending(Sizes(16, heads)).eval()), torch.randn(2, 3, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention=attention, form="module").eval()
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    assert (pruned.config.width, pruned.config.heads, pruned.scale) == (8, heads, (8 // heads) ** -0.5)
    fxprune.save(pruned, tmp_path / "saved", build="tests:Attending")
    rebuilt = Attending(pruned.config).eval()
    rebuilt.load_state_dict(pruned.state_dict())
    applied = fxprune.apply(model, fxprune.plan_of(pruned), example_inputs=x, form="module")
    assert type(applied) is Attending and applied.scale == pruned.scale
    for other in (rebuilt, applied, fxprune.load(tmp_path / "saved", model=model)):
        assert torch.allclose(other(x), pruned(x), atol=1e-5)


def test_on_the_meta_device_no_configuration_is_proved(tmp_path: Path) -> None:
    model = Attending(Sizes(128, 1)).to("meta")
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 3, 6, device="meta"), form="module")
    with pytest.raises(FileError, match="numbers on the meta device"):
        pruned.save_pretrained(tmp_path / "saved")


def test_labels_hidden_states_and_checkpointing_are_the_librarys() -> None:
    pruned = fxprune.prune(small_hf_vit(), 0.5, example_inputs=IMAGES, form="module")
    found = pruned(IMAGES, labels=torch.tensor([1, 2]), output_hidden_states=True)
    assert found.loss.isfinite() and found.hidden_states[0].shape[-1] == 24
    pruned.gradient_checkpointing_enable()
    pruned.train()(IMAGES).logits.sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


@pytest.mark.slow
def test_what_a_constructor_computes_follows_though_no_code_reads_it() -> None:
    from transformers import SwinConfig, SwinForImageClassification

    usual = {"image_size": 32, "patch_size": 2, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
    model = randomise(SwinForImageClassification(SwinConfig(embed_dim=16, num_labels=5, **usual)).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=IMAGES, form="module")
    assert (pruned.config.embed_dim, pruned.classifier.in_features) == (8, 16)
    assert pruned.config.hidden_size == pruned.swin.num_features == 16  # 32 was as many as pixels, and stayed
    assert model.config.hidden_size == model.swin.num_features == 32
    loaded = fxprune.apply(model, fxprune.plan_of(pruned), form="module")
    assert loaded.config.hidden_size == loaded.swin.num_features == 16


@pytest.mark.slow
def test_a_pair_of_an_encoder_and_a_decoder_comes_back_of_its_own_configuration(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    ffn = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40}
    config = BartConfig(vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, **heads, **ffn)
    model = BartForConditionalGeneration(config).eval()
    words = torch.arange(3, 15).reshape(2, 6)
    given = {"input_ids": words, "decoder_input_ids": words[:, :4], "use_cache": False}
    pruned = fxprune.prune(model, 0.5, example_kwargs=given, outputs="logits", form="module")
    assert (pruned.config.d_model, pruned.config.decoder_attention_heads) == (16, 2)
    assert fxprune.verify(model, pruned) < 1e-8
    pruned.save_pretrained(tmp_path)
    loaded = type(model)(type(model.config).from_pretrained(tmp_path)).eval()
    loaded.load_state_dict(pruned.state_dict())
    cached, plain = (pruned.generate(words, max_new_tokens=4, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain) and torch.equal(loaded.generate(words, max_new_tokens=4), plain)


def test_an_images_sides_are_no_widths_though_as_large() -> None:
    model = small_vit(embed_dim=96, num_heads=3)
    model.pretrained_cfg = {"input_size": (3, 96, 96), "pool_size": None}
    pruned = fxprune.prune(model, 0.5, example_inputs=IMAGES, form="module")
    assert pruned.embed_dim == 48 and pruned.pretrained_cfg["input_size"] == (3, 96, 96)
