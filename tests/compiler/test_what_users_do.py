"""What users do with a model, dense beside pruned: what works with one works with the other, and gives alike.

Every cell is one call.  Where the dense model does not take it, nothing is asked of the pruned one.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import images, randomise, small_hf_vit, small_swin, small_torchvision_vit, small_vit
from torch import Tensor, nn

import fxprune


def small_pvt() -> nn.Module:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    usual: dict[str, Any] = {
        "depths": (1, 1, 1, 1),
        "embed_dims": (16, 32, 40, 64),
        "num_heads": (1, 2, 5, 8),
    }
    return randomise(PyramidVisionTransformerV2(num_classes=10, mlp_ratios=(4,) * 4, **usual).eval())


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (small_vit, 32),
    "swin": (small_swin, 32),
    "pvt": (small_pvt, 64),
    "hf_vit": (small_hf_vit, 32),
    "torchvision_vit": (small_torchvision_vit, 224),
}


def logits(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def steps(model: nn.Module, x: Tensor) -> Any:
    """The user's own training loop."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        loss = nn.functional.cross_entropy(logits(model(x)), torch.zeros(len(x), dtype=torch.long))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return bool(loss.isfinite())


def blocks_of(model: nn.Module) -> Any:
    for path in ("blocks", "layers", "stages", "vit.layers", "vit.encoder.layer", "encoder.layers"):
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise AttributeError("no blocks")


def hooked(model: nn.Module, x: Tensor) -> Any:
    seen: list[Any] = []
    blocks_of(model)[0].register_forward_hook(lambda m, args, out: seen.append(out))
    model(x)
    return seen


def called_alone(model: nn.Module, x: Tensor) -> Any:
    """The last block, called by itself on what goes into it."""
    seen: list[Any] = []
    block = blocks_of(model)[-1]
    with block.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    ):
        model(x)
    args, kwargs = seen[0]
    return block(*args, **kwargs)


def seen_by_gradients(model: nn.Module, x: Tensor) -> Any:
    """Grad-CAM: the gradient of a class by what a block gives."""
    seen: list[Tensor] = []
    block = blocks_of(model)[-1]
    block.register_forward_hook(lambda m, args, out: seen.append(out if isinstance(out, Tensor) else out[0]))
    (gradient,) = torch.autograd.grad(logits(model(x))[:, 1].sum(), seen)
    return gradient, bool(gradient.abs().sum() > 0)


def attention_maps(model: nn.Module, x: Tensor) -> Any:
    """What goes into the dropout of attentions, where they do not leave it to torch; and what it comes to."""
    seen: list[Any] = []
    before = logits(model(x))
    for name, module in model.named_modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if name.endswith("attn_drop"):
            module.register_forward_hook(
                lambda m, args, out: seen.append((out.sum(-1) - 1).abs().max() < 1e-4)
            )
    close = torch.allclose(logits(model(x)), before, rtol=1e-4, atol=1e-5)
    return close, seen[0] and seen  # an IndexError where there is none: not a use of this model


def by_blocks(model: nn.Module) -> list[nn.Module]:
    return [*blocks_of(model)]


def checkpointed_by_blocks(model: nn.Module, x: Tensor) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    blocks = by_blocks(model)
    apply_activation_checkpointing(model, check_fn=lambda module: any(module is b for b in blocks))
    return steps(model, x)


def sharded_by_blocks(model: nn.Module, x: Tensor) -> Any:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            mesh = dist.init_device_mesh("cpu", (1,))
            for block in by_blocks(model):
                fully_shard(block, mesh=mesh)
            return steps(fully_shard(model, mesh=mesh), x)
        finally:
            dist.destroy_process_group()


def accelerated(model: nn.Module, x: Tensor) -> Any:
    from accelerate import Accelerator

    return steps(Accelerator(cpu=True).prepare(model), x)


def checkpointed(model: Any, x: Tensor) -> Any:
    (
        model.set_grad_checkpointing
        if hasattr(model, "blocks") or hasattr(model, "set_grad_checkpointing")
        else model.gradient_checkpointing_enable
    )()
    return steps(model, x)


def averaged(model: nn.Module, x: Tensor) -> Any:
    ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    ema.update_parameters(model)
    return ema(x)


def timm_ema(model: nn.Module, x: Tensor) -> Any:
    from timm.utils import ModelEmaV3

    ema = ModelEmaV3(model, decay=0.9)
    ema.update(model)
    return ema.module(x)


def layer_decay(model: nn.Module, x: Tensor) -> Any:
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(model, layer_decay=0.7)
    return [(round(g["lr_scale"], 6), g["weight_decay"], len(g["params"])) for g in groups]


def timm_optimiser(model: nn.Module, x: Tensor) -> Any:
    from timm.optim import create_optimizer_v2

    groups = create_optimizer_v2(model, opt="adamw", weight_decay=0.05).param_groups
    return [(g["weight_decay"], len(g["params"])) for g in groups]


def timm_hub(model: Any, x: Tensor) -> Any:
    from timm.models import save_for_hf

    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, model_config={"num_classes": 10})
        return sorted(p.name for p in Path(folder).iterdir())


def data_config(model: Any, x: Tensor) -> Any:
    from timm.data import resolve_data_config

    _ = model.pretrained_cfg
    found = resolve_data_config(model=model)
    return sorted(map(str, found.items()))


def library_folder(model: Any, x: Tensor) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder)
        same = logits(again.eval()(x)), logits(model.eval()(x))
        return torch.allclose(*same, rtol=1e-4, atol=1e-5), type(again).__name__


def trainer(model: Any, x: Tensor) -> Any:
    from transformers import Trainer, TrainingArguments

    _ = model.config
    rows = [{"pixel_values": image, "labels": 1} for image in x]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
        Trainer(model=model, args=options, train_dataset=rows).train()
    return True


def pipeline(model: Any, x: Tensor) -> Any:
    from PIL import Image
    from transformers import ViTImageProcessorPil
    from transformers import pipeline as made

    _ = model.config
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    classify = made("image-classification", model=model, image_processor=processor, device="cpu")
    return sorted(found["label"] for found in classify(Image.new("RGB", (40, 40)), top_k=3)) != []


def detector(model: Any, x: Tensor) -> Any:
    """A torchvision detector with the model's features for its backbone."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model
            self.out_channels = model.forward_intermediates(x, intermediates_only=True)[-1].shape[1]

        def forward(self, x: Tensor) -> Tensor:
            return self.body.forward_intermediates(x, intermediates_only=True)[-1]

    size = x.shape[-1]
    anchors = AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
    network = FasterRCNN(
        Features(),
        3,
        rpn_anchor_generator=anchors,
        min_size=size,
        max_size=size,
        fixed_size=(size, size),
        box_roi_pool=__import__("torchvision").ops.MultiScaleRoIAlign(["0"], 7, 2),
    )
    target = {"boxes": torch.tensor([[2.0, 2.0, 12.0, 12.0]]), "labels": torch.tensor([1])}
    losses = network.train()([*x], [target] * len(x))
    sum(losses.values()).backward()
    return sorted(losses), sorted(network.eval()([*x])[0])


def distributed(model: nn.Module, x: Tensor) -> Any:
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            return steps(nn.parallel.DistributedDataParallel(model, find_unused_parameters=True), x)
        finally:
            dist.destroy_process_group()


def from_file(model: nn.Module, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return str(copy.deepcopy(model).load_state_dict(torch.load(file)))


def resized(model: Any, x: Tensor) -> Any:
    model.set_input_size((64, 64))
    return model(images(2, 64))


def reset(model: Any, x: Tensor) -> Any:
    model.reset_classifier(7)
    return model(x).shape[-1], steps(model, x)


def compiled(model: nn.Module, x: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager")(x)


def of_hugging_face(**options: Any) -> Callable[[Any, Tensor], Any]:
    return lambda m, x: (m.config, m(x, **options))[1]


USES: dict[str, Callable[[Any, Tensor], Any]] = {
    "call": lambda m, x: m(x),
    "one image": lambda m, x: m(x[:1]),
    "training loop": steps,
    "hook on a block": hooked,
    "a block alone": called_alone,
    "Grad-CAM": seen_by_gradients,
    "attention maps": attention_maps,
    "number of blocks": lambda m, x: len(blocks_of(m)),
    "slice of blocks": lambda m, x: len(blocks_of(m)[:1]),
    "freeze": lambda m, x: sum(p.requires_grad_(False).numel() > 0 for p in m.parameters()),
    "names": lambda m, x: [*m.state_dict()],
    "modules": lambda m, x: [(n, type(c).__name__) for n, c in m.named_modules()],
    "state dict": from_file,
    "deepcopy": lambda m, x: copy.deepcopy(m)(x),
    "pickle": lambda m, x: pickle.loads(pickle.dumps(m))(x),
    "half": lambda m, x: m.bfloat16()(x.bfloat16()),
    "double": lambda m, x: m.double()(x.double()),
    "compile": compiled,
    "export": lambda m, x: type(torch.export.export(m, (x,)).module()(x)).__name__,
    "trace": lambda m, x: torch.jit.trace(m, x)(x),
    "EMA": averaged,
    "timm's EMA": timm_ema,
    "DDP": distributed,
    "FSDP2 by block": sharded_by_blocks,
    "Accelerate": accelerated,
    "checkpointing": checkpointed,
    "checkpointing by block": checkpointed_by_blocks,
    "print": lambda m, x: type(m).__name__,
    # timm
    "forward_features": lambda m, x: m.forward_features(x),
    "forward_head": lambda m, x: m.forward_head(m.forward_features(x)),
    "forward_intermediates": lambda m, x: m.forward_intermediates(x, intermediates_only=True),
    "get_intermediate_layers": lambda m, x: m.get_intermediate_layers(x, n=1),
    "get_classifier": lambda m, x: type(m.get_classifier()).__name__,
    "reset_classifier": reset,
    "num_features": lambda m, x: (
        m.num_features == m.forward_head(m.forward_features(x), pre_logits=True).shape[-1]
    ),
    "feature_info": lambda m, x: [
        info["num_chs"] == t.shape[1]
        for info, t in zip(m.feature_info, m.forward_intermediates(x, intermediates_only=True), strict=False)
    ],
    "set_input_size": resized,
    "layer decay": layer_decay,
    "no_weight_decay": lambda m, x: sorted(m.no_weight_decay()),
    "group_matcher": lambda m, x: sorted(m.group_matcher()),
    "optimiser": timm_optimiser,
    "pretrained_cfg": data_config,
    "hub": timm_hub,
    "detector": detector,
    # Hugging Face
    "labels": lambda m, x: m(x, labels=torch.tensor([1] * len(x))).loss,
    "hidden states": of_hugging_face(output_hidden_states=True),
    "attentions": of_hugging_face(output_attentions=True),
    "tuple": of_hugging_face(return_dict=False),
    "other size": lambda m, x: (m.config, m(images(2, 48), interpolate_pos_encoding=True))[1],
    "device": lambda m, x: (str(m.device), str(m.dtype)),
    "embeddings": lambda m, x: type(m.get_input_embeddings()).__name__,
    "number of parameters": lambda m, x: m.num_parameters() == sum(p.numel() for p in m.parameters()),
    "save_pretrained": library_folder,
    "Trainer": trainer,
    "pipeline": pipeline,
    "label names": lambda m, x: m.config.id2label[3],
}


def kind(value: Any) -> Any:
    """What a result is, less the numbers in it and the widths that may shrink."""
    if isinstance(value, Tensor):
        return "tensor", value.ndim, value.dtype, value.requires_grad, bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return type(value).__name__, {k: kind(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [kind(v) for v in value]
    return value if isinstance(value, (bool, int, str, float, type(None))) else type(value).__name__


def outcome(model: nn.Module, use: Callable[[Any, Tensor], Any], x: Tensor) -> Any:
    return kind(use(copy.deepcopy(model), x))


@functools.cache
def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, and a smaller one of its class; no use changes either."""
    build, size = MODELS[name]
    model, x = build(), images(2, size)
    return model, fxprune.prune(model, 0.5, example_inputs=x, form="module"), x


def cells() -> Iterator[Any]:
    """Each use of each model; tracing the code again takes long for some: others stand for them."""
    for name, use in itertools.product(MODELS, USES):
        long = name in ("swin", "pvt") and use in ("compile", "export", "trace")
        yield pytest.param(name, use, marks=[pytest.mark.slow] if long else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "use"), [*cells()])
def test_what_works_dense_works_pruned(name: str, use: str) -> None:
    model, pruned, x = pair(name)
    try:
        wanted = outcome(model, USES[use], x)
    except Exception as error:  # not a use of this model
        pytest.skip(f"{type(model).__name__} does not take {use}: {type(error).__name__}")
    assert outcome(pruned, USES[use], x) == wanted
