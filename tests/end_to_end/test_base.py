"""base=: the target against the model that it was fine-tuned from, beside the other gaps."""

import json

import pytest

from dejavu_lit.measure.figures import signed
from tests.conftest import SMALL, call, run
from tests.models.tiny import write_clip

FEW = ["k=5", "ks=[5]", "statistics.bootstrap=200", "statistics.top_ms=[]"]
BLOCKS = ("population", "null", "swapped", "symmetric", "corrected")


def evaluate(out, *options):
    done = call("evaluate", *map(str, options), *FEW, f"out={out}")
    assert done.returncode == 0, done.stderr
    return json.loads((out / "metrics.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run on other scenes, with another recipe."""
    folder = tmp_path_factory.mktemp("base")
    data = [option for option in SMALL if option.startswith("data.")]
    run("prepare", f"data.dir={folder / 'data'}", "data.reader.seed=7", *data)
    run(
        "train",
        "side=target",
        f"data.dir={folder / 'data'}",
        f"out={folder / 'run'}",
        *SMALL,
        "data.reader.seed=7",
        "recipe.lr=5e-4",
    )
    return folder / "run"


def test_the_gap_against_the_base_is_that_of_an_evaluation_with_it_as_the_reference(runs, base, tmp_path):
    pair = [f"target={runs['target']}", f"reference={runs['reference']}"]
    without, _ = evaluate(tmp_path / "gap", *pair)
    assert (without["base"], without["reasons"]["base"]) == (None, "no base= was given")
    # Recomputed in the same folder.
    with_base, said = evaluate(tmp_path / "gap", *pair, f"base={base}", "report.write=true")
    alone, _ = evaluate(
        tmp_path / "alone", pair[0], f"reference={base}", "allow_overlap=true", "swapped=false", "report.write=false"
    )
    expected = {name: alone[name] for name in ("population", "null", "corrected")}
    note = "whether the base was trained on pairs of A, B, H or P is not known; if it was, the gaps against it are too small"
    assert with_base["base"] == {"model": str(base), "note": note, **expected}
    assert "base" not in with_base["reasons"]
    assert {name: with_base[name] for name in BLOCKS} == {name: without[name] for name in BLOCKS}
    assert with_base["base"]["population"] != with_base["population"]
    value = with_base["base"]["corrected"]["ppg"]["value"]
    assert f"target against its base {base}" in said
    assert f"({note})" in said
    assert "trained differently" not in said
    assert f"corrected PPG {signed(value)}" in said
    assert f"against the base {base}" in (tmp_path / "gap/report/index.html").read_text()


def test_a_base_of_another_architecture_can_be_the_reference(runs, tmp_path):
    other = write_clip(tmp_path / "other")
    metrics, _ = evaluate(
        *(tmp_path / "gap", f"target={runs['target']}", f"reference={runs['reference']}"),
        *(f"base=local-dir:{other}", "report.write=false"),
    )
    assert metrics["base"]["population"] is not None


def test_the_gaps_of_groups_are_written_and_follow_the_settings(runs, tmp_path):
    pair = [f"target={runs['target']}", f"reference={runs['reference']}", "report.write=false"]
    metrics, _ = evaluate(tmp_path / "gap", *pair, "group=theme", "statistics.smallest_group=5")
    found = metrics["groups"]
    lines = (tmp_path / "gap/groups.csv").read_text().splitlines()
    assert lines[0] == "group,records,ppg,prg,aucg,p,q,clipmem_auc,clipmem_p,clipmem_q"
    assert len(lines) == 1 + len(found["groups"]) > 5
    assert sum(group["records"] for group in found["groups"]) + found["too_small"]["records"] == 96
    total = sum(group["records"] * group["ppg"] for group in found["groups"]) / 96
    if not found["too_small"]["records"]:
        assert total == pytest.approx(metrics["population"]["ppg"]["value"])
    assert "groups" not in evaluate(tmp_path / "gap", *pair)[0]
