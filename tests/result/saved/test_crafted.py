"""Folders that somebody crafted, with digests that fit: one clear error, and no code of theirs is run."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FileError
from fxprune.result.fingerprint import json_digest


class Scaled(nn.Module):
    """Computes with a size that its code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        return self.b(torch.relu(self.a(x))) * n


LINE = "        n = x.shape[-1]"
RUN = "__import__('pathlib').Path('ran').touch()"
CALL = {"path": "a", "args": {"tuple": [{"node": "x"}]}, "kwargs": {"dict": {}}, "results": [["a", []]]}


def spelling(method: str, left: int, name: str) -> dict[str, Any]:
    return {"spellings": [["", method, [1, left], [1, len(LINE)], LINE[left:], name, 8, 8]]}


def calling(**edits: Any) -> dict[str, Any]:
    return {"forward": {"opened": [""], "why": "", "barred": [], "calls": [{**CALL, **edits}]}}


OWN: dict[str, dict[str, Any]] = {
    "code for a name": spelling("forward", 8, f"n; {RUN}; n"),
    "a part of a statement": spelling("forward", 10, ""),
    "a method of every module": spelling("named_parameters", 8, "n"),
    "code for a keyword": calling(kwargs={"dict": {f"input={RUN}, z": {"node": "x"}}}),
    "code for a path": calling(path=f'a"+{RUN}+"'),
    "arguments that are none": calling(args={"value": 5}),
    "a number of no module": {"edits": [["gone", ["x"], 1, 1, 2]]},
    "any attribute of a tensor": {
        "parts": [{**CALL, "why": "", "inputs": [], "reads": [["relu", "x", "__class__", 0]], "result": {}}]
    },
}
RECORDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "no weights": ([], {"weights": 3}),
    "a path for a digest": (["weights"], {"sha256": "/../../x"}),
    "frozen lists": ([], {"frozen": [[1]]}),
    "no modes": ([], {"modes": None}),
    "another option": (["options"], {"model": 3}),
    "an example of no type": (["example"], {"args": [{"shape": [3, 8], "dtype": "nn"}]}),
    "an example too large": (["example"], {"args": [{"shape": [1 << 40, 1 << 40], "dtype": "float32"}]}),
    "code for an argument": (["example"], {"kwargs": {f"a={RUN}": 1}}),
    "a type for no weight": (["origin", "dtypes"], {"others": {"gone": "float32"}}),
    "code for a new name": (["plan"], {"renamed": {"a.weight": f'a.w"+{RUN}+"'}}),
    "numbers of no shape": ([], {"remade": {"a": {"shape": [2], "dtype": "float32", "values": [1]}}}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("crafted")
    pruned = fxprune.prune(Scaled(), 0.5, example_inputs=torch.randn(3, 8), form="module")
    with pytest.warns(UserWarning, match="model="):
        fxprune.save(pruned, place)
    return place


@pytest.fixture
def craft(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def crafted(within: list[str], edits: dict[str, Any]) -> Path:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        record = json.loads((tmp_path / "fxprune.json").read_text())
        del record["digest"]
        at = record
        for key in within:
            at = at[key]
        at.update(copy.deepcopy(edits))
        text = json.dumps({**record, "digest": json_digest(record)})
        (tmp_path / "fxprune.json").write_text(text)
        return tmp_path

    monkeypatch.chdir(tmp_path)
    return crafted


@pytest.mark.parametrize("edits", OWN.values(), ids=OWN)
def test_own_code_that_is_none(craft: Callable[..., Path], edits: dict[str, Any]) -> None:
    place = craft(["own"], edits)
    with pytest.raises(FileError, match="record of the model's own class"):
        fxprune.load(place, Scaled())
    assert not (place / "ran").exists()


@pytest.mark.parametrize(("within", "edits"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_is_none(craft: Callable[..., Path], within: list[str], edits: dict[str, Any]) -> None:
    place = craft(within, edits)
    with pytest.raises(FileError):
        fxprune.load(place, Scaled())
    assert not (place / "ran").exists()


def test_what_the_code_has_there_is_read(craft: Callable[..., Path]) -> None:
    loaded = fxprune.load(craft(["own"], spelling("forward", 8, "n")), Scaled())
    assert loaded(torch.randn(3, 8)).shape == (3, 4)
