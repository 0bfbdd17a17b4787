"""Measure what is left of a ViT's accuracy right after pruning, without training: selection, re-fit, bases.

    python examples/bench_subspaces.py --photos FOLDER --weights vit_tiny_patch16_224.safetensors

The folder holds photos named NNNN_anything.jpg, NNNN the index of the ImageNet class.  Photos at even
positions (of the sorted list) calibrate, those at odd ones are counted; nothing is trained, and no label of a
calibration photo is looked at, but by Torch-Pruning's Taylor criterion, which needs them.  One row a setting,
one column a way; figures are top-1 and the KL divergence from the dense model, both on the odd photos, and
are kept in --cache, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxprune

QK = "blocks.*.attn.qkv.head_dim"  # queries and keys, where values keep a width of their own


def only(ratios: dict[str, float]) -> dict[str, Any]:
    """Ask for some groups alone."""
    return {"ratio": 0.0, "ratios": {**ratios, "embed": 0.0}, "attention": "head_dim", "split_qkv": True}


# name -> (what prune is asked for, by the ratio), ratios
ROWS: dict[str, tuple[Callable[[float], dict[str, Any]], tuple[float, ...]]] = {
    "inner dims": (lambda r: {"ratio": r, "ratios": {"embed": 0.0}}, (0.1, 0.25, 0.5)),
    "FFN": (lambda r: {"ratio": 0.0, "ratios": {"blocks.*.mlp": r, "embed": 0.0}}, (0.25, 0.5)),
    "q/k": (lambda r: only({QK: r}), (0.25, 0.5)),
    "FFN and q/k": (lambda r: only({"blocks.*.mlp": r, QK: r}), (0.5,)),
    "residual width": (lambda r: {"ratio": 0.0, "ratios": {"embed": r}}, (0.1, 0.25)),
    "everything": (lambda r: {"ratio": r}, (0.1, 0.25)),
    "MACs, global": (
        lambda r: {"ratio": r, "target": "macs", "scope": "global"},
        (0.1, 0.2, 0.3, 0.5),
    ),
}
PEER = "Torch-Pruning"
GLOBAL_STEPS = 50  # in which Torch-Pruning would remove 95 %; it stops where the MACs are gone
COLUMNS: dict[str, dict[str, Any]] = {
    "selection": {"basis": "given", "refit": False},
    "re-fit": {"basis": "given", "refit": True},
    "basis": {"basis": "principal", "refit": False},
    "both": {"basis": "principal", "refit": True},
}


def main() -> None:
    """Fill the table, a figure at a time, and print it."""
    options = arguments()
    if options.photos is None or options.weights is None:
        print("nothing to measure: give --photos FOLDER and --weights FILE.safetensors")
        return
    model = dense_model(options.weights)
    calibration, labels, odd, classes = photos(options.photos, options.calibrate)
    dense = log_probabilities(model, odd)
    judge = partial(judged, dense=dense, odd=odd, classes=classes)
    cache = Cache(options.cache, f"{options.weights}, {options.photos}, {options.calibrate}")
    figures = {"dense": cache("dense", lambda: judge(model))}
    print(f"dense {figures['dense']['top1']:.1f}", flush=True)
    for row, (asked, ratios) in ROWS.items():
        for ratio in ratios:
            for column in (*COLUMNS, PEER):
                key = f"{row} {ratio:.0%}, {column}"
                if options.only and not any(word in key for word in options.only):
                    continue
                if column == PEER:
                    measure = partial(peer_figures, options.weights, calibration, labels, judge, row, ratio)
                else:
                    how = {**asked(ratio), **COLUMNS[column]}
                    measure = partial(pruned_figures, model, calibration, judge, **how)
                found = cache(key, measure)
                print(
                    f"{key:44s} top-1 {found['top1']:5.1f}   KL {found['kl']:6.3f}   "
                    f"MACs {found['macs']:.2f}   {found['seconds']:.0f} s",
                    flush=True,
                )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="a folder of NNNN_*.jpg")
    parser.add_argument("--weights", type=Path, help="of timm's vit_tiny_patch16_224")
    parser.add_argument("--calibrate", type=int, default=250, help="calibration photos (default 250)")
    parser.add_argument("--cache", type=Path, default=Path("bench_subspaces.json"))
    parser.add_argument("--only", nargs="*", help="rows and columns whose name holds one of these")
    return parser.parse_args()


def dense_model(weights: Path) -> nn.Module:
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("vit_tiny_patch16_224")
    model.load_state_dict(load_file(weights))
    return model.eval()


def photos(folder: Path, count: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Return `count` even-position photos and their classes, and all odd ones, in batches, and theirs."""
    files = sorted(folder.glob("*.jpg"))
    even, odd = files[0::2], files[1::2]
    even = [even[i * len(even) // count] for i in range(min(count, len(even)))]
    classes = [torch.tensor([int(f.name.split("_")[0]) for f in part]) for part in (even, odd)]
    calibration = batched(even)
    return calibration, list(classes[0].split(len(calibration[0]))), batched(odd), classes[1]


def batched(files: list[Path], size: int = 25) -> list[Tensor]:
    from PIL import Image
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(248, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = [prepare(Image.open(file).convert("RGB")) for file in files]
    return list(torch.stack(images).split(size))


def log_probabilities(model: nn.Module, images: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch).log_softmax(-1) for batch in images])


def judged(model: nn.Module, dense: Tensor, odd: list[Tensor], classes: Tensor) -> dict[str, float]:
    said = log_probabilities(model, odd)
    kl = (dense.exp() * (dense - said)).sum(-1).mean()
    return {"top1": 100 * float((said.argmax(-1) == classes).double().mean()), "kl": float(kl)}


Judge = Callable[[nn.Module], dict[str, float]]


def pruned_figures(model: nn.Module, calibration: list[Tensor], judge: Judge, **how: Any) -> dict[str, float]:
    """Prune, and judge; with the MACs that are left and the seconds that pruning took."""
    start = time.perf_counter()
    pruned = fxprune.prune(model, data=calibration, importance_options={"progress": False}, **how)
    seconds = time.perf_counter() - start
    before, after = fxprune.report(model, pruned, batch=1).macs
    return {**judge(pruned), "macs": after / before, "seconds": seconds}


def peer_figures(
    weights: Path, calibration: list[Tensor], labels: list[Tensor], judge: Judge, row: str, ratio: float
) -> dict[str, float]:
    """Judge Torch-Pruning's Taylor criterion, by its own recipe for timm's ViTs; nan for rows it lacks."""
    import torch_pruning as tp
    from torch_pruning_vit import restore_heads, vit_pruner

    if row not in ("inner dims", "everything", "MACs, global"):
        return dict.fromkeys(("top1", "kl", "macs", "seconds"), float("nan"))
    start = time.perf_counter()
    model, image = dense_model(weights), torch.zeros(1, 3, 224, 224)
    whole = tp.utils.count_ops_and_params(model, image)[0]
    pruner = vit_pruner(
        model,
        image,
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=row == "MACs, global",
        pruning_ratio=0.95 if row == "MACs, global" else ratio,
        iterative_steps=GLOBAL_STEPS if row == "MACs, global" else 1,
        ignored_layers=[model.head, *([model.patch_embed] if row == "inner dims" else [])],
        prune_num_heads=False,
        prune_head_dims=True,
    )
    while True:
        model.zero_grad()
        for images, classes in zip(calibration, labels, strict=True):
            nn.functional.cross_entropy(model(images), classes, reduction="sum").backward()
        pruner.step()
        restore_heads(model, pruner)
        reached = tp.utils.count_ops_and_params(model, image)[0] / whole
        if row != "MACs, global" or reached <= 1 - ratio:
            break
    return {**judge(model), "macs": reached, "seconds": time.perf_counter() - start}


class Cache:
    """Figures that were measured before, by name, in a JSON file."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __call__(self, key: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        key = f"{self.name}: {key}"
        if key not in known:
            found = measure()
            known = json.loads(self.path.read_text()) if self.path.exists() else {}
            known[key] = found
            self.path.write_text(json.dumps(known, indent=1))
        return known[key]


if __name__ == "__main__":
    main()
