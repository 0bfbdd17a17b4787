"""Detection with a pruned transformer: mAP before and after, beside the same small detector from scratch.

    python examples/detection/run.py teacher            # the large detector, trained from labels
    python examples/detection/run.py pruned --seed 0    # cut to the small one's shape, distilled
    python examples/detection/run.py scratch --seed 0   # the small one from labels, as long
    python examples/detection/run.py scratch-distilled  # the same with the large one as its teacher
    python examples/detection/run.py scratch-long       # from labels, as long as both together
    python examples/detection/run.py table              # what was run, as CSV

Each command goes on where it was killed; each seed has a large detector of its own.  `all` runs them in
turn.  Needs pip install '.[detection]'.  Images are rendered by code (shapes.py): figures compare these
detectors with one another, and say nothing of photos.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import torch
from detector import LARGE, SMALL, Loss, Maps
from measure import consistency, precision
from safetensors.torch import load_file, save_file
from shapes import Shapes, collate
from torch import nn
from torch.utils.data import DataLoader

import fxprune

STUDENTS = ("pruned", "scratch", "scratch-distilled", "scratch-long")
COLUMNS = ("arm", "parameters", "epochs", "map", "map50", "map_before", "cosine", "place", "cka", "seconds")


def loader(options: argparse.Namespace) -> DataLoader[Any]:
    data = Shapes(options.images)
    return DataLoader(data, options.batch, shuffle=True, drop_last=True, collate_fn=collate)


def train(options: argparse.Namespace, arm: str) -> None:
    """Train one arm, or go on with it, and write down what it came to."""
    name = f"{arm}-seed-{options.seed}"
    folder = options.folder / name
    batches, test = loader(options), Shapes(options.tests, first=10**6)
    torch.manual_seed(options.seed)
    large = Maps(LARGE).eval()
    kept = options.folder / f"teacher-seed-{options.seed}.safetensors"
    if arm != "teacher":
        if not kept.exists():
            raise SystemExit(f"{kept} is missing: run `teacher --seed {options.seed}` first")
        large.load_state_dict(load_file(kept))
    student: nn.Module = large
    if arm != "teacher":
        student = cut(large, batches, options.calibrate) if arm == "pruned" else Maps(SMALL).eval()
    before = precision(student, test)["map"] if arm == "pruned" else None
    alone = arm in ("teacher", "scratch", "scratch-long")
    epochs = {"teacher": options.teacher_epochs, "scratch-long": options.teacher_epochs + options.epochs}
    training = fxprune.Training(
        epochs=epochs.get(arm, options.epochs),
        lr=options.lr,
        warmup=0.5,
        kl=0.0 if alone else options.kl,
        hidden=options.hidden if arm == "pruned" else 0.0,  # a student from scratch has no plan to pair by
        seed=options.seed,
    )
    trained = fxprune.distill(
        student,
        None if alone else large,
        batches,
        training,
        loss=Loss(),
        folder=folder,
        resume=True,
        every=50,
    )
    row = {
        "arm": name,
        "parameters": sum(p.numel() for p in student.parameters()),
        "epochs": training.epochs,
        **precision(student, test),
        "map_before": before,
        **({} if arm == "teacher" else consistency(large, student, test)),
        "seconds": round(sum(line["seconds"] for line in trained.log)),
    }
    if arm == "teacher":
        save_file(student.state_dict(), kept)
    (folder / "row.json").write_text(json.dumps(row))
    print(", ".join(f"{k} {shown(v)}" for k, v in row.items() if v is not None))


def cut(large: nn.Module, batches: DataLoader[Any], count: int) -> nn.Module:
    """Prune the large detector to the shape of the small one, by what its maps lose on so many images.

    By magnitude, where there are none.
    """
    began = time.perf_counter()
    images = torch.stack([batches.dataset[i][0] for i in range(max(2, count))])
    data = images.split(16) if count else None
    small = fxprune.prune(large, like=Maps(SMALL).eval(), example_inputs=images[:2], data=data, form="module")
    error = fxprune.verify(large, small)
    print(f"pruned and certified to {float(error):.0e} in {time.perf_counter() - began:.0f} s")
    return small


def table(folder: Path) -> str:
    """Return a line of CSV for each arm that was run to its end."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name in ("teacher", *STUDENTS):
        for path in sorted(folder.glob(f"{name}-seed-[0-9]*/row.json")):
            row = json.loads(path.read_text())
            writer.writerow({k: shown(row.get(k)) for k in COLUMNS})
    return file.getvalue()


def shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=("teacher", *STUDENTS, "table", "all"))
    parser.add_argument("--folder", type=Path, default=Path("outputs/detection"), help="for runs and rows")
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    parser.add_argument("--tests", type=int, default=500, help="images to measure on")
    parser.add_argument("--calibrate", type=int, default=128, help="training images to choose channels by")
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6, help="of each small detector")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=1.0, help="weight of the maps' error beside the teacher")
    parser.add_argument("--hidden", type=float, default=0.5, help="weight of hidden states' error")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arms = ("teacher", *STUDENTS) if options.arm == "all" else (options.arm,)
    for arm in arms:
        if arm != "table":
            train(options, arm)
    if options.arm in ("all", "table"):
        print(table(options.folder), end="")


if __name__ == "__main__":
    main()
