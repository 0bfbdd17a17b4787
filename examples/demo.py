"""Train, prune, certify, draw and fine-tune a small vision transformer on real handwritten digits.

The images ship with scikit-learn: nothing is downloaded. About two minutes.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import fxprune

LATENCY_BATCH = 64


def main() -> None:
    options = parse_options()
    # More threads gain a model this small little, and on a busy machine they wait for each other.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    digits = load_split_digits(options.seed)
    example = digits.test_images[:2]

    model = small_vit()
    train(model, digits, options.epochs, learning_rate=1e-3, title="training")
    dense = measure(model, digits)
    show_head(fxprune.analyze(model, example_inputs=example))

    # Channels go by the KL divergence that their removal causes on 256 images, without labels.
    proxy = digits.train_images[:256].split(64)
    pruned = fxprune.prune(model, options.ratio, data=proxy, example_inputs=example)
    certificate = fxprune.verify(model, pruned)
    just_pruned = measure(pruned, digits)
    print(fxprune.report(model, pruned))
    Path(options.picture).parent.mkdir(parents=True, exist_ok=True)
    picture = fxprune.draw(model, options.picture, pruned=pruned, example_inputs=example)

    train(pruned, digits, max(1, options.epochs // 3), learning_rate=2e-3, title="fine-tuning")
    fine_tuned = measure(pruned, digits)

    show(dense, just_pruned, fine_tuned, error=float(certificate))
    print(f"What is coupled with what, to click through: {picture}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30, help="epochs of training (default: 30)")
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="fraction of channels to remove (default: 0.5)"
    )
    parser.add_argument(
        "--picture", default="outputs/demo.html", help="drawn here (default: outputs/demo.html)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of split and weights (default: 0)")
    return parser.parse_args()


@dataclass(frozen=True)
class Digits:
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_split_digits(seed: int) -> Digits:
    """Load the 1,797 real 8 x 8 digits that ship with scikit-learn, a quarter of them held out."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8),
        torch.tensor(labels),
        test_size=0.25,
        stratify=labels,
        random_state=seed,
    )
    mean, std = train_images.mean(), train_images.std()
    return Digits((train_images - mean) / std, train_labels, (test_images - mean) / std, test_labels)


def small_vit() -> VisionTransformer:
    """Make a ViT of 16 patches of 2 x 2 pixels; 0.45 million parameters."""
    model = VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=96,
        depth=4,
        num_heads=4,
        drop_path_rate=0.1,
    )
    # timm's 0.02 suits long schedules: here it would take most of the training to tell places apart.
    nn.init.trunc_normal_(model.pos_embed, std=0.5)
    return model


def train(model: nn.Module, digits: Digits, epochs: int, learning_rate: float, title: str) -> None:
    batch = 64
    steps_per_epoch = len(digits.train_images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.2
    )
    model.train()
    for _ in tqdm(range(epochs), desc=title, unit="epoch", disable=None):  # no bar in a file
        order = torch.randperm(len(digits.train_images))
        for chosen in order[: steps_per_epoch * batch].split(batch):
            images = digits.train_images[chosen]
            noisy = images + 0.3 * torch.randn_like(images)
            loss = F.cross_entropy(model(noisy), digits.train_labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@dataclass(frozen=True)
class Measured:
    accuracy: float
    parameters: int
    macs: int
    milliseconds: float


@torch.no_grad()
def measure(model: nn.Module, digits: Digits) -> Measured:
    model.eval()
    predicted = model(digits.test_images).argmax(dim=1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(digits.test_images[:1])
    return Measured(
        accuracy=(predicted == digits.test_labels).double().mean().item(),
        parameters=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2,
        milliseconds=median_milliseconds(model, digits.test_images[:LATENCY_BATCH]),
    )


def median_milliseconds(model: nn.Module, images: Tensor, runs: int = 50) -> float:
    taken = []
    for _ in range(runs):
        begin = time.perf_counter()
        model(images)
        taken.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(taken)


def show_head(analysis: fxprune.Analysis, lines: int = 12) -> None:
    """Print the first lines of the analysis: what shrinks together, what is frozen and why."""
    table = str(analysis).splitlines()
    print(*table[:lines], "...", table[-1], sep="\n")


def show(dense: Measured, pruned: Measured, fine_tuned: Measured, error: float) -> None:
    table = Table("", "dense", "pruned", "fine-tuned", title="scikit-learn digits, small ViT")
    for column in table.columns[1:]:
        column.justify = "right"
    columns = (dense, pruned, fine_tuned)
    table.add_row("test accuracy", *(f"{m.accuracy:.1%}" for m in columns))
    table.add_row("parameters", *(f"{m.parameters:,}" for m in columns))
    table.add_row("MACs per image", *(f"{m.macs:,}" for m in columns))
    table.add_row(f"latency, batch {LATENCY_BATCH}", *(f"{m.milliseconds:.1f} ms" for m in columns))
    # The certificate compares the pruned weights with the dense ones: training ends its subject.
    table.add_row("certified error", "-", f"{error:.1e}", "-")
    Console().print(table)


if __name__ == "__main__":
    main()
