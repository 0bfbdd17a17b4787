"""Measure what is left of a ViT's accuracy right after pruning, without training: selection, re-fit, bases.

    python examples/bench_subspaces.py --photos FOLDER --weights vit_tiny_patch16_224.safetensors

The folder holds photos named NNNN_anything.jpg, NNNN the index of the ImageNet class.  Photos at even
positions (of the sorted list) calibrate, those at odd ones are counted; nothing is trained, and no label of a
calibration photo is looked at.  One row a setting, one column a way; results are kept in --cache, so that a
run that was interrupted goes on.
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

# name -> (what prune is asked for, by the ratio), ratios
ROWS: dict[str, tuple[Callable[[float], dict[str, Any]], tuple[float, ...]]] = {
    "inner dims": (lambda r: {"ratio": r, "ratios": {"embed": 0.0}}, (0.1, 0.25, 0.5)),
    "FFN": (lambda r: {"ratio": 0.0, "ratios": {"blocks.*.mlp": r, "embed": 0.0}}, (0.25, 0.5)),
    "residual width": (lambda r: {"ratio": 0.0, "ratios": {"embed": r}}, (0.1, 0.25)),
    "everything": (lambda r: {"ratio": r}, (0.1, 0.25)),
    "MACs, global": (
        lambda r: {"ratio": r, "target": "macs", "scope": "global"},
        (0.1, 0.2, 0.3, 0.5),
    ),
}
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
    calibration, odd, classes = photos(options.photos, options.calibrate)
    cache = Cache(options.cache, f"{options.calibrate}")
    figures = {"dense": cache("dense", lambda: accuracy(model, odd, classes))}
    print(f"dense {figures['dense']['top1']:.1f}", flush=True)
    for row, (asked, ratios) in ROWS.items():
        for ratio in ratios:
            for column, how in COLUMNS.items():
                key = f"{row} {ratio:.0%}, {column}"
                if options.only and not any(word in key for word in options.only):
                    continue
                measure = partial(pruned_figures, model, calibration, odd, classes, **{**asked(ratio), **how})
                found = cache(key, measure)
                print(
                    f"{key:44s} top-1 {found['top1']:5.1f}   MACs {found['macs']:.2f}   "
                    f"{found['seconds']:.0f} s",
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


def photos(folder: Path, count: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return `count` even-position photos and all odd ones, in batches, and the classes of these."""
    files = sorted(folder.glob("*.jpg"))
    even, odd = files[0::2], files[1::2]
    even = [even[i * len(even) // count] for i in range(min(count, len(even)))]
    classes = torch.tensor([int(f.name.split("_")[0]) for f in odd])
    return batched(even), batched(odd), classes


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


def accuracy(model: nn.Module, images: list[Tensor], classes: Tensor) -> dict[str, float]:
    with torch.inference_mode():
        said = torch.cat([model(batch).argmax(-1) for batch in images])
    return {"top1": 100 * float((said == classes).double().mean())}


def pruned_figures(
    model: nn.Module, calibration: list[Tensor], odd: list[Tensor], classes: Tensor, **how: Any
) -> dict[str, float]:
    """Prune, and count; with the MACs that are left and the seconds that pruning took."""
    start = time.perf_counter()
    pruned = fxprune.prune(model, data=calibration, importance_options={"progress": False}, **how)
    seconds = time.perf_counter() - start
    before, after = fxprune.report(model, pruned, batch=1).macs
    return {**accuracy(pruned, odd, classes), "macs": after / before, "seconds": seconds}


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
