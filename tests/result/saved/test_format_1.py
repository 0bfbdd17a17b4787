"""What was saved and pickled by the code of before format 2 still loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import FileError
from fxprune.result.fingerprint import FORMAT_1, graph_digest

FOLDER = Path(__file__).parent / "format_1"


class OldWriter(nn.Module):
    """Writes in place (`written`), branches on sizes (a guard), drops by its mode (`ModeValue`)."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = scale
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.mix = nn.Linear(16, 32)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 8:
            x = F.pad(x, (0, 4))
        y = self.patches(x).flatten(2).transpose(1, 2)
        y[:, 0] = self.scale
        y = F.dropout(F.gelu(self.mix(y)), 0.25, self.training)
        return self.out(torch.relu(y)).mean(1)


@pytest.mark.parametrize("name", ["vit", "swin", "pvt", "writer"])
def test_a_folder_loads(name: str) -> None:
    model: dict[str, Any] = {"model": OldWriter()} if name == "writer" else {}
    assert json.loads((FOLDER / name / "fxprune.json").read_text())["format"] == "fxprune-1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name == "writer":  # its guard held the remainder itself, and now holds that there is one
            warnings.filterwarnings("ignore", "the graph differs from the saved one, and so do versions")
        pruned = fxprune.load(FOLDER / name, **model)
    stored = torch.load(FOLDER / f"{name}.pt")
    with torch.no_grad():
        assert torch.allclose(pruned(stored["x"].float()), stored["y"], rtol=1e-5, atol=1e-6)


def test_a_folder_saved_again_is_of_format_2(tmp_path: Path) -> None:
    pruned = fxprune.load(FOLDER / "vit")
    fxprune.save(pruned, tmp_path)
    assert json.loads((tmp_path / "fxprune.json").read_text())["format"] == "fxprune-2"
    again = fxprune.load(tmp_path)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in pruned.state_dict().items())


def test_another_function_on_the_same_weights_is_no_silent_load() -> None:
    with pytest.warns(UserWarning, match=r"differs from the saved one.*fxprune-1.*fxprune.verify"):
        fxprune.load(FOLDER / "writer", model=OldWriter(scale=0.25))


def test_a_changed_folder_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "vit", tmp_path / "vit")
    path = tmp_path / "vit" / "fxprune.json"
    path.write_text(path.read_text().replace('"fxprune-1"', '"fxprune-2"'))
    with pytest.raises(FileError, match="edited"):
        fxprune.load(tmp_path / "vit")


def test_the_pickle_loads() -> None:
    """In a process of its own, which knows none of the old modules."""
    code = (
        f"import torch, fxprune; p = torch.load({str(FOLDER / 'writer.pickle')!r}, weights_only=False); "
        f"d = torch.load({str(FOLDER / 'writer.pt')!r}); "
        "assert torch.allclose(p(d['x'].float()), d['y'], atol=1e-6); "
        "assert fxprune.plan_of(p).groups and p.record.options['capture'] == 'symbolic'; "
        "assert not p.training and p.train()(d['x'].float()).ne(d['y']).any()"
    )
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], check=True)


def test_own_functions_have_names_that_no_move_changes() -> None:
    torch.manual_seed(0)
    model = randomise(OldWriter().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 3, 16, 16))
    before = graph_digest(pruned)
    assert before != graph_digest(pruned, FORMAT_1)
    for node in pruned.graph.nodes:
        if getattr(node.target, "__module__", "").startswith("fxprune"):
            node.target.__module__ = "fxprune.elsewhere"
    try:
        assert graph_digest(pruned) == before
    finally:
        for node in pruned.graph.nodes:
            if getattr(node.target, "__module__", "") == "fxprune.elsewhere":
                node.target.__module__ = "fxprune.graph.own_nodes"
