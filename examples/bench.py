"""Measure fxprune against its goals and against Torch-Pruning, as ratios.

Ratios travel between machines, seconds do not. Both sides of a ratio run in one process and take
turns; a ratio is the median over the rounds, its quartiles stand in brackets. Nothing here passes
or fails: each figure stands beside its goal. Everything takes about ten minutes on one core.
"""

import argparse
import gc
import multiprocessing
import os
import re
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import timm
import torch
import torch_pruning as tp
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import spearmanr
from timm.data import create_transform, resolve_data_config
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch_pruning_vit import restore_heads, vit_pruner

import fxprune
from fxprune.choose.importance.exact import kl_exact
from fxprune.choose.importance.kl import kl
from fxprune.choose.importance.score import magnitude

# More threads wait for each other on a shared machine, and the medians stop meaning much.
THREADS = 1
Row = tuple[str, str, str, str, str]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "torch-pruning"))
    print(f"{versions}; {THREADS} thread, processor time, medians of {options.rounds} rounds")
    for part in options.only:
        PARTS[part](options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--rounds", type=int, default=5, help="of everything timed (default: 5)")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("FXPRUNE_DATA"),
        help="folder with vit_tiny_patch16_224.safetensors and imagenet-sample/<class>_*.jpg "
        "(default: the environment variable FXPRUNE_DATA)",
    )
    parser.add_argument("--photos", type=int, default=128, help="for the importance (default: 128)")
    parser.add_argument("--channels", type=int, default=32, help="measured a group (default: 32)")
    return parser.parse_args()


def speed(options: argparse.Namespace) -> None:
    """How long does a prune take, and how much memory beside the model?"""

    def ours() -> float:
        return seconds(fxprune.prune, deit("base"))

    def peers() -> float:
        return seconds(torch_pruning, deit("base"))

    times = take_turns([ours, peers], options.rounds)
    extra = [in_fresh_process(peak_extra_mib) for _ in range(options.rounds)]
    model = deit("base")
    pruned, peer = fxprune.prune(model), torch_pruning(deit("base"))
    needed = mib(*pruned.parameters(), *pruned.buffers()) + max(map(mib, model.parameters()))
    print_table(
        "Speed: deit_base_patch16_224, eager model to pruned model at ratio 0.5",
        "Time against Torch-Pruning with its timm recipe, both removing whole heads; making the model "
        "is not timed. Memory: how far the peak resident size of the process (tensors, NumPy, Python "
        "objects) rises above its size before the prune, each round in a fresh process that has only "
        "pruned a tiny ViT; against the size of the result plus the original's largest weight.",
        [
            row("time of one prune", *times, "<= 0.33", "{:.2f} s"),
            row("peak extra memory", extra, [needed] * len(extra), "<= 1.30", "{:.0f} MiB"),
            row("parameters left", [millions(pruned)], [millions(peer)], "= 1.00", "{:.2f} M"),
        ],
    )


def scaling(options: argparse.Namespace) -> None:
    """Does twice the depth take twice the time?"""
    depths = (12, 24, 48, 96)

    def prune_at(depth: int) -> Callable[[], float]:
        return lambda: seconds(fxprune.prune, deit("tiny", depth=depth))

    times = take_turns([prune_at(depth) for depth in depths], options.rounds)
    rounds = zip(*times, strict=True)
    slopes = [np.polyfit(np.log(depths), np.log(r), deg=1)[0].item() for r in rounds]
    goals = ["-", *(f"<= {(depth / depths[0]) ** 1.1:.2f}" for depth in depths[1:])]
    print_table(
        "Scaling: timm's VisionTransformer, embed_dim 192, 3 heads, ratio 0.5",
        "Time of one prune against that at depth 12. The exponent is the slope of log time over log "
        "depth, fitted by least squares in each round.",
        [
            *(
                row(f"depth {depth}", t, times[0], goal, "{:.2f} s")
                for depth, t, goal in zip(depths, times, goals, strict=True)
            ),
            row("exponent", slopes, [1.0] * len(slopes), "<= 1.10", "{:.2f}"),
        ],
    )


def latency(options: argparse.Namespace) -> None:
    """Is the pruned model as fast as one that was never bigger?"""
    pruned = fxprune.prune(deit("base"))
    models = [pruned, hand_built_like(pruned), fused(torch_pruning(deit("base")))]
    rows = []
    for batch, rounds in ((1, 8 * options.rounds), (16, 2 * options.rounds)):
        images = torch.randn(batch, 3, 224, 224)
        own, hand_built, peer = time_forwards(models, images, rounds)
        what = f"batch {batch}, against"
        rows.append(row(f"{what} hand-built", own, hand_built, "<= 1.03", "{:.3f} s"))
        rows.append(row(f"{what} peer", own, peer, "<= 1.00", "{:.3f} s"))
    print_table(
        "Latency: deit_base_patch16_224 pruned at ratio 0.5",
        "float32, eval mode, no_grad. Hand-built: timm's own VisionTransformer of the same sizes, with "
        "the pruned weights loaded. Peer: Torch-Pruning's result with fused attention switched back "
        "on, its fastest correct form. Eight times the rounds at batch 1, twice at batch 16.",
        rows,
    )


def accuracy(options: argparse.Namespace) -> None:
    """What do real weights still know right after pruning?"""
    missing = what_is_missing(options.data)
    if missing:
        print(f"\n## Accuracy: skipped\n\n{missing}")
        return
    dense = real_vit_tiny(options.data)
    pruned = fxprune.prune(dense, ratio=0.25)
    error = float(fxprune.verify(dense, pruned))
    peer = torch_pruning(real_vit_tiny(options.data), ratio=0.25, whole_heads=False)
    photos, labels = evaluation_photos(options.data, dense)
    before, after, peers = (top1(model, photos, labels) for model in (dense, pruned, peer))
    sizes = [[millions(model)] for model in (pruned, dense, peer)]
    print_table(
        "Accuracy: ImageNet's vit_tiny_patch16_224 at ratio 0.25, no fine-tuning",
        f"Top-1 on {len(labels)} sample photos, those at odd positions in sorted order; no other photo "
        "is used. They may be training images: compare, never quote as ImageNet accuracy. Both sides "
        "prune every dimension by magnitude. The certificate is the error against the masked original.",
        [
            row("top-1, against dense", [after], [before], "-", "{:.1%}"),
            row("top-1, against peer", [after], [peers], ">= 1.00", "{:.1%}"),
            row("parameters, against dense", sizes[0], sizes[1], "-", "{:.2f} M"),
            row("parameters, against peer", sizes[0], sizes[2], "-", "{:.2f} M"),
            row("certificate", [error], [1e-8], "<= 1.00", "{:.1e}"),
        ],
    )


def importance(options: argparse.Namespace) -> None:
    """Does the one-pass estimate rank channels as the exact divergence does, and what does it cost?"""
    missing = what_is_missing(options.data)
    if missing:
        print(f"\n## Importance: skipped\n\n{missing}")
        return
    model = real_vit_tiny(options.data)
    photos, _ = evaluation_photos(options.data, model)
    batches = list(photos[: options.photos].split(16))
    analysis = fxprune.analyze(model)
    groups = [group for group in analysis.prunable if group.role in ("embed", "hidden", "head_dim")]
    fisher, fisher_time = timed(kl, analysis, groups, batches, progress=False)
    sizes = magnitude(analysis, groups)
    sampled = [g for g in groups if g.role == "embed" or re.search(r"\.(0|2|5|8|11)\.", g.name)]
    chosen = {g: spread(sizes[g].size, options.channels) for g in sampled}
    exact, exact_time = timed(kl_exact, analysis, sampled, batches, elements=chosen, progress=False)
    every = sum(sizes[g].size for g in groups) / sum(map(len, chosen.values()))

    def agreement(scores: Any, group: Any) -> float:
        flat = (s[group].reshape(-1)[chosen[group]] for s in (scores, exact))
        return spearmanr(*flat).statistic

    ours, theirs = ([agreement(scores, group) for group in sampled] for scores in (fisher, sizes))
    rows = [row(g.name, [a], [b], "-", "{:.2f}") for g, a, b in zip(sampled, ours, theirs, strict=True)]
    rows += [
        row("median", [median(ours)], [median(theirs)], "-", "{:.2f}"),
        row("median, against the goal", [median(ours)], [0.9], ">= 1.00", "{:.2f}"),
        row("worst, against the goal", [min(ours)], [0.8], ">= 1.00", "{:.2f}"),
        row("time, against exact / 500", [fisher_time], [exact_time * every / 500], "<= 1.00", "{:.0f} s"),
    ]
    print_table(
        "Importance: rank correlation with the exact KL divergence, vit_tiny_patch16_224",
        f"One pass of kl on {options.photos} photos against kl-exact on the same photos, for "
        f"{options.channels} channels a group; beside it magnitude's correlation. The exact time is "
        "extrapolated from those channels to all.",
        rows,
    )


PARTS = {
    "speed": speed,
    "scaling": scaling,
    "latency": latency,
    "accuracy": accuracy,
    "importance": importance,
}


def timed(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    """Return what a function returns, and the processor time that it took in seconds."""
    start = time.process_time()
    return function(*args, **options), time.process_time() - start


def spread(size: int, count: int) -> list[int]:
    """Choose `count` of `size` elements at random, in order."""
    return sorted(np.random.default_rng(0).choice(size, min(size, count), replace=False).tolist())


def torch_pruning(model: nn.Module, ratio: float = 0.5, whole_heads: bool = True) -> nn.Module:
    """Prune by magnitude; it changes the model."""
    pruner = vit_pruner(
        model,
        torch.randn(1, 3, 224, 224),
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.head],
        prune_num_heads=whole_heads,
        prune_head_dims=not whole_heads,
        head_pruning_ratio=ratio if whole_heads else 0.0,
    )
    pruner.step()
    restore_heads(model, pruner)
    return model


def fused(model: nn.Module) -> nn.Module:
    """Switch fused attention on: right where whole heads went, since the head dim gives its scale."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = True
    return model


def deit(size: str, **changes: int) -> nn.Module:
    return timm.create_model(f"deit_{size}_patch16_224", **changes).eval()


def hand_built_like(pruned: nn.Module) -> VisionTransformer:
    """Build what one would write to get these sizes; strict loading makes sure that they are the same."""
    weights = pruned.state_dict()
    embed = weights["pos_embed"].shape[-1]
    heads = weights["blocks.0.attn.qkv.weight"].shape[0] // 3 // 64  # of head_dim 64
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    model = VisionTransformer(embed_dim=embed, num_heads=heads, mlp_ratio=hidden / embed).eval()
    model.load_state_dict(weights)
    return model


def real_vit_tiny(data: Path) -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224")
    model.load_state_dict(load_file(data / "vit_tiny_patch16_224.safetensors"))
    return model.eval()


def what_is_missing(data: Path | None) -> str:
    """Say why accuracy can't be measured; an empty string if it can."""
    if data is None:
        return "It needs real weights and photos: give --data DIR or set FXPRUNE_DATA."
    wanted = (data / "vit_tiny_patch16_224.safetensors", data / "imagenet-sample")
    absent = [str(path) for path in wanted if not path.exists()]
    return f"Not there: {', '.join(absent)}." if absent else ""


def evaluation_photos(data: Path, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Load photos [n, 3, height, width], prepared as the model's configuration says, and their classes."""
    files = sorted((data / "imagenet-sample").glob("*.jpg"))[1::2]
    prepare = create_transform(**resolve_data_config({}, model=model))
    photos = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    return photos, torch.tensor([int(file.name.split("_")[0]) for file in files])


@torch.no_grad()
def top1(model: nn.Module, photos: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([model(batch).argmax(dim=1) for batch in photos.split(50)])
    return (predicted == labels).double().mean().item()


def seconds(function: Callable[[Any], Any], argument: Any) -> float:
    """Measure processor time: with one thread the time on the clock, less what other processes took."""
    gc.collect()
    start = time.process_time()
    function(argument)
    return time.process_time() - start


def take_turns(sides: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Time each side once per round, every round from another one on; a first round does not count."""
    times: list[list[float]] = [[] for _ in sides]
    order = deque(range(len(sides)))
    for _ in range(1 + rounds):
        for side in order:
            times[side].append(sides[side]())
        order.rotate()
    return [of_one_side[1:] for of_one_side in times]


@torch.no_grad()
def time_forwards(models: list[nn.Module], images: Tensor, rounds: int) -> list[list[float]]:
    """Time models in turn, once it is checked that the first two compute the same."""
    torch.testing.assert_close(models[0](images), models[1](images), rtol=1e-3, atol=1e-4)
    return take_turns([lambda m=m: seconds(m, images) for m in models], rounds)


def in_fresh_process(function: Callable[[], float]) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function).result()


def peak_extra_mib() -> float:
    """Measure how far this process's peak resident size rises over its size while it prunes (on Linux)."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    torch.set_num_threads(THREADS)
    fxprune.prune(deit("tiny", embed_dim=24, num_heads=2, depth=2))  # imports what is imported late
    model = deit("base")
    gc.collect()
    reset.write_text("5")  # forgets the peak so far
    before = kernel_mib("VmRSS")
    pruned = fxprune.prune(model)
    extra = kernel_mib("VmHWM") - before
    del pruned
    return extra


def kernel_mib(field: str) -> float:
    kib = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib[1]) / 2**10 if kib else float("nan")


def mib(*tensors: Tensor) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def row(what: str, own: list[float], against: list[float], goal: str, unit: str) -> Row:
    """Make a row of both sides' medians, and of the median of each round's ratio with its quartiles."""
    ratios = [a / b if b else float("nan") for a, b in zip(own, against, strict=True)]
    ratio = f"{median(ratios):.2f}".replace("nan", "-")
    if len(ratios) > 1:
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        ratio += f" [{low:.2f}, {high:.2f}]"
    return what, unit.format(median(own)), unit.format(median(against)), ratio, goal


def print_table(title: str, note: str, rows: list[Row]) -> None:
    """Print a table in Markdown that reads well as it stands."""
    header = ("", "measured", "against", "ratio", "goal")
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    print(f"\n## {title}\n\n{note}\n")
    for cells in (header, ["-" * width for width in widths], *rows):
        print("|", " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)), "|")


if __name__ == "__main__":
    main()
