"""The committed table: what it must hold of every model that was checked."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest
import timm

from fxprune.certify.zoo import table
from fxprune.certify.zoo.result import EXCLUDED, Result

HERE = Path(__file__).parents[1]
ROWS = list(table.read(HERE / "zoo.csv").values())
with (HERE / "zoo_justified.csv").open(newline="") as file:
    JUSTIFIED = {row["reason"]: row["why"] for row in csv.DictReader(file)}
TIMM = [row for row in ROWS if row.model.startswith("timm:") and row.params_left is not None]

MUCH_LEFT = 0.45


def family(row: Result) -> str:
    return timm.model_entrypoint(row.model.partition(":")[2]).__module__.rpartition(".")[2]


@pytest.mark.skipif(timm.__version__ != "1.0.31", reason="the table is that of timm 1.0.31")
def test_every_model_of_timm_is_here() -> None:
    rows = {row.model.partition(":")[2] for row in ROWS if row.model.startswith("timm:")}
    assert set(timm.list_models()) - rows == set()


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Frozen shares stood in a column named "whole"."""
    table.write(tmp_path / "new.csv", [Result("timm:test_vit", "certified", frozen=0.25)])
    old = (tmp_path / "new.csv").read_text().replace(",frozen,", ",whole,", 1)
    assert ",whole," in old
    (tmp_path / "old.csv").write_text(old)
    assert table.read(tmp_path / "old.csv") == table.read(tmp_path / "new.csv")
    assert table.read(tmp_path / "old.csv")["timm:test_vit"].frozen == 0.25


def test_every_model_of_timm_passes() -> None:
    assert [row.model for row in ROWS if row.model.startswith("timm:") and not row.passed] == []


def test_half_of_every_width_leaves_a_quarter_of_the_weights() -> None:
    assert median(row.params_left or 0.0 for row in TIMM) <= 0.30


@pytest.mark.parametrize(
    "row",
    [r for r in ROWS if (r.params_left or 0) > MUCH_LEFT and r.outcome != EXCLUDED],
    ids=lambda row: row.model,
)
def test_what_is_left_large_is_large_for_a_reason(row: Result) -> None:
    """A reason that freezes many of its weights is justified by what an op means."""
    assert row.model in JUSTIFIED or any(reason in row.reasons for reason in JUSTIFIED), row.reasons


def test_families_leave_little_but_for_what_is_justified() -> None:
    by_family = defaultdict(list)
    for row in TIMM:
        # What a recurrent layer remembers is frozen by rule: 0.42 is what is left of one.
        recurrent = "the hidden state of a recurrent layer" in row.reasons
        if (row.params_left or 0) <= MUCH_LEFT and not recurrent:
            by_family[family(row)].append(row.params_left or 0.0)
    assert {name: median(left) for name, left in by_family.items() if median(left) > 0.40} == {}


def test_nothing_is_justified_in_vain() -> None:
    large = [row for row in ROWS if (row.params_left or 0) > MUCH_LEFT]
    used = {key for key in JUSTIFIED for row in large if key == row.model or key in row.reasons}
    assert used == set(JUSTIFIED)
