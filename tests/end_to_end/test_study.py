"""A study of two settings on tiny scenes: nothing trained twice, one failure loses nothing, a sweep gives the same table."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from dejavu_lit.ranking import frontier, recommend
from tests.conftest import SMALL, run

SETTINGS = ["+settings.none=['mitigation.text_mask=0']", "+settings.mask=['mitigation.text_mask=0.5']"]


@pytest.fixture(scope="module")
def study(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "study"
    done = run("mitigate", *SETTINGS, f"data.dir={scenes}", f"out={out}", *SMALL, "evaluate.k=5", "evaluate.ks=[1,5]")
    return out, done


def test_every_setting_has_a_row_and_an_evaluation(study):
    out, done = study
    found = json.loads((out / "study.json").read_text())
    assert [(r["name"], r["train_size"], r["seed"]) for r in found["settings"]] == [("none", 96, 0), ("mask", 96, 0)]
    assert found["settings"][0]["overrides"] == ["mitigation.text_mask=0"]
    for row in found["settings"]:
        metrics = json.loads((out / row["metrics"]).read_text())
        for block in ("population", "null", "swapped", "symmetric", "corrected"):
            assert row[block] == metrics[block]
        assert row["utility"] == metrics["utility"]
    assert set(found["frontier"]) <= {"none", "mask"}
    assert found["recommended"] in (None, "none", "mask")
    assert [d["name"] for d in found["differences"]] == ["mask"]
    first, other = (row["symmetric"]["ppg"]["value"] for row in found["settings"])
    assert found["differences"][0]["ppg"]["value"] == pytest.approx(first - other, abs=1e-12)
    table = pq.read_table(out / "study.parquet").to_pylist()
    assert table[1]["symmetric.ppg.value"] == other
    assert "none" in done.stdout
    assert "mask" in done.stdout
    assert str(out) in done.stdout


def test_a_second_call_trains_nothing_and_an_interrupted_one_goes_on(study, scenes, tmp_path):
    out, _ = study
    copy = tmp_path / "study"
    shutil.copytree(out, copy)
    times = {p: p.stat().st_mtime_ns for p in copy.glob("runs/*/run.json")}
    (lost,) = copy.glob("runs/mask-s0-reference")
    shutil.rmtree(lost)
    shutil.rmtree(copy / "evaluations" / "mask-s0")
    done = run("mitigate", *SETTINGS, f"data.dir={scenes}", f"out={copy}", *SMALL, "evaluate.k=5", "evaluate.ks=[1,5]")
    assert "4 runs: 1 to train, 3 finished" in done.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in times.items() if lost not in p.parents)
    one, two = (json.loads((folder / "study.json").read_text())["settings"] for folder in (out, copy))
    for first, second in zip(one, two, strict=True):
        for block in ("population", "null", "swapped", "symmetric", "corrected"):
            assert first[block] == second[block]


def test_a_failing_setting_is_named_and_the_others_are_kept(scenes, tmp_path):
    settings = ["+settings.good=['mitigation.text_mask=0.1']", "+settings.bad=['recipe.batch=200']"]
    done = run(
        "mitigate",
        *settings,
        f"data.dir={scenes}",
        f"out={tmp_path / 's'}",
        *SMALL,
        "evaluate.k=5",
        "evaluate.ks=[5]",
        check=False,
    )
    assert done.returncode == 1
    assert "bad-s0 (bad-s0-target" in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "s" / "study.json").read_text())
    assert [r["name"] for r in found["settings"]] == ["good"]
    assert "bad-s0" in found["failed"]


def test_a_sweep_is_collected_into_the_same_table(study, scenes, tmp_path):
    base = tmp_path / "multirun"
    run(
        "train",
        "-m",
        "side=target,reference",
        "mitigation.text_mask=0,0.5",
        f"data.dir={scenes}",
        f"hydra.sweep.dir={base}",
        *SMALL,
    )
    (base / "alone").mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(base / "0" / name, base / "alone" / name)
    text = (base / "alone" / "config.yaml").read_text()
    (base / "alone" / "config.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 9\n"))
    done = run("evaluate", f"sweep={base}", "k=5", "ks=[1,5]")
    assert "alone has no partner" in done.stderr
    rows = json.loads((base / "study.json").read_text())["settings"]
    assert [r["overrides"] for r in rows] == [["mitigation.text_mask=0"], ["mitigation.text_mask=0.5"]]
    expected = json.loads((study[0] / "study.json").read_text())["settings"]
    for row, other in zip(rows, expected, strict=True):
        assert row["symmetric"] == other["symmetric"]


def row(name, ppg, aucg, accuracy, size=100, seed=0):
    block = {"ppg": {"value": ppg}, "aucg": {"value": aucg}}
    return {
        "name": name,
        "train_size": size,
        "seed": seed,
        "symmetric": block,
        "utility": {"target": {"zeroshot_top1": accuracy, "t2i_r1": 0.5}},
    }


def test_the_frontier_of_a_made_up_table():
    rows = [
        row("none", 0.6, 0.3, 0.50),
        row("mask", 0.2, 0.1, 0.49),
        row("worse", 0.3, 0.1, 0.48),  # beaten by mask in PPG and accuracy
        row("mixed", 0.3, 0.05, 0.40),  # less AUCG than any
        row("twin", 0.2, 0.1, 0.49),  # as good as mask in everything: neither beats the other
    ]
    assert frontier(rows) == ["none", "mask", "mixed", "twin"]
    assert frontier([]) == []


def test_the_frontier_averages_seeds_and_takes_the_largest_size():
    rows = [
        row("none", 0.6, 0.3, 0.5),
        row("none", 0.4, 0.3, 0.5, seed=1),
        row("mask", 0.7, 0.3, 0.5),
        row("mask", 0.1, 0.3, 0.5, seed=1),  # mean 0.4 against 0.5
        row("small", 0.0, 0.0, 0.9, size=50),
    ]
    assert frontier(rows) == ["mask"]


def test_the_recommendation_keeps_its_rule():
    rows = [
        row("none", 0.6, 0.3, 0.50),
        row("mask", 0.3, 0.1, 0.49),
        row("hard", 0.1, 0.0, 0.40),
        row("noise", 0.55, 0.3, 0.5),
    ]

    def difference(name, low):
        return {"name": name, "train_size": 100, "ppg": {"value": 0.3, "ci95": [low, 0.5]}}

    found = [difference("mask", 0.2), difference("hard", 0.4), difference("noise", -0.01)]
    assert recommend(rows, found, 0.02) == "mask"  # hard costs ten points
    assert recommend(rows, found, 0.10) == "hard"
    assert recommend(rows, [difference("noise", -0.01)], 0.10) is None  # not distinguishable
    assert recommend([], [], 0.1) is None
