"""Folders of format 2 that were saved before graphs read constant sizes of their input still load."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.errors import FileError
from fxprune.result.fingerprint import json_digest
from fxprune.result.saved.replay import SPELLING

FOLDER = Path(__file__).parent / "format_2"


@pytest.mark.parametrize("name", ["vit", "vit_export"])
def test_a_folder_loads(name: str) -> None:
    """What export left of sizes, and what models assert by `_assert`, is spelled otherwise: it warns."""
    assert json.loads((FOLDER / name / "fxprune.json").read_text())["format"] == "fxprune-2"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruned = fxprune.load(FOLDER / name)
    said = [str(w.message) for w in caught]
    assert [f"spelling None -> {SPELLING}" in words for words in said] == [True]
    stored = torch.load(FOLDER / f"{name}.pt")
    with torch.no_grad():
        assert torch.allclose(pruned(stored["x"].float()), stored["y"], rtol=1e-5, atol=1e-6)


def test_a_folder_of_another_graph_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER / "vit", tmp_path / "vit")
    record = json.loads((folder / "fxprune.json").read_text())
    record.pop("digest")
    record["graph"] = "0" * 64
    record["made_by"] = {}
    (folder / "fxprune.json").write_text(json.dumps({**record, "digest": json_digest(record)}))
    with pytest.warns(UserWarning, match="differs from the saved one"):
        fxprune.load(folder)
    record["build"] = None
    (folder / "fxprune.json").write_text(json.dumps({**record, "digest": json_digest(record)}))
    with pytest.raises(FileError, match="does not say how to build"):
        fxprune.load(folder)
