"""A model as an ONNX file for any batch size, run beside the model before it is written."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CertificateError, FileError
from fxprune.graph.example import Example
from fxprune.graph.modes import in_eval_mode
from fxprune.graph.nests import Value
from fxprune.result.files import TEMPORARY

__all__ = ["OnnxFile", "write_onnx"]

BATCHES = (1, 3)  # at which the file is compared
Shapes = dict[str, list[int | str]]
TOLERANCE = 1e-3  # of single precision, relative to the largest output


class _Session(Protocol):
    """What runs a file: onnxruntime's, which has no types."""

    def run(self, names: None, given: Mapping[str, object]) -> Sequence[object]: ...


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    inputs, outputs: name -> shape, with "batch" for a size that is free.
    error: the largest difference from the model, relative to its largest output, at batch sizes 1 and 3;
        None where onnxruntime is not installed, and nothing was compared.
    """

    path: Path
    inputs: Shapes
    outputs: Shapes
    error: float | None


def write_onnx(
    model: nn.Module, example: Example, path: str | os.PathLike[str], *, dynamic: bool = True
) -> OnnxFile:
    """Export a model in eval mode to ONNX, and compare the file with it.

    Args:
        model: a pruned model, or any other.
        example: a call of it with a batch of two or more, on its device.
        path: the file to write; weights beyond ONNX's limit of 2 GB go to `path.data` beside it.
        dynamic: the batch size is free; else that of the example.

    Raises:
        FileError: a package of the extra `[onnx]` is missing, the exporter fails, or the file can't be
            written.
        CertificateError: the file computes something else than the model; it is not written.

    Example:
        >>> write_onnx(pruned, Example((torch.zeros(2, 3, 224, 224),)), "half.onnx").error
    """
    path = Path(path)
    program = _exported(model, example, dynamic)
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=TEMPORARY) as beside:
            written = Path(beside) / path.name
            with _silent():
                program.save(written)
            error, inputs, outputs = _compared(model, example, written, dynamic)
            for file in sorted(Path(beside).iterdir(), key=lambda f: f.name == path.name):
                os.replace(file, path.parent / file.name)  # the file itself comes last
    except OSError as problem:
        raise FileError(f"{path} can't be written: {problem}") from problem
    return OnnxFile(path, inputs, outputs, error)


def _exported(model: nn.Module, example: Example, dynamic: bool) -> torch.onnx.ONNXProgram:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FileError(f"ONNX needs the package {error.name}: pip install 'fxprune[onnx]'") from error
    try:
        with _silent(), in_eval_mode(model):
            program = torch.onnx.export(
                model,
                example.args,
                kwargs=example.kwargs,
                dynamo=True,
                dynamic_shapes=_free(example) if dynamic else None,
                verbose=False,
            )
        assert program is not None  # `dynamo=True` returns one
        return program
    except Exception as error:  # the exporter's own, whose text is pages long
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = next((line for line in str(cause).splitlines() if line.strip()), "")
        raise FileError(
            f"torch.onnx can't export {type(model).__name__}: {type(cause).__name__}: {first}"
        ) from error


def _free(example: Example) -> tuple[Value, ...]:
    """Free each tensor's first dimension where it is as large as the batch."""

    def shape(value: object) -> dict[int, str] | None:
        if not isinstance(value, Tensor):
            return None
        return {0: "batch"} if value.ndim and value.shape[0] == example.batch else {}

    args, kwargs = pytree.tree_map(shape, (example.args, example.kwargs))
    return (*args, *kwargs.values()) if kwargs else args


def _compared(
    model: nn.Module, example: Example, file: Path, dynamic: bool
) -> tuple[float | None, Shapes, Shapes]:
    """Return the largest error of the file, and its inputs and outputs with their shapes."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    inputs, outputs = ({v.name: _shape(v) for v in values} for values in (graph.input, graph.output))
    try:
        import onnxruntime
    except ImportError:
        return None, inputs, outputs
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    error = 0.0
    for batch in BATCHES if dynamic else (None,):
        call = _varied(example.with_batch(batch))
        error = max(error, _error(model, call, session, [*inputs]))
    if not error <= TOLERANCE:
        raise CertificateError(
            f"the ONNX file computes something else than the model (relative error {error:.1e}), and is "
            f"not written"
        )
    return error, inputs, outputs


def _error(model: nn.Module, call: Example, session: _Session, names: Sequence[str]) -> float:
    tensors = [t for t in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)]
    if len(tensors) != len(names):
        raise CertificateError(f"the ONNX file has {len(names)} inputs, and the model {len(tensors)}")
    given = {name: t.detach().cpu().numpy() for name, t in zip(names, tensors, strict=True)}
    found = [torch.as_tensor(value) for value in session.run(None, given)]
    with torch.no_grad():
        wanted = _outputs(model, call)
    if [list(t.shape) for t in found] != [list(t.shape) for t in wanted]:
        return float("inf")
    differences = [
        float((f.double() - w.cpu().double()).abs().max() / w.cpu().double().abs().max().clamp_min(1e-12))
        for f, w in zip(found, wanted, strict=True)
        if w.numel()
    ]
    return max((d if d == d else float("inf") for d in differences), default=0.0)


def _outputs(model: nn.Module, call: Example) -> list[Tensor]:
    with in_eval_mode(model):
        found = model(*call.args, **call.kwargs)
    return [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]


def _varied(call: Example) -> Example:
    """Give each sample other values: noise in place of real numbers."""
    generator = torch.Generator().manual_seed(1)

    def noise(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t

    return call.map(noise)


def _shape(value: Value) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence the exporter, which warns of its own parts and prints its steps and graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
