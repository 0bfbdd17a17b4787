"""Train students on CIFAR-10: is a pruned one worth more than one of its shape from scratch?

One command an arm; each is killed and run again as you like, and goes on from its last checkpoint:

    export CIFAR10=cifar10.npz VIT_TINY=vit_tiny_patch16_224.safetensors
    python examples/cifar/run.py teacher                  # ViT-Tiny, patches and positions resampled to 48 px
    python examples/cifar/run.py scratch --seed 0         # the student's shape, labels alone
    python examples/cifar/run.py scratch-distilled --seed 0
    python examples/cifar/run.py pruned --seed 0          # cut from the teacher by plain selection
    python examples/cifar/run.py pruned-refit --seed 0    # layers solved again after it, no labels
    python examples/cifar/run.py pruned-basis --seed 0    # in chosen coordinates, and solved again
    python examples/cifar/run.py table                    # rows of what was run; with --out FOLDER files, too

All students have one shape (DeiT-T : DeiT-B, a quarter of the teacher's width; `--depth 0.5` for half of its
residual branches as well), one budget and one recipe.  The pruned ones stand on the teacher's pre-training
on ImageNet and its epochs here, the distilled one on what the teacher says, the first on nothing.  The
data: an .npz of JPEG bytes, with `{train,test}_jpeg`, `{train,test}_offsets` and `{train,test}_labels`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

import fxprune

PIXELS, PATCH = 48, 12
TEACHER_WIDTH, STUDENT_WIDTH, LAYERS, HEADS = 192, 48, 12, 3
ARMS = ("scratch", "scratch-distilled", "pruned", "pruned-refit", "pruned-basis")
EPOCHS = 4  # of a student, unless told otherwise
PROXY = 512  # images that channels are ranked on, without labels


def vit(width: int) -> VisionTransformer:
    return VisionTransformer(
        img_size=PIXELS, patch_size=PATCH, num_classes=10, embed_dim=width, depth=LAYERS, num_heads=HEADS
    )


@dataclass(frozen=True)
class Images:
    """CIFAR's images in memory: uint8 [n, 3, 32, 32], and their classes [n]."""

    images: Tensor
    labels: Tensor

    @staticmethod
    def read(path: str, split: str, limit: int | None) -> Images:
        """A split, in an order of its own (the file is sorted by class); at most `limit` of it."""
        data = np.load(path)
        offsets, jpeg, labels = (data[f"{split}_{name}"] for name in ("offsets", "jpeg", "labels"))
        chosen = np.random.default_rng(0).permutation(len(labels))[:limit]
        decoded = [
            np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in chosen
        ]
        return Images(
            torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2), torch.tensor(labels[chosen]).long()
        )


class Batches:
    """Batches for training: shuffled, shifted by up to four pixels, mirrored; anew each epoch."""

    def __init__(self, data: Images, size: int) -> None:
        self.data, self.size = data, size

    def __len__(self) -> int:
        return len(self.data.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.data.labels))[: len(self) * self.size]
        for chosen in order.split(self.size):
            images = F.pad(self.data.images[chosen].float(), (4, 4, 4, 4), mode="reflect")
            top, left = torch.randint(9, (2,)).tolist()
            images = images[:, :, top : top + 32, left : left + 32]
            mirrored = torch.rand(len(chosen)) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
            yield as_input(images), self.data.labels[chosen]


def as_input(images: Tensor) -> Tensor:
    resized = F.interpolate(images.float(), size=(PIXELS, PIXELS), mode="bicubic", align_corners=False)
    return resized / 127.5 - 1


def accuracy(data: Images) -> Any:
    def judge(model: nn.Module) -> Mapping[str, float]:
        pairs = zip(data.images.split(250), data.labels.split(250), strict=True)
        right = sum((model(as_input(x)).argmax(1) == y).sum().item() for x, y in pairs)
        return {"top1": right / len(data.labels)}

    return judge


def new_teacher(weights: str | None) -> VisionTransformer:
    """ViT-Tiny with the weights of a file, its patch embedding and positions resampled by timm."""
    model = vit(TEACHER_WIDTH)
    if weights:
        state = {name: t for name, t in load_file(weights).items() if not name.startswith("head.")}
        missing = model.load_state_dict(checkpoint_filter_fn(state, model), strict=False).missing_keys
        assert missing == ["head.weight", "head.bias"], missing
    return model


def student_of(arm: str, teacher: VisionTransformer, data: Images, depth: float) -> nn.Module:
    """The student of an arm before it is trained; all arms have the same shape."""
    shape = vit(STUDENT_WIDTH)
    if arm.startswith("scratch"):
        return shape if not depth else untrained(student_of("pruned", teacher, data, depth), shape)
    proxy = [as_input(images) for images in data.images[:PROXY].split(64)]
    options: dict[str, Any] = {
        "pruned": {"basis": "given", "refit": False},
        "pruned-refit": {"basis": "given", "refit": True},
        "pruned-basis": {"basis": "principal", "refit": True},
    }[arm]
    options |= {"data": proxy, "example_inputs": proxy[0][:2]}
    if depth:
        options["depth"] = depth
    ratio = 1 - STUDENT_WIDTH / TEACHER_WIDTH
    student: nn.Module = fxprune.prune(teacher.eval(), ratio, attention="head_dim", **options)
    assert depth or student.state_dict().keys() == shape.state_dict().keys()
    assert all(t.shape == shape.state_dict()[name].shape for name, t in student.state_dict().items())
    return student


def untrained(student: nn.Module, shape: nn.Module) -> nn.Module:
    """A student with fewer branches than `shape`, and the weights that `shape` begins with."""
    fresh = shape.state_dict()
    student.load_state_dict({name: fresh[name] for name in student.state_dict()})
    return student


def train(options: argparse.Namespace, folder: Path) -> None:
    data = Images.read(options.data, "train", options.limit)
    test = Images.read(options.data, "test", options.limit)
    torch.manual_seed(options.seed)
    best = options.folder / "teacher.safetensors"
    teacher = new_teacher(options.weights if options.arm == "teacher" else None)
    if options.arm != "teacher":
        if not best.exists():
            raise SystemExit(f"{best} is missing: run the arm `teacher` first")
        teacher.load_state_dict(load_file(best))
    of_teacher = options.arm == "teacher"
    student = teacher if of_teacher else student_of(options.arm, teacher, data, options.depth)
    alone = options.arm in ("teacher", "scratch")
    training = fxprune.Training(
        epochs=options.epochs,
        lr=options.lr,
        warmup=min(1.0, options.epochs / 10),
        weight_decay=0.05,
        kl=0.0 if alone else options.kl,
        seed=options.seed,
    )
    trained = fxprune.distill(
        student,
        None if alone else teacher,
        Batches(data, options.batch),
        training,
        evaluate=accuracy(test),
        folder=folder,
        resume=True,
        every=50,
    )
    if of_teacher:
        save_file(student.state_dict(), best)
    count = sum(p.numel() for p in student.parameters())
    print(f"{folder.name}: {count:,} parameters, top-1 {trained.log[-1]['top1']:.2%}")


def logs_of(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Read what was run, a log for each arm and seed."""
    logs = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*/log.jsonl"))
    }
    return {name: log for name, log in logs.items() if log}


def table(folder: Path) -> str:
    """Return a row for each finished or unfinished arm and seed."""
    rows = ["| arm | epochs | top-1 of the last | of the best | hours |", "|---|---|---|---|---|"]
    for name, log in logs_of(folder).items():
        hours = sum(line["seconds"] for line in log) / 3600
        best, last = max(line["top1"] for line in log), log[-1]["top1"]
        rows.append(f"| {name} | {len(log)} | {last:.2%} | {best:.2%} | {hours:.2f} |")
    return "\n".join(rows)


def write_results(folder: Path, out: Path) -> None:
    """Write every epoch as results.csv, the rows as results.md, and the curves of students as curves.png."""
    import matplotlib.pyplot as plt

    logs = logs_of(folder)
    lines = ["run,epoch,top1,seconds"]
    lines += [
        f"{name},{line['epoch']:.0f},{line['top1']:.4f},{line['seconds']:.0f}"
        for name, log in logs.items()
        for line in log
    ]
    (out / "results.csv").write_text("\n".join(lines) + "\n")
    (out / "results.md").write_text(table(folder) + "\n")
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    arms = [name.partition("-seed-")[0] for name in logs]
    colours = {arm: f"C{i}" for i, arm in enumerate(dict.fromkeys(arms))}  # one for all seeds
    for (name, log), arm in zip(logs.items(), arms, strict=True):
        if arm != "teacher":
            at, top1 = zip(*((line["epoch"], 100 * line["top1"]) for line in log), strict=True)
            label = arm if name == next(n for n in logs if n.startswith(f"{arm}-seed-")) else None
            axes.plot(at, top1, marker=".", color=colours[arm], label=label)
    axes.set(xlabel="epoch", ylabel="top-1, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "curves.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=("teacher", *ARMS, "table"))
    parser.add_argument("--data", default=os.environ.get("CIFAR10"), help="cifar10.npz (or set CIFAR10)")
    parser.add_argument("--weights", default=os.environ.get("VIT_TINY"), help="ViT-Tiny's (or set VIT_TINY)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/cifar"), help="for runs and the teacher")
    parser.add_argument("--depth", type=float, default=0.0, help="residual branches to remove, a fraction")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=0.2, help="weight of the divergence from the teacher")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="of `table`: a folder for results.csv, results.md, curves.png"
    )
    parser.add_argument("--limit", type=int, help="at most so many images of each split")
    options = parser.parse_args()
    if options.arm == "table":
        print(table(options.folder))
        if options.out is not None:
            write_results(options.folder, options.out)
        return
    if options.data is None or not Path(options.data).exists():
        raise SystemExit("no data: give --data cifar10.npz, or set CIFAR10")
    depth = f"-depth-{options.depth:g}" if options.depth else ""
    longer = f"-epochs-{options.epochs}" if options.arm != "teacher" and options.epochs != EPOCHS else ""
    train(options, options.folder / f"{options.arm}{depth}{longer}-seed-{options.seed}")


if __name__ == "__main__":
    main()
