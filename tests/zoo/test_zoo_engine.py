"""The zoo's engine: one row per model whatever becomes of it, a table that resumes, the ops it met."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fxprune.certify.zoo import Result, __main__, check, coverage, exactness, run, table
from fxprune.certify.zoo.coverage import NO_RULE, OpUse

TINY, CRASHING = "odd_models:tiny", "odd_models:crashing"

ROW = Result(
    "timm:resnet18",
    "certified",
    capture="symbolic",
    seconds=1.25,
    params=11.69,
    params_left=0.254,
    macs_left=0.26,
    certificate=3e-15,
    frozen=0.0,
    reasons="reaches the output 0.04; softmax over it 0.02",
    note='a comma, a "quote" and\na line',
)


# ---------------------------------------------------------------- one model


def test_a_sound_model_is_certified() -> None:
    row = check(TINY)
    assert (row.outcome, row.capture, row.note) == ("certified", "symbolic", "")
    assert row.passed
    assert row.params == pytest.approx((16 * 3 * 16 + 16 + 16 * 5 + 5) / 1e6)
    assert row.params_left == pytest.approx((8 * 3 * 16 + 8 + 8 * 5 + 5) / (16 * 3 * 16 + 16 + 16 * 5 + 5))
    assert row.macs_left == pytest.approx(0.5)
    assert row.certificate is not None and row.certificate <= 1e-8
    assert row.seconds is not None and row.seconds > 0


def test_at_another_ratio_another_share_is_left() -> None:
    row = check(TINY, 0.75)
    assert row.macs_left == pytest.approx(0.25)


def test_what_its_library_cannot_build_is_excluded() -> None:
    row = check("odd_models:unbuildable")
    assert row.outcome == "excluded"
    assert not row.passed
    assert row.note == "can't be built: its weights can't be downloaded here"


def test_a_name_that_is_no_model_is_excluded() -> None:
    row = check("odd_models:nothing")
    assert row.outcome == "excluded"
    assert "nothing" in row.note


def test_what_cannot_be_captured_fails_with_the_reason() -> None:
    row = check("odd_models:uncapturable")
    assert row.outcome == "FAILED"
    assert row.note.startswith("CaptureError: DependsOnValues can't be captured")
    assert row.params is not None
    assert row.ops == ()


def test_a_certificate_that_is_fooled_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "survivors", lambda comparison: ["stem.weight spoilt"])
    row = check(TINY)
    assert row.outcome == "FAILED"
    assert row.note == "the certificate takes it for exact: stem.weight spoilt"


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("row", [ROW, Result("timm:giant", "excluded", note="needs a download")])
def test_a_row_comes_back_as_it_was(row: Result) -> None:
    assert Result.of_row(row.row()) == row


def test_a_row_is_rounded_so_that_the_table_changes_only_where_something_did() -> None:
    noisy = replace(ROW, seconds=1.2512, params_left=0.25401, certificate=3.2e-15)
    assert noisy.row() == ROW.row()


def test_a_table_is_sorted_and_comes_back(tmp_path: Path) -> None:
    other = Result("hf:vit", "FAILED", note="took more than 900 s")
    table.write(tmp_path / "zoo.csv", [ROW, other])
    assert list(table.read(tmp_path / "zoo.csv").items()) == [("hf:vit", other), ("timm:resnet18", ROW)]
    assert [p.name for p in tmp_path.iterdir()] == ["zoo.csv"]


def test_no_table_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert table.read(tmp_path / "zoo.csv") == {}


def test_the_summary_counts_by_library_and_leaves_out_what_was_excluded() -> None:
    rows = [
        ROW,
        replace(ROW, model="timm:vit", params_left=0.3),
        Result("timm:giant", "shapes", params_left=0.28),
        Result("timm:broken", "FAILED"),
        Result("timm:absent", "excluded"),
        Result("hf:vit", "certified"),
    ]
    lines = table.summary(rows).splitlines()[2:]
    assert lines == [
        "| hf | 1 | 1 | 0 | 0 | 0 | - | - | - |",
        "| timm | 4 | 2 | 1 | 1 | 2 | 0.28 | 0.26 | 1.25 |",
    ]


# ---------------------------------------------------------------- many models


@pytest.mark.slow
def test_passed_rows_stay_and_failed_ones_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    passed = replace(ROW, model=CRASHING)  # it would fail if it were checked
    failed = Result(TINY, "FAILED", note="took more than 1 s")
    stranger = replace(ROW, model="timm:other")
    table.write(path, [passed, failed, stranger])
    coverage.write(path, {"timm:other": USES})

    rows = run([TINY, CRASHING, TINY], path, workers=1)

    assert [row.model for row in rows] == [TINY, CRASHING]
    assert rows[0].outcome == "certified"
    assert rows[1] == passed
    written = table.read(path)
    assert written[TINY].row() == rows[0].row()
    assert written[CRASHING] == passed
    assert written["timm:other"] == stranger
    assert coverage.read(path) == {"timm:other": USES, TINY: rows[0].ops}


def test_a_crash_of_the_process_fails_that_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    crashed, sound = run([CRASHING, TINY], path, workers=1)
    assert crashed.outcome == "FAILED"
    assert crashed.note.startswith("its process died")
    assert sound.outcome == "certified"
    assert {row.model: row.outcome for row in table.read(path).values()} == {
        CRASHING: "FAILED",
        TINY: "certified",
    }


@pytest.mark.slow
def test_a_model_over_the_time_limit_fails_by_it(tmp_path: Path) -> None:
    (row,) = run(["odd_models:unending"], tmp_path / "zoo.csv", workers=1, limit=2)
    assert (row.outcome, row.note) == ("FAILED", "took more than 2 s")


@pytest.mark.slow
def test_again_checks_what_passed_before(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    table.write(path, [replace(ROW, model=CRASHING)])
    (row,) = run([CRASHING], path, workers=1, again=True)
    assert row.outcome == "FAILED"


@pytest.mark.slow
def test_the_command_prints_the_summary_and_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "zoo.csv"
    table.write(path, [replace(ROW, model=TINY)])
    coverage.write(path, {TINY: USES})
    assert __main__.main([TINY, "--table", str(path), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert table.summary([replace(ROW, model=TINY)]) in said
    assert "no rule served LSTM" in said

    assert __main__.main([TINY, CRASHING, "--table", str(path), "--workers", "1"]) == 1
    assert f"{CRASHING}: its process died" in capsys.readouterr().out


# ---------------------------------------------------------------- ops and rules

LINEAR = "linear_axes (fxprune/rules/contractions.py)"
USES = (OpUse("LSTM", NO_RULE, "", 1), OpUse("linear", LINEAR, "function", 2))


def by_op(uses: Iterable[OpUse]) -> dict[str, tuple[str, str, int]]:
    return {use.op: (use.rule, use.tier, use.calls) for use in uses}


def test_a_check_names_the_rule_that_served_each_op() -> None:
    uses = by_op(check(TINY).ops)
    assert uses["linear"] == (LINEAR, "function", 1)
    assert uses["conv2d"] == ("conv_axes (fxprune/rules/contractions.py)", "function", 1)
    assert uses["gelu"] == ("elementwise_axes (fxprune/rules/elementwise.py)", "table", 1)
    assert {*uses} == {"conv2d", "flatten", "gelu", "getattr", "mean", "linear"}


def test_a_check_names_an_op_that_no_rule_served() -> None:
    row = check("odd_models:unknown")
    assert row.outcome == "certified"
    assert row.note == "no rule for native_layer_norm"
    uses = by_op(row.ops)
    assert uses["native_layer_norm"] == (NO_RULE, "", 1)
    assert uses["linear"] == (LINEAR, "function", 3)


def test_a_model_that_stays_whole_for_want_of_a_rule_says_so() -> None:
    row = check("odd_models:unknown_alone")
    assert row.outcome == "FAILED"
    assert row.note.startswith("NothingPrunableError")
    assert by_op(row.ops)["native_layer_norm"] == (NO_RULE, "", 1)


def test_ops_come_back_and_are_reported_beside_the_table(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    assert coverage.read(path) == {}
    ops = {"timm:b": USES, "timm:a": (OpUse("linear", LINEAR, "function", 3),)}
    coverage.write(path, ops)
    assert coverage.read(path) == ops
    with open(tmp_path / "zoo-ops.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["op", "rule", "tier", "models", "calls", "example"],
        ["LSTM", "none", "", "1", "1", "timm:b"],
        ["linear", LINEAR, "function", "2", "5", "timm:a"],
    ]


def test_the_coverage_summary_names_what_was_not_served() -> None:
    ops = {"timm:b": USES, "timm:a": (OpUse("gelu", "elementwise_axes (x.py)", "table", 1),)}
    assert coverage.summary(ops).splitlines() == [
        "2 ops met in 2 models, served by 2 rules (table 1, function 1)",
        "no rule served LSTM: 1 models, timm:b",
    ]


def test_the_readme_shows_the_committed_table() -> None:
    here = Path(__file__).parents[1]
    expected = table.summary(table.read(here / "zoo.csv").values())
    assert expected in (here.parent / "README.md").read_text(encoding="utf-8"), "run `make zoo`"
