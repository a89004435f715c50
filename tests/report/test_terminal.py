"""The tables on the terminal: labels are whole at every width, columns go in order of importance, and words at the end."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.measure.figures import BLOCKS, signed
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.report.terminal import (
    Column,
    console,
    fitting_table,
    show_evaluation,
    show_next_steps,
    show_plan,
    show_study,
)
from dejavu_lit.study.plan import PlannedRow, make_plan
from dejavu_lit.training.settings import Recipe, TrainingRun
from dejavu_lit.utils.exit_codes import fail
from dejavu_lit.utils.io import read_json
from dejavu_lit.utils.printable import PrintableFormatter, printable

WIDTHS = (80, 100, 132)
MEANING = "PPG: share of pairs for which the target is the more precise, minus the share for which the reference is"


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_an_evaluation_fits(width: int, evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = read_json(evaluation / "metrics.json")
    show_evaluation(metrics, Path("out"), width)
    text = capsys.readouterr().out
    lines = text.splitlines()
    table = [line for line in lines if line[:1] in "┃│┏┡└"]
    assert max(len(line) for line in table) <= width
    assert "…" not in text
    for name, block in BLOCKS.items():
        assert any(block.label.split(":")[0] in line for line in table), name
        for figure in ("ppg", "prg", "aucg"):
            low, high = metrics[name][figure]["ci95"]
            assert any(f"[{signed(low)}, {signed(high)}]" in line for line in table)
    assert words(text).count(MEANING) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_study_fits(width: int, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = read_json(study / "study.json")
    show_study(contents, Path("out"), width)
    text = capsys.readouterr().out
    table = [line for line in text.splitlines() if line[:1] in "┃│"]
    assert max(len(line) for line in table) <= width
    assert "…" not in text
    assert [line.split()[0].strip("│") for line in table[1:]] == [r["name"].split()[0] for r in contents["settings"]]
    for header in ("setting", "size", "seed", "PPG", "PPG drop"):
        assert header in table[0]
    assert ("t2i R@1" in table[0]) == ("left out at" not in text)
    for row, line in zip(contents["settings"], table[1:], strict=True):
        assert row["name"] in line
        assert signed(row["symmetric"]["ppg"]["value"]) in line
    assert words(text).count(MEANING) == 1


def test_columns_are_left_out_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(width: int) -> str:
        columns = [Column("name", ["a setting"]), Column("first", ["1" * 9], 1), Column("second", ["2" * 9], 2)]
        fitting_table(console(width), "", columns)
        return capsys.readouterr().out

    assert "left out" not in shown(60)
    assert shown(30).endswith("left out at 30 columns: second\n")
    text = shown(12)
    assert text.endswith("left out at 12 columns: first, second\n")
    assert "a setting" in text


def test_columns_that_are_always_shown_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("setting", ["a" * 60]), Column("value", ["1" * 30]), Column("more", ["2"], 1)]
    fitting_table(console(80), "", columns)
    text = capsys.readouterr().out
    assert text.endswith("left out at 80 columns: more\n")
    assert "a" * 60 in text
    assert "1" * 30 in text


def test_the_plan_of_a_setting_with_a_long_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TrainingRun(data=DataSpec("data", dir="d"), model=ModelSpec("tiny"), recipe=Recipe(1, 2, 1e-3), side="target")
    name = "a-setting-whose-name-has-exactly-sixty-letters-in-all-places"
    runs = {"target": run, "reference": replace(run, side="reference")}
    row = PlannedRow(name=name, overrides=(), train_size=None, seed=0, runs=runs)
    show_plan(make_plan(tmp_path, [row]), 80)
    assert (len(name), capsys.readouterr().out.count(name)) == (60, 1)


def test_nothing_recommended_names_the_rule(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents: dict[str, Any] = read_json(study / "study.json") | {"recommended": None, "rule": "the rule"}
    show_study(contents, Path("out"), 100)
    text = capsys.readouterr().out
    assert "no setting qualifies (rule: the rule)" in text
    assert "recommended: none" not in text


ONE_DIRECTION = {"symmetric": None, "corrected": {"ppg": {}}, "population": {"ppg": {}}}


@pytest.mark.parametrize(
    ("results", "last"),
    [
        (
            {"symmetric": {"ppg": {}}},
            'dejavu evaluate … out=out fail_if="symmetric.ppg.ci95[0]>0.05"    # a gate for releases',
        ),
        (ONE_DIRECTION, 'dejavu evaluate … out=out fail_if="corrected.ppg.ci95[0]>0.05"    # a gate for releases'),
        (
            {"pooled": [{"seeds": [0]}]},
            "dejavu mitigate … 'seeds=[0,1,2]'    # intervals that include training noise",
        ),
        (
            {"pooled": [{"seeds": [0, 1], "halves": [0, 1]}, {"seeds": [0, 1, 2]}]},
            "dejavu report path=out redact=true out=out-to-share    # without captions and images",
        ),
    ],
)
def test_commands_end_with_next_steps_that_fit_the_results(
    results: dict[str, Any], last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for page in (Path("out/report/index.html"), None):
        show_next_steps(Path("out"), page, results)
        heading, *steps = capsys.readouterr().out.splitlines()
        assert heading == "next:"
        assert ("open out/report/index.html" in steps[0]) == (page is not None)
        assert "redact=true" in steps[1]
        assert steps[-1].strip() == last


def test_the_runs_of_a_sweep_are_trained_with_further_seeds_by_a_multirun(capsys: pytest.CaptureFixture[str]) -> None:
    show_next_steps(Path("out"), None, {"pooled": [{"seeds": [0]}]}, of_sweep=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("  dejavu train -m … seed=0,1,2    # ")


def test_of_many_groups_the_first_have_a_line(evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [{"group": f"owner {i}", "records": 7, "ppg": 0.25, "q": 0.01, "clipmem_q": None} for i in range(23)]
    metrics = read_json(evaluation / "metrics.json")
    show_evaluation({**metrics, "groups": {"column": "meta.owner", "groups": groups}}, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("meta.owner=") for line in lines) == 20
    assert "groups.csv has further groups with q ≤ 0.05: 3" in lines


def test_next_steps_can_be_copied_if_a_path_has_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    show_next_steps(
        Path("my gap"), Path("my gap/report/index.html"), {"symmetric": {}, "population": {}, "corrected": {"ppg": {}}}
    )
    steps = [shlex.split(step, comments=True) for step in capsys.readouterr().out.splitlines()[1:]]
    assert steps == [
        ["open", "my gap/report/index.html"],
        ["dejavu", "report", "path=my gap", "redact=true", "out=my gap-to-share"],
        ["dejavu", "evaluate", "…", "out=my gap", "fail_if=corrected.ppg.ci95[0]>0.05"],
    ]


def test_only_groups_that_h_does_not_explain_have_a_line(evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"a": (0.01, 0.5), "b": (0.2, 0.03), "c": (0.04, 0.001), "d": (0.2, 0.3), "e": (0.2, None)}
    groups = [
        {"group": name, "records": 7, "ppg": 0.25, "q": q, "clipmem_q": member} for name, (q, member) in values.items()
    ]
    metrics = read_json(evaluation / "metrics.json")
    show_evaluation({**metrics, "groups": {"column": "meta.owner", "groups": groups}}, Path("out"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("meta.owner=")]
    assert lines == [
        "meta.owner=c: PPG +0.250, q 0.04 by gap and q 0.001 by membership (7 records)",
        "meta.owner=a: PPG +0.250, q 0.01 by gap (7 records)",
        "meta.owner=b: PPG +0.250, q 0.03 by membership (7 records)",
    ]


def test_control_characters_of_the_data_do_not_reach_the_terminal(
    evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = "x\x1b]0;title\x07\x1b[2J\x9by"
    assert printable("a\u202eb\u2066c\u200bd\u2028e\ufeff \U000e0041") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffd \ufffd"
    assert printable(shown := "été 語\u3000\u00a0 👩\u200d👧 🏳️\n\t") == shown
    group = {"group": owner, "records": 30, "ppg": 0.5, "q": 0.01}
    metrics = read_json(evaluation / "metrics.json") | {"groups": {"column": "owner", "groups": [group]}}
    show_evaluation(metrics, Path("out"))
    fitting_table(console(), owner, [Column(owner, [owner])])
    with pytest.raises(SystemExit):
        fail(f"no pair {owner}")
    out, err = capsys.readouterr()
    assert "owner=x\ufffd]0;title\ufffd\ufffd[2J\ufffdy: PPG" in out
    assert all(c.isprintable() or c == "\n" for c in out + err)
    record = logging.LogRecord("", logging.WARNING, "", 0, "skipped %s", (owner,), None)
    assert PrintableFormatter().format(record) == "skipped x\ufffd]0;title\ufffd\ufffd[2J\ufffdy"
