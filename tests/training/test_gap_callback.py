"""The gaps while training: the figures of an evaluation, a training left alone, a budget that stops it, resuming."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from dejavu_lit.data.objects import Annotation, Annotator, read_objects, write_objects
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.data.splits import seeded_hash
from dejavu_lit.evaluation.embeddings import Embeddings, write_embeddings
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.training.checkpoints import Checkpoints
from dejavu_lit.training.gap_sample import Images, Sample
from dejavu_lit.utils.run_directory import difference, identity
from tests.conftest import ROOT, SMALL, call

FIGURES = ("ppg", "prg", "aucg", "null_ppg", "corrected_ppg", "ppg_low", "ppg_high")


def options(scenes: Path, runs, *more: str) -> list[str]:
    """A target run whose gaps are measured after every epoch, on every record."""
    gaps = [f"gaps.reference={runs['reference']}", "gaps.every=1", "gaps.sample=1000", "gaps.public=null", "gaps.k=5"]
    return ["side=target", f"data.dir={scenes}", *SMALL, *gaps, *more]


def train(out: Path, *given: str) -> dict:
    """Train in this process, which must end well, and return run.json."""
    done = call("train", *given, f"out={out}")
    assert done.returncode == 0, done.stderr
    return json.loads((out / "run.json").read_text())


def evaluate(out: Path, target: str, reference: str, *more: str) -> dict:
    """metrics.json of an evaluation in this process."""
    given = [f"target={target}", f"reference={reference}", f"out={out}", "k=5", "ks=[5]", "report.write=false", *more]
    done = call("evaluate", *given)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "metrics.json").read_text())


def figures(metrics: dict) -> dict[str, float]:
    """An evaluation's figures under the names of a row."""
    population = metrics["population"]
    low, high = population["ppg"]["ci95"]
    return {name: population[name]["value"] for name in ("ppg", "prg", "aucg")} | {
        "null_ppg": metrics["null"]["ppg"]["value"],
        "corrected_ppg": metrics["corrected"]["ppg"]["value"],
        "ppg_low": low,
        "ppg_high": high,
    }


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without those of the clock and one that is just being written."""
    if not (folder / "metrics.csv").exists():
        return []
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if not (row["metric"] or "pairs/s").startswith("pairs/s")]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model" / "open_clip_model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def watched(scenes, runs, tmp_path_factory):
    """A run of four epochs with its gaps; the reference has checkpoints of two."""
    out = tmp_path_factory.mktemp("watched") / "run"
    return out, train(out, *options(scenes, runs, "recipe.epochs=4"))


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_figures_are_those_of_an_evaluation_at_that_epoch(watched, runs, tmp_path, epoch):
    out, record = watched
    row = record["gaps"]["rows"][epoch - 1]
    assert (row["epoch"], row["against"]) == (epoch, f"{runs['reference']}@{epoch}")
    metrics = evaluate(tmp_path / "e", f"{out}@{epoch}", f"{runs['reference']}@{epoch}")
    assert {name: row[name] for name in FIGURES} == figures(metrics)


def test_without_a_checkpoint_of_the_epoch_the_end_of_the_reference_is_taken(watched, runs, tmp_path):
    out, record = watched
    row = record["gaps"]["rows"][2]
    assert row["against"] == str(runs["reference"])
    assert {name: row[name] for name in FIGURES} == figures(evaluate(tmp_path / "e", f"{out}@3", runs["reference"]))


def test_the_loggers_get_every_figure_once_with_its_epoch(watched):
    out, record = watched
    rows = [row for row in logged(out) if row["metric"].startswith("gap/")]
    expected = [
        {"step": str(6 * epoch - 1), "epoch": str(epoch - 1), "metric": f"gap/{name}", "value": str(row[name])}
        for epoch, row in enumerate(record["gaps"]["rows"], 1)
        for name in FIGURES
    ]
    assert rows == expected
    assert 0 < record["gaps"]["seconds"] < record["seconds"]


def test_the_training_is_left_alone(watched, scenes, runs, tmp_path):
    out, record = watched
    plain = train(tmp_path / "run", "side=target", f"data.dir={scenes}", *SMALL, "recipe.epochs=4")
    assert same(weights(out), weights(tmp_path / "run"))
    assert [row for row in logged(out) if not row["metric"].startswith("gap/")] == logged(tmp_path / "run")
    assert "gaps" not in plain
    differing = ("gaps", "seconds", "pairs_per_second", "provenance")
    assert {k: v for k, v in plain.items() if k not in differing} == {
        k: v for k, v in record.items() if k not in differing
    }


def test_a_sample_gives_the_figures_of_its_records(watched, scenes, runs, tmp_path):
    """By the definitions, from the saved records of an evaluation, without any code of ours in between."""
    given = options(scenes, runs, "gaps.sample=30", "recipe.epochs=4", "mitigation.stop_epoch=1")
    (row,) = train(tmp_path / "run", *given)["gaps"]["rows"]
    evaluate(tmp_path / "e", f"{watched[0]}@1", f"{runs['reference']}@1")
    for name, file, where in (("ppg", "records", "A"), ("null_ppg", "records_null", "H")):
        records = {r["key"]: r for r in pq.read_table(tmp_path / "e" / f"{file}.parquet").to_pylist()}
        keys = [key for key in ShardSet.open(scenes / where).keys() if records[key]["objects"]]
        chosen = [records[keys[i]] for i in np.argsort(seeded_hash(keys, 0, "gaps"))[:30]]
        differences = [r["target_precision"] - r["reference_precision"] for r in chosen]
        signs = [np.sign(d) if abs(d) > 1e-9 else 0 for d in differences]
        assert row[name] == pytest.approx(sum(signs) / 30, abs=1e-12)


def test_a_larger_sample_holds_the_smaller_and_pairs_without_objects_are_left_out(scenes, tmp_path):
    shards = ShardSet.open(scenes / "A")
    keys = shards.keys()
    bare = set(keys[::3])
    rows = [
        Annotation(key, *(([], [], []) if key in bare else (["cat"], [0.9], [[0.0, 0.0, 1.0, 1.0]]))) for key in keys
    ]
    write_objects(tmp_path / "A" / "00000.parquet", rows, Annotator("test"))
    (objects,), _ = read_objects([tmp_path / "A"])
    small, large = (Sample.draw(shards, objects, count, keys) for count in (10, 40))
    assert (len(small.keys), len(large.keys)) == (10, 40)
    assert set(small.keys) < set(large.keys)
    assert not bare & set(large.keys)
    assert set(Sample.draw(shards, objects, 40, keys[:50]).keys) <= set(keys[:50])
    hashes = dict(zip(keys, seeded_hash(keys, 0, "gaps"), strict=True))
    assert max(hashes[k] for k in large.keys) <= min(hashes[k] for k in set(keys) - bare - set(large.keys))
    assert small.truth.keys == tuple(small.keys)


def test_public_images_are_encoded_as_for_an_evaluation_and_decoded_once(scenes, runs, tmp_path):
    from dejavu_lit.evaluation.embed import embed

    encoder, shards = load_encoder(str(runs["target"])), ShardSet.open(scenes / "P")
    images = Images(shards)
    saved = embed(encoder, shards, "image", tmp_path / "P-image")
    for _ in range(2):
        keys, vectors = images.vectors(encoder)
        assert keys == list(saved.keys)
        assert np.array_equal(vectors, saved.load())
    few = Images(shards, 30)  # the set is one chunk
    assert np.array_equal(few.vectors(encoder)[1], saved.load())
    shutil.copytree(scenes / "P", tmp_path / "P")
    moved = Images(ShardSet.open(tmp_path / "P"))
    before = moved.vectors(encoder)[1]
    shutil.rmtree(tmp_path / "P")
    assert np.array_equal(moved.vectors(encoder)[1], before)


def test_public_images_are_drawn_in_whole_chunks(scenes, runs):
    shards = ShardSet.open(scenes / "A")  # 96 pairs: a chunk of 64 and one of 32
    keys = shards.keys()
    encoder = load_encoder(str(runs["target"]))
    whole = dict(zip(*Images(shards).vectors(encoder), strict=True))
    assert list(whole) == keys
    drawn, vectors = Images(shards, 10).vectors(encoder)
    assert drawn in (keys[:64], keys[64:])
    assert all(np.array_equal(whole[key], vector) for key, vector in zip(drawn, vectors, strict=True))
    assert Images(shards, 65).vectors(encoder)[0] == keys


def test_saved_embeddings_stand_for_the_model_that_made_them(watched, scenes, runs, tmp_path):
    evaluate(tmp_path / "e", runs["target"], runs["reference"])
    (made,) = (runs["reference"] / "embeddings").glob("reference-*")
    for name in ("A", "H", "P"):
        for modality in ("text", "image"):
            if (made / f"{name}-{modality}").is_dir():
                shutil.copytree(made / f"{name}-{modality}", tmp_path / "given" / name / modality)
    assert Embeddings.open(tmp_path / "given" / "P" / "image").dim == 32
    given = f"gaps.reference=embeddings:{tmp_path / 'given'}"
    rows = train(tmp_path / "run", *options(scenes, runs, "recipe.epochs=4", given))["gaps"]["rows"]
    expected = watched[1]["gaps"]["rows"][2:]  # against the end of the reference
    assert [{n: row[n] for n in FIGURES} for row in rows[2:]] == [{n: row[n] for n in FIGURES} for row in expected]
    assert rows[0]["against"] == f"embeddings:{tmp_path / 'given'}"


def test_averaged_weights_are_measured_and_kept_as_the_epochs(scenes, runs, tmp_path):
    record = train(tmp_path / "run", *options(scenes, runs, "mitigation.ema=0.8"))
    for epoch in (1, 2):
        metrics = evaluate(tmp_path / f"e{epoch}", f"{tmp_path / 'run'}@{epoch}", f"{runs['reference']}@{epoch}")
        assert {name: record["gaps"]["rows"][epoch - 1][name] for name in FIGURES} == figures(metrics)
    train(tmp_path / "plain", *options(scenes, runs, "mitigation.ema=0.8", "gaps.reference=null"))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "plain"))


def test_every_epoch_of_a_run_has_exposure_and_utility_of_its_own(runs, tmp_path):
    end = evaluate(tmp_path / "end", runs["target"], runs["reference"])
    last = evaluate(tmp_path / "last", f"{runs['target']}@2", f"{runs['reference']}@2")
    first = evaluate(tmp_path / "first", f"{runs['target']}@1", f"{runs['reference']}@1")
    for name in ("population", "null", "swapped", "utility", "exposure"):
        assert last[name] == end[name], name
    assert first["exposure"] == {side: {"mean": 1.0, "min": 1, "max": 1} for side in ("target", "reference")}
    assert end["exposure"]["target"]["mean"] == 2.0
    for side in ("target", "reference"):
        assert first["utility"][side]["zeroshot_top1"] is not None
        assert first["utility"][side]["t2i_r10"] is not None
    assert first["population"] != end["population"]


@pytest.fixture(scope="module")
def budget(watched) -> tuple[int, float]:
    """An epoch before the last whose lower bound is the first to exceed a budget, and that budget."""
    lows = [row["ppg_low"] for row in watched[1]["gaps"]["rows"]]
    epoch = int(np.argmax(lows[1:3])) + 2
    exceeded = max(0.0, *lows[: epoch - 1])
    assert lows[epoch - 1] > exceeded, lows
    return epoch, (exceeded + lows[epoch - 1]) / 2


def test_the_budget_stops_the_training(watched, budget, scenes, runs, tmp_path):
    whole, record = watched
    epoch, limit = budget
    given = options(scenes, runs, "recipe.epochs=4", f"mitigation.gap_budget={limit}")
    stopped = train(tmp_path / "run", *given)
    row = record["gaps"]["rows"][epoch - 1]
    interval = [row["ppg_low"], row["ppg_high"]]
    assert stopped["stopped"] == {"by": "gap_budget", "epoch": epoch, "ppg": row["ppg"], "ci95": interval}
    assert stopped["gaps"]["rows"] == record["gaps"]["rows"][:epoch]
    assert (stopped["epochs"], stopped["steps"]) == (epoch, 6 * epoch)
    assert stopped["exposure"] == {"mean": epoch, "min": epoch, "max": epoch}
    kept = torch.load(whole / "checkpoints" / f"epoch={epoch:04d}.ckpt", weights_only=True)["state_dict"]
    ended = weights(tmp_path / "run")
    assert all(torch.equal(ended[name], kept[f"model.{name}"]) for name in ended)
    # Killed after it stopped and before it was finished: it stays stopped.
    rows = logged(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    again = train(tmp_path / "run", *given)
    assert (again["epochs"], again["steps"], again["stopped"]) == (epoch, 6 * epoch, stopped["stopped"])
    assert again["gaps"]["rows"] == stopped["gaps"]["rows"]
    assert again["exposure"] == stopped["exposure"]
    assert logged(tmp_path / "run") == rows
    assert same(weights(tmp_path / "run"), ended)
    done = call("train", *given, f"out={tmp_path / 'run'}")
    assert "finished" in done.stderr


def test_a_budget_that_is_not_reached_changes_nothing(watched, scenes, runs, tmp_path):
    record = train(tmp_path / "run", *options(scenes, runs, "recipe.epochs=4", "mitigation.gap_budget=0.99"))
    assert record["stopped"] is None
    assert same(weights(tmp_path / "run"), weights(watched[0]))


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_crash_around_the_checkpoint_of_an_epoch_leaves_no_row_twice(
    watched, scenes, runs, tmp_path, place, monkeypatch
):
    given = options(scenes, runs, "recipe.epochs=4", "trainer.checkpoint_steps=1")
    original = Checkpoints.on_train_epoch_end

    def crash(self, trainer, module):
        if place == "after" or trainer.current_epoch != 1:
            original(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyError("crashed here")

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", crash)
    with pytest.raises(KeyError, match="crashed here"):
        call("train", *given, f"out={tmp_path / 'run'}")
    monkeypatch.undo()
    assert [r["value"] for r in logged(tmp_path / "run") if r["metric"] == "gap/ppg"]  # it crashed after measuring
    record = train(tmp_path / "run", *given)
    assert record["gaps"]["rows"] == watched[1]["gaps"]["rows"]

    def measured(folder):
        return [row for row in logged(folder) if row["metric"].startswith(("gap/", "val_"))]

    assert measured(tmp_path / "run") == measured(watched[0])
    assert same(weights(tmp_path / "run"), weights(watched[0]))


def test_a_killed_run_goes_on_with_the_same_rows(scenes, runs, tmp_path):
    given = options(scenes, runs, "recipe.epochs=16", "gaps.every=2", "trainer.checkpoint_steps=1")
    given.append("trainer.checkpoint_epochs=100")
    train(tmp_path / "whole", *given)
    out = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "train.py"), *given, f"out={out}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while sum(row["metric"] == "gap/ppg" for row in logged(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "run.json").exists()
    record = train(out, *given)
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert len(whole["gaps"]["rows"]) == 8
    assert record["gaps"]["rows"] == whole["gaps"]["rows"]
    assert logged(out) == logged(tmp_path / "whole")
    assert same(weights(out), weights(tmp_path / "whole"))


def test_another_reference_in_the_middle_of_a_run_is_refused(scenes, runs, tmp_path):
    given = options(scenes, runs, "mitigation.stop_epoch=1")
    train(tmp_path / "run", *given)
    (tmp_path / "run" / "run.json").unlink()
    done = call("train", *given, f"gaps.reference={runs['reference']}@1", f"out={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "were measured against" in done.stderr


def test_two_processes_measure_once_and_stop_together(scenes, runs, tmp_path):
    # A reference that answers every caption with the same five images, which show what no other image does.
    objects, keys = tmp_path / "objects", ShardSet.open(scenes / "P").keys()
    _, annotator = read_objects([scenes / "objects/scenes/P"])
    for name in ("A", "H"):
        shutil.copytree(scenes / "objects/scenes" / name, objects / name)
    rows = [row for path in (scenes / "objects/scenes/P").glob("*") for row in pq.read_table(path).to_pylist()]
    changed = [row | ({"labels": ["nowhere"] * len(row["labels"])} if row["key"] in keys[:5] else {}) for row in rows]
    write_objects(objects / "P" / "00000.parquet", [Annotation(**row) for row in changed], annotator)
    vectors = np.where(np.isin(keys, keys[:5])[:, None], [1.0, 0.0], [0.0, 1.0])
    write_embeddings(tmp_path / "given" / "P" / "image", keys, vectors)
    for name in ("A", "H"):
        held = ShardSet.open(scenes / name).keys()
        write_embeddings(tmp_path / "given" / name / "text", held, np.tile([1.0, 0.0], (len(held), 1)))
    out = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given = options(scenes, runs, "trainer.devices=2", "recipe.epochs=3", "mitigation.gap_budget=0.05", f"out={out}")
    given += [f"gaps.reference=embeddings:{tmp_path / 'given'}", f"data.objects={objects}"]
    command = [*launcher, str(ROOT / "train.py"), *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text())
    assert (record["epochs"], record["steps"], record["plan"]["world"]) == (1, 6, 2)
    assert record["stopped"]["ci95"][0] > 0.05
    assert [row["metric"] for row in logged(out) if row["metric"].startswith("gap/")] == [f"gap/{n}" for n in FIGURES]


def test_a_reference_under_a_budget_trains_to_its_end(scenes, tmp_path):
    given = ["side=reference", f"data.dir={scenes}", *SMALL, "mitigation.gap_budget=0.1"]
    done = call("train", *given, f"out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "trains to its end" in done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["epochs"], record["stopped"]) == (2, None)


def test_a_reference_can_be_measured_on_its_own_set(scenes, runs, tmp_path):
    given = ["side=reference", f"data.dir={scenes}", *SMALL, f"gaps.reference={runs['target']}", "gaps.every=2"]
    row = train(tmp_path / "run", *given, "gaps.k=5")["gaps"]["rows"][0]
    metrics = evaluate(tmp_path / "e", runs["target"], runs["reference"])
    assert row["ppg"] == metrics["swapped"]["ppg"]["value"]
    assert row["null_ppg"] == -metrics["null"]["ppg"]["value"]


def test_a_study_trains_the_reference_first_and_stops_the_target_at_its_budget(scenes, tmp_path):
    given = ["+settings.budget=['mitigation.gap_budget=0']", f"data.dir={scenes}", *SMALL, "recipe.epochs=30"]
    given += ["trainer.checkpoint_epochs=100", "gaps.every=5", "gaps.sample=1000", "gaps.public=null", "gaps.k=5"]
    given += ["evaluate.k=5", "evaluate.ks=[5]", "evaluate.report.write=false", f"out={tmp_path / 's'}"]
    both = call("mitigate", "+settings.none=['mitigation.text_mask=0']", *given, "plan_only=true")
    assert "3 runs to train" in both.stdout  # one reference for both settings
    done = call("mitigate", *given)
    assert done.returncode == 0, done.stderr
    target = json.loads((tmp_path / "s/runs/budget-s0-target/run.json").read_text())
    stop = target["stopped"]["epoch"]
    reference = tmp_path / "s/runs/budget-s0-reference"
    assert target["gaps"]["rows"][-1]["against"] == f"{reference}@{stop}"
    assert target["epochs"] == stop < 30
    record = json.loads((reference / "run.json").read_text())
    assert (record["epochs"], record["stopped"], "gaps" in record) == (30, None, False)
    (row,) = json.loads((tmp_path / "s/study.json").read_text())["settings"]
    assert row["exposure"]["target"]["mean"] == row["exposure"]["reference"]["mean"] == stop
    assert row["population"]["ppg"]["value"] == target["stopped"]["ppg"]


def test_runs_are_one_whether_they_are_watched_or_not_unless_a_budget_may_end_them():
    def config(budget=None, **gaps):
        return {"side": "target", "mitigation": {"gap_budget": budget}, "gaps": {"every": 5, "reference": None, **gaps}}

    assert identity(config()) == identity(config(every=1, reference="runs/a"))
    assert identity(config(0.1)) == identity(config(0.1, reference="runs/a"))
    assert identity(config(0.1)) != identity(config(0.1, every=1))
    assert identity(config(0.1)) != identity(config())
    assert difference(config(0.1), config(0.1, every=1)) == "gaps.every: 5 → 1"
    assert difference(config(), config(every=1)) is None
    # Nothing ends a reference that is not measured itself: it is the one without a budget.
    assert identity(config(0.1) | {"side": "reference"}) == identity(config() | {"side": "reference"})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["gaps.reference=null", "mitigation.gap_budget=0.1"], "mitigation.gap_budget=0.1 needs a reference"),
        (["gaps.reference=/nowhere/run"], "there is no folder /nowhere/run"),
        (["gaps.reference=embeddings:/nowhere"], "/nowhere/P/image holds no embeddings"),
        (["gaps.reference={target}"], "was trained on A as this run is"),
        (["gaps.reference={unfinished}"], "is not finished"),
        (["gaps.every=3"], "gaps.every=3 is more than the 2 epochs"),
        (["gaps.sample=0"], "gaps.sample=0 must be at least 1"),
        (["gaps.every=often"], "gaps.every=often must be a whole number"),
        (["gaps.k=65"], "k=65"),
        (["gaps.refrence=x"], "gaps.reference"),
        (["mitigation.gap_budget=1.5"], "mitigation.gap_budget=1.5"),
    ],
)
def test_a_users_mistake_is_one_sentence(scenes, runs, tmp_path, given, words):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(runs["reference"] / "config.yaml", unfinished)
    filled = [option.format(target=runs["target"], unfinished=unfinished) for option in given]
    done = call("train", *options(scenes, runs, *filled), f"out={tmp_path / 'run'}")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()
