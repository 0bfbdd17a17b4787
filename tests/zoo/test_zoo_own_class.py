"""The command that says how much of many models' own code holds the new sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxprune.certify.zoo import own_class as zoo

COMMITTED = Path(__file__).parents[1] / "zoo_own_class.csv"


def test_a_model_is_asked_in_each_way() -> None:
    rows = zoo.own_class("odd_models:tiny", zoo.WAYS)
    assert [row.way for row in rows] == [*zoo.WAYS]
    assert {(row.outcome, row.own_class, row.parts) for row in rows} == {("certified", "whole", "")}
    assert all(float(row.certificate) <= 1e-8 for row in rows)


def test_a_replaced_attention_is_told_from_other_parts() -> None:
    (row,) = zoo.own_class("odd_models:literal_attention", ["uniform"])
    assert (row.outcome, row.own_class) == ("certified", "attention"), row
    (row,) = zoo.own_class("odd_models:literal", ["uniform"])
    assert (row.outcome, row.own_class) == ("certified", "parts"), row
    assert "middle: " in row.parts and " at odd_models.py:" in row.parts


def test_what_is_right_for_one_module_may_be_wrong_for_its_like() -> None:
    """Some of its norms of one class and size lose groups, some do not."""
    (row,) = zoo.own_class("zoo_models:hf_bit", ["head_dim"])
    assert (row.outcome, row.own_class) == ("certified", "whole"), row


def test_what_cannot_be_built_is_excluded_and_what_fails_says_so() -> None:
    (row,) = zoo.own_class("odd_models:unbuildable", ["uniform"])
    assert (row.outcome, row.own_class) == ("excluded", "")
    (row,) = zoo.own_class("odd_models:uncapturable", ["uniform"])
    assert row.outcome in ("refused", "FAILED") and row.note


@pytest.mark.slow
def test_the_table_is_resumed_and_sorted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(tmp_path / "t.csv")
    zoo.write(table, [zoo.Outcome("z:z", "uniform", "certified", "whole")])
    assert zoo.main(["odd_models:tiny", "--table", table, "--ways", "uniform"]) == 0
    assert [model for model, _ in zoo.read(table)] == ["odd_models:tiny", "z:z"]
    assert "odd_models:tiny | uniform | certified | whole" in capsys.readouterr().out
    assert zoo.main(["odd_models:tiny", "--table", table, "--ways", "uniform"]) == 0
    assert "odd_models:tiny |" not in capsys.readouterr().out


def test_a_summary_counts_by_way_and_library() -> None:
    rows = [
        zoo.Outcome("a:1", "uniform", "certified", "whole"),
        zoo.Outcome("a:2", "uniform", "certified", "attention"),
        zoo.Outcome("a:3", "uniform", "certified", "forward"),
        zoo.Outcome("a:4", "uniform", "certified", "sizes"),
        zoo.Outcome("b:1", "uniform", "refused"),
        zoo.Outcome("b:2", "uniform", "excluded"),
        zoo.Outcome("b:1", "global", "FAILED"),
    ]
    assert zoo.summary(rows).splitlines()[2:] == [
        "| uniform | a | 4 | 1 | 1 | 1 | 1 | 0 | 0 | 0 | 0 |",
        "| uniform | b | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 1 | 0 |",
        "| uniform | all | 5 | 1 | 1 | 1 | 1 | 0 | 0 | 1 | 0 |",
        "| global | b | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 1 |",
    ]
