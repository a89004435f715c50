"""Random halves on tiny scenes: trained, pooled, tabulated by pair, resumed and refused; and planted wrong captions."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from dejavu_lit.report.evaluation import Evaluation
from dejavu_lit.study.halves import write_memorization
from tests.conftest import SMALL, call, run
from tests.models.tiny import write_clip
from tests.report.artifacts import FEW_FIGURES, make_evaluation

FEW = ["evaluate.k=5", "evaluate.ks=[5]", "evaluate.report.write=false", "evaluate.statistics.bootstrap=200"]
NONE = "+settings.none=['mitigation.text_mask=0']"


def options(scenes: Path, out: Path, *more: str) -> list[str]:
    return [NONE, f"data.dir={scenes}", f"out={out}", *SMALL, "recipe.epochs=1", *FEW, *more]


@pytest.fixture(scope="module")
def study(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("halves") / "study"
    done = call("mitigate", *options(scenes, out, "halves=4"))
    assert done.returncode == 0, done.stderr
    return out, done


def columns(evaluation: Path, file: str) -> list[dict]:
    rows = pq.read_table(evaluation / f"{file}.parquet").to_pylist()
    further = pq.read_table(evaluation / f"{file}.columns.parquet").to_pylist()
    return [
        row | {n: json.loads(v) for n, v in more.items() if n != "key"} for row, more in zip(rows, further, strict=True)
    ]


def test_every_half_has_a_row_and_all_have_a_pooled_one(study):
    out, done = study
    found = json.loads((out / "study.json").read_text())
    assert [(row["name"], row["half"], row["seed"]) for row in found["settings"]] == [("none", j, j) for j in range(4)]
    (pooled,) = found["pooled"]
    values = [row["symmetric"]["ppg"]["value"] for row in found["settings"]]
    assert pooled["symmetric"]["ppg"]["values"] == values
    half_width = 3.1824463 * np.std(values, ddof=1) / 2  # Student's t with 3 degrees of freedom
    low, high = pooled["symmetric"]["ppg"]["ci95"]
    assert [low, high] == pytest.approx([np.mean(values) - half_width, np.mean(values) + half_width])
    assert "4 halves" in pooled["found"]["words"]
    assert pooled["memorization"]["halves"] == 4
    assert 0 <= pooled["memorization"]["lira"]["auc"]["mean"] <= 1
    assert 0 <= pooled["membership"]["cosine"]["mean"] <= 1
    assert "Membership under none, over 4 halves and both directions" in done.stdout
    assert "│LiRA " in done.stdout
    assert "│RMIA " in done.stdout
    # Each half dealt the same pool, to two models that together saw all of it.
    pools = []
    for row in found["settings"]:
        evaluation = (out / row["metrics"]).parent
        a, b = ({r["key"] for r in columns(evaluation, file)} for file in ("records", "records_swapped"))
        assert len(a) == len(b) == 96
        pools.append((a, b))
    assert all(a | b == pools[0][0] | pools[0][1] and not a & b for a, b in pools)
    assert len({frozenset(a) for a, _ in pools}) == 4


def test_memorization_of_each_pair_against_plain_loops(study):
    out, _ = study
    table = {row["key"]: row for row in pq.read_table(out / "memorization.parquet").to_pylist()}
    assert len(table) == 192
    differences: dict[str, dict[str, list[float]]] = {key: {"hits": [], "alignment": []} for key in table}
    for row in json.loads((out / "study.json").read_text())["settings"]:
        evaluation = (out / row["metrics"]).parent
        for file in ("records", "records_swapped"):
            for record in columns(evaluation, file):
                for score, values in differences[record["key"]].items():
                    values.append(record[f"target_{score}"] - record[f"reference_{score}"])
    for key, by_score in differences.items():
        for score, values in by_score.items():
            assert table[key][f"{score}_halves"] == 4
            assert table[key][score] == pytest.approx(np.mean(values), abs=1e-12)
            assert table[key][f"{score}_se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(4), abs=1e-12)


def test_two_halves_without_membership_scores_say_what_they_do_not_show(tmp_path):
    for half in range(2):
        make_evaluation(tmp_path / str(half), seed=half, data=tmp_path / "data", settings=FEW_FIGURES)
    rows = [{"name": "none", "train_size": 40, "seed": h, "half": h, "metrics": f"{h}/metrics.json"} for h in range(2)]
    (figures,) = write_memorization(tmp_path, rows).values()
    assert (figures["halves"], figures["pairs"]) == (2, 80)
    assert -1 <= figures["reliability"].pop("hits") <= 1
    assert figures["reliability"] == {"alignment": None}
    assert figures["lira"] is figures["rmia"] is None
    assert list(figures["reasons"]) == ["reliability.alignment", "lira", "rmia"]
    table = pq.read_table(tmp_path / "memorization.parquet").to_pylist()
    assert {(row["setting"], row["train_size"], row["alignment"]) for row in table} == {("none", 40, None)}
    assert Counter(row["hits_halves"] for row in table) == {2: 79, 0: 1}  # one pair has no objects
    (tmp_path / "1" / "records_swapped.parquet").unlink()  # without B no model has missed a pair
    assert write_memorization(tmp_path, rows) == {}
    assert not (tmp_path / "memorization.parquet").exists()


def test_the_first_half_is_the_prepared_split_and_nothing_is_trained_twice(study, scenes):
    out, _ = study
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}
    assert len(before) == 8
    config = yaml.safe_load((out / "runs" / "none-s0-target" / "config.yaml").read_text())
    assert config["data"]["half"] == 0
    done = call("mitigate", *options(scenes, out, "halves=2"))
    assert done.returncode == 0, done.stderr
    assert "runs: 0 to train, 4 to reuse" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")} == before
    assert len(json.loads((out / "study.json").read_text())["settings"]) == 2


@pytest.mark.slow
def test_with_a_training_size_every_half_has_the_same_pairs(scenes, tmp_path):
    done = call("mitigate", *options(scenes, tmp_path, "halves=2", "sizes=[40]", "evaluate.membership.pairs=20"))
    assert done.returncode == 0, done.stderr
    pools, scored = [], []
    for row in json.loads((tmp_path / "study.json").read_text())["settings"]:
        assert row["train_size"] == 40
        assert row["exposure"]["target"]["mean"] == 32 / 40  # one epoch of two whole batches
        sides = [columns((tmp_path / row["metrics"]).parent, file) for file in ("records", "records_swapped")]
        pools.append({record["key"] for side in sides for record in side})
        scored.append([{r["key"] for r in side if r["target_cosine"] is not None} for side in sides])
    assert pools[0] == pools[1]
    assert len(pools[0]) == 80
    assert all(len(side) == 20 for sides in scored for side in sides)
    prepared = scored[0]
    for side in scored[1]:  # the draw of a dealt side has pairs of A and of B
        assert side - prepared[0]
        assert side - prepared[1]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["halves=0"], "halves=0 must be at least 1 and at most 1000"),
        (["halves=2", "seeds=[0,1]"], "gives every half its own seed"),
        (["halves=2", "gaps.reference=partner"], "halves= cannot measure gaps while training"),
    ],
)
def test_what_halves_cannot_do_is_refused(given, sentence, scenes, tmp_path):
    done = call("mitigate", *options(scenes, tmp_path / "study", *given))
    assert done.returncode == 1
    assert sentence in done.stderr


def test_listed_keys_are_refused(scenes, tmp_path):
    (tmp_path / "keys.txt").write_text("scene0000000\n")
    done = call("mitigate", *options(scenes, tmp_path / "study", "halves=2", f"evaluate.keys={tmp_path}/keys.txt"))
    assert done.returncode == 1
    assert "lists pairs of A, and every half deals them to both sides" in done.stderr
    assert not (tmp_path / "study").exists()


def test_listed_members_and_runs_of_different_halves_are_refused(study, scenes, tmp_path):
    out, _ = study
    keys = [f"scene{i:07d}" for i in range(96)]
    (tmp_path / "members.txt").write_text("\n".join(keys))
    data = [o for o in SMALL if o.startswith("data.")]
    run("prepare", f"data.dir={tmp_path / 'listed'}", f"keys.A={tmp_path / 'members.txt'}", *data)
    done = call("mitigate", *options(tmp_path / "listed", tmp_path / "study", "halves=2"))
    assert done.returncode == 1
    assert "membership was given, not drawn" in done.stderr
    runs = [f"target={out}/runs/none-s0-target", f"reference={out}/runs/none-s1-h1-reference"]
    done = call("evaluate", *runs, f"out={tmp_path / 'gap'}")
    assert done.returncode == 1
    assert "different random halves" in done.stderr


def test_a_half_is_measured_as_it_was_dealt_for_its_runs(study, tmp_path):
    """Leaving pairs out, or measuring fewer, deals no other A and B."""
    out, _ = study
    sides = [f"{side}={out}/runs/none-s1-h1-{side}" for side in ("target", "reference")]
    few = [option.removeprefix("evaluate.") for option in FEW]
    trained = {
        f: [r["key"] for r in columns(out / "evaluations/none-s1-h1", f)] for f in ("records", "records_swapped")
    }
    (tmp_path / "exclude.txt").write_text(trained["records"][0])
    done = call(
        "evaluate", *sides, *few, f"data.exclude={tmp_path}/exclude.txt", "data.train_size=50", f"out={tmp_path}/gap"
    )
    assert done.returncode == 0, done.stderr
    for file, keys in trained.items():
        measured = [row["key"] for row in columns(tmp_path / "gap", file)]
        assert measured == [key for key in keys[:50] if key != trained["records"][0]]
    own, _ = Evaluation.open(tmp_path / "gap").shards()
    assert set(own.keys()) >= set(trained["records"])


def test_runs_of_one_half_that_was_dealt_differently_are_refused(study, tmp_path):
    out, _ = study
    fewer = shutil.copytree(out / "runs/none-s1-h1-reference", tmp_path / "fewer")
    config = yaml.safe_load((fewer / "config.yaml").read_text())
    config["data"]["train_size"] = 40
    (fewer / "config.yaml").write_text(yaml.safe_dump(config))
    done = call("evaluate", f"target={out}/runs/none-s1-h1-target", f"reference={fewer}", f"out={tmp_path / 'gap'}")
    assert done.returncode == 1
    assert "half 1 was dealt to" in done.stderr


def test_the_base_of_every_half_may_be_any_model(study, tmp_path):
    out, _ = study
    runs = [f"{side}={out}/runs/none-s1-h1-{side}" for side in ("target", "reference")]
    few = [option.removeprefix("evaluate.") for option in FEW]
    for name in (f"local-dir:{write_clip(tmp_path / 'released')}", f"{out}/runs/none-s0-target"):
        done = call("evaluate", *runs, *few, f"base={name}", f"out={tmp_path / 'gap'}")
        assert done.returncode == 0, done.stderr
        base = json.loads((tmp_path / "gap/metrics.json").read_text())["base"]
        assert base["model"] == name
        assert -1 <= base["corrected"]["ppg"]["value"] <= 1
        assert ("was trained on pairs of the same data" in base["note"]) == name.endswith("-target")
        shutil.rmtree(tmp_path / "gap")


@pytest.mark.slow
def test_planted_truth_wrong_captions_and_repeats(tmp_path):
    """The caption of another scene can only be learned by heart, and what is seen more often is remembered better."""
    out = tmp_path / "study"
    run(
        "mitigate",
        NONE,
        "halves=2",
        f"out={out}",
        f"data.dir={tmp_path / 'scenes'}",
        "data.sizes={A: 600, B: 600, H: 100, V: 50, P: 800}",
        "data.reader.count=2150",
        "data.reader.mislabelled=0.1",
        "data.repeat.share=[0.15,0.15]",
        "data.repeat.times=[8,3]",
        "data.extra.single.count=100",
        "recipe.epochs=8",
        "evaluate.report.write=false",
    )
    table = {row["key"]: row for row in pq.read_table(out / "memorization.parquet").to_pylist()}
    rows = [row for file in ("records", "records_swapped") for row in columns(out / "evaluations" / "none-s0", file)]
    times = {row["key"]: round(row["exposure"] / 8) for row in rows}  # per epoch, of which a few pairs are left out
    assert sorted(set(times.values())) == [1, 3, 8]
    for score in (
        lambda row: row["target_alignment"] - row["reference_alignment"],
        lambda row: table[row["key"]]["alignment"],
    ):
        once = [row for row in rows if times[row["key"]] == 1]
        wrong, right = ([score(r) for r in once if bool(r["meta.mislabelled"]) is planted] for planted in (True, False))
        assert len(wrong) > 60
        assert np.mean([[a > b for b in right] for a in wrong]) > 0.6
        ordinary = [row for row in rows if not row["meta.mislabelled"]]
        means = [np.mean([score(row) for row in ordinary if times[row["key"]] == level]) for level in (1, 3, 8)]
        assert means == sorted(means)
