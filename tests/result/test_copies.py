"""Results are copied and pickled as graphs: nothing is traced, whatever their code does with sizes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import images, randomise, small_conv, small_hf_vit, small_swin, small_vit
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import InputSizeError, TrainingError
from fxprune.graph.as_data import graph_as_data, graph_from_data
from fxprune.result.fingerprint import graph_digest


class Sizes(nn.Module):
    """Numbers of sizes, a slice of a table up to a size, writes, a branch, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tied, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1), nn.Linear(16, 5)
        self.tied.weight = self.inner.weight
        self.register_buffer("table", torch.rand(1, 4096, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.inner(x) + self.tied(x)).flatten(2).transpose(1, 2)
        y = y * self.table[:, : y.shape[1]]
        side = int(y.shape[1] ** 0.5)
        y = y.transpose(1, 2).reshape(len(y), -1, side, side).tanh()
        y[:, :, 0] = 2
        y = y.contiguous(memory_format=torch.channels_last)
        if side % 4:
            y = F.pad(y, (0, 1))
        return self.out(F.dropout(y.mean((2, 3)), 0.1, self.training))


def torch_saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": torch_saved,
    "deepcopy": copy.deepcopy,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: small_conv(dropout=0.5),  # the first stands for the others by export
    "vit": small_vit,
    "swin": small_swin,
    "hugging face": small_hf_vit,
    "sizes": lambda: randomise(Sizes()).eval(),  # (export has no train mode of it)
}


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_the_same_model(name: str, capture: str) -> None:
    model = MODELS[name]()
    pruned = fxprune.prune(model, 0.5, example_inputs=images(), capture=capture)
    pruned.run_name = "half"
    for way, copied in COPIES.items():
        clone = copied(pruned)
        assert graph_digest(clone) == graph_digest(pruned), way
        assert list(clone.state_dict()) == list(pruned.state_dict())
        for key, tensor in clone.state_dict().items():
            assert torch.equal(tensor, pruned.state_dict()[key])
            assert tensor.data_ptr() != pruned.state_dict()[key].data_ptr()
        assert str(fxprune.plan_of(clone)) == str(fxprune.plan_of(pruned))
        assert clone.run_name == "half"
        assert type(clone).__name__ == type(pruned).__name__
        if way == "pickle":
            assert fxprune.verify(model, clone) < 1e-8
        assert [m.training for m in clone.modules()] == [m.training for m in pruned.modules()]
        assert_equal_runs(clone.eval(), pruned.eval())
        if pruned.record.untrained:  # a copy refuses train mode as well
            with pytest.raises(TrainingError, match="eval mode"):
                clone.train()(images(2))
        else:
            assert_equal_runs(clone.train(), pruned.train())
        pruned.eval()


def assert_equal_runs(clone: nn.Module, pruned: nn.Module) -> None:
    runs = []
    for model in (clone, pruned):
        torch.manual_seed(0)
        out = model(images(2))
        runs.append(out if isinstance(out, Tensor) else out["logits"])
    assert torch.equal(*runs)


def test_tied_weights_stay_tied_and_guards_stay() -> None:
    pruned = fxprune.prune(MODELS["sizes"](), 0.5, example_inputs=images(), capture="symbolic").eval()
    for copied in COPIES.values():
        clone = copied(pruned)
        assert clone.get_parameter("tied.weight") is clone.get_parameter("inner.weight")
        with pytest.raises(InputSizeError):
            clone(images(size=9))


def test_a_copy_of_a_copy_trains() -> None:
    clone = pickle.loads(
        pickle.dumps(copy.deepcopy(fxprune.prune(MODELS["sizes"](), example_inputs=images())))
    )
    clone.train()(images()).square().sum().backward()
    assert all(p.grad is not None for p in clone.parameters())


def test_another_process_reads_it(tmp_path: Path) -> None:
    """One that has not imported the original's class, nor fxprune."""
    pruned = fxprune.prune(MODELS["sizes"](), 0.5, example_inputs=images()).eval()
    torch.save({"model": pruned, "x": images(), "y": pruned(images())}, tmp_path / "whole.pt")
    code = (
        f"import torch; f = torch.load({str(tmp_path / 'whole.pt')!r}, weights_only=False); "
        "assert torch.equal(f['model'](f['x']), f['y'])"
    )
    root = Path(fxprune.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_a_graph_as_data_is_the_graph() -> None:
    pruned = fxprune.prune(MODELS["sizes"](), 0.5, example_inputs=images())
    again = graph_from_data(pickle.loads(pickle.dumps(graph_as_data(pruned.graph))))
    assert str(again) == str(pruned.graph)
    assert [n.name for n in again.nodes] == [n.name for n in pruned.graph.nodes]
    assert graph_digest(fx.GraphModule(pruned, again)) == graph_digest(pruned)


@pytest.mark.parametrize("name", MODELS)
def test_torch_traces_a_result_again(name: str, capture: str) -> None:
    pruned = fxprune.prune(MODELS[name](), 0.5, example_inputs=images(), capture=capture)
    again = fx.symbolic_trace(pruned)
    assert_equal_runs(again, pruned)
    assert Counter(n.op for n in again.graph.nodes) == Counter(n.op for n in pruned.graph.nodes)


def test_a_result_inside_another_module_is_traced_with_it() -> None:
    pruned = fxprune.prune(randomise(Sizes().eval()), 0.5, example_inputs=images())
    outer = nn.Sequential(nn.Identity(), pruned, nn.Linear(5, 3))
    torch.testing.assert_close(fx.symbolic_trace(outer)(images(3)), outer(images(3)))


def test_a_result_that_is_traced_again_keeps_its_guards() -> None:
    pruned = fxprune.prune(randomise(Sizes()), 0.5, example_inputs=images(), capture="symbolic")
    again = fx.symbolic_trace(pruned)
    with pytest.raises(InputSizeError):
        again(torch.zeros(2, 3, 15, 15))
