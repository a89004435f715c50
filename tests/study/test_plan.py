"""The plan of a study and its trainings, with configurations and directories but no models."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.evaluation.settings import EvaluationSettings
from dejavu_lit.measure.figures import BLOCKS
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.study.cells import Cell, evaluation_request, folder_name, match_stop_epoch
from dejavu_lit.study.plan import PlannedRow, make_plan
from dejavu_lit.study.runs import failure_reason, locked_log, train_here, train_missing
from dejavu_lit.study.sweep import pair_runs
from dejavu_lit.study.table import evaluate_cells, knobs, read_study, write_study
from dejavu_lit.training.settings import GapSettings, Recipe, TrainerSettings, TrainingRun
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked, read_json, write_json
from dejavu_lit.utils.run_directory import RunDirectory


def config(side="target", seed=0, size=100, epochs=20, gaps=None, trainer=None, **mitigation):
    return TrainingRun(
        data=DataSpec("made", "nowhere", train_size=size),
        model=ModelSpec("tiny"),
        recipe=Recipe(epochs=epochs, batch=10, lr=0.1),
        mitigation=Mitigation(**mitigation),
        trainer=trainer or TrainerSettings(checkpoint_epochs=10),
        gaps=gaps or GapSettings(),
        side=side,
        seed=seed,
    )


def planned(name, evaluation=None, seed=0, size=100, epochs=20, every=None, **mitigation):
    watched = GapSettings(reference="partner", every=every) if every else GapSettings()
    runs = {
        side: config(side, seed, size, epochs, watched if side == "target" else None, **mitigation)
        for side in ("target", "reference")
    }
    row = {"name": name, "overrides": (f"{name}=1",), "train_size": size, "seed": seed}
    return PlannedRow(**row, runs=runs, evaluation=evaluation or EvaluationSettings())


def finish(path, saved, kept=()):
    RunDirectory(path).save(saved)
    write_json(path / "run.json", {"schema": 1, "seconds": 10.0, "epochs": saved.recipe.epochs})
    (path / "checkpoints").mkdir(exist_ok=True)
    for epoch in kept:
        (path / "checkpoints" / f"epoch={epoch:04d}.ckpt").touch()


def targets(plan):
    return [(cell.target.name, cell.epochs) for cell in plan.cells]


def test_equal_runs_and_equal_evaluations_are_shared(tmp_path):
    rows = [
        planned("none"),
        planned("same"),
        planned("k5", EvaluationSettings(k=5)),
        planned("mask", text_mask=0.5),
        planned("none", seed=1),
    ]
    plan = make_plan(tmp_path, rows)
    assert [cell.target.name for cell in plan.cells] == [
        "none-n100-s0-target", "none-n100-s0-target", "none-n100-s0-target", "mask-n100-s0-target", "none-n100-s1-target"
    ]  # fmt: skip
    assert len(plan.runs) == len(plan.to_train) == 6
    assert [cell.folder.name for cell in plan.cells[:3]] == ["none-n100-s0", "none-n100-s0", "k5-n100-s0"]
    assert list(plan.evaluations.values()) == [False] * 4


def test_stop_epochs_are_checkpoints_that_the_longest_run_keeps(tmp_path):
    rows = [
        planned("stop5", stop_epoch=5),
        planned("none"),
        planned("stop7", stop_epoch=7),
        planned("all", stop_epoch=20),
    ]
    plan = make_plan(tmp_path, rows)
    both = {"target": 5, "reference": 5}
    assert targets(plan) == [
        ("none-n100-s0-target", both),
        ("none-n100-s0-target", {}),
        ("none-n100-s0-target", {"target": 7, "reference": 7}),
        ("none-n100-s0-target", {}),  # stopping at the end is not stopping
    ]
    assert [run.trainer.checkpoint_at for run in plan.runs.values()] == [(5, 7)] * 2
    assert plan.cells[0].model_name("reference") == f"{tmp_path}/runs/none-n100-s0-reference@5"
    assert rows[1].runs["target"].trainer.checkpoint_at == ()  # the input is not modified


def test_checkpoints_contain_the_averaged_weights_so_stop_epochs_with_ema_are_not_trained(tmp_path):
    plan = make_plan(tmp_path, [planned("none", ema=0.99), planned("stop", stop_epoch=5, ema=0.99)])
    assert len(plan.runs) == 2
    assert plan.cells[1].epochs == {"target": 5, "reference": 5}


def test_a_gap_budget_stops_only_the_target(tmp_path):
    budget = planned("budget", every=5, gap_budget=0.1)
    both = planned("both", every=5, gap_budget=0.1, stop_epoch=10)
    plan = make_plan(tmp_path, [planned("none"), budget, both])
    assert [path.name for path in plan.runs] == [
        "none-n100-s0-target", "none-n100-s0-reference", "budget-n100-s0-target", "both-n100-s0-target"
    ]  # fmt: skip
    assert plan.cells[2].epochs == {"reference": 10}
    assert plan.runs[plan.cells[0].reference].trainer.checkpoint_at == (5, 10, 15, 20)


def budgeted(every=5):
    return planned("budget", every=every, gap_budget=0.1)


def begin(path, settings):
    RunDirectory(path).save(settings)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "last.ckpt").touch()


def test_a_started_reference_that_keeps_no_checkpoints_for_a_budget_is_refused(tmp_path):
    begin(tmp_path / "runs" / "none-n100-s0-reference", config("reference"))
    with pytest.raises(UserError, match=r"kept no checkpoint of epoch 5, 15; set gaps\.every"):
        make_plan(tmp_path, [budgeted()])


def test_a_finished_reference_without_the_checkpoints_of_a_budget_is_refused(tmp_path):
    finish(tmp_path / "runs" / "none-n100-s0-reference", config("reference"), kept=[10])
    with pytest.raises(UserError, match=r"kept no checkpoint of epoch 5, 15; set gaps\.every"):
        make_plan(tmp_path, [budgeted()])
    make_plan(tmp_path, [budgeted(every=10)])  # epoch 20 is the end of the reference


def test_runs_that_may_stop_early_are_trained(tmp_path):
    own = {"early_stopping": "loss"}
    plan = make_plan(tmp_path, [planned("none", **own), planned("stop", stop_epoch=5, **own)])
    assert len(plan.runs) == 4
    assert all(not cell.epochs for cell in plan.cells)


def test_a_different_horizon_or_knob_is_a_different_run(tmp_path):
    rows = [
        planned("none"),
        planned("short", epochs=10),
        planned("mask", text_mask=0.5, stop_epoch=10),
        planned("n", size=50),
    ]
    assert all(not cell.epochs for cell in make_plan(tmp_path, rows).cells)


def test_finished_runs_are_found_by_what_they_compute(tmp_path):
    for side in ("target", "reference"):
        finish(tmp_path / "runs" / f"old-{side}", config(side), kept=[10])
    plan = make_plan(tmp_path, [planned("renamed"), planned("stop10", stop_epoch=10), planned("stop5", stop_epoch=5)])
    assert targets(plan) == [
        ("old-target", {}),
        ("old-target", {"target": 10, "reference": 10}),
        ("stop5-n100-s0-target", {}),  # the finished run has no checkpoint of epoch 5
    ]
    assert [path.name for path in plan.to_train] == ["stop5-n100-s0-target", "stop5-n100-s0-reference"]


def test_a_shorter_run_is_read_off_an_unfinished_one_only_if_that_keeps_the_checkpoint(tmp_path):
    for side in ("target", "reference"):
        unfinished = config(side, trainer=TrainerSettings(checkpoint_epochs=10, checkpoint_at=(8,)))
        begin(tmp_path / "runs" / f"none-n100-s0-{side}", unfinished)
    plan = make_plan(tmp_path, [planned("none"), *(planned(f"stop{n}", stop_epoch=n) for n in (8, 9))])
    assert [cell.epochs.get("target") for cell in plan.cells] == [None, 8, None]
    assert [path.name for path in plan.to_train if "target" in path.name] == [
        "none-n100-s0-target",
        "stop9-n100-s0-target",
    ]


def test_an_evaluation_with_other_settings_gets_its_own_folder(tmp_path):
    def evaluated(evaluation):
        (cell,) = make_plan(tmp_path, [planned("none", evaluation)]).cells
        return cell, make_plan(tmp_path, [planned("none", evaluation)]).evaluations[cell.folder]

    flat = EvaluationSettings()
    first, complete = evaluated(flat)
    assert (first.folder.name, complete) == ("none-n100-s0", False)
    write_json(first.folder / "metrics.json", {})
    write_json(first.folder / "asked.json", evaluation_request(first))
    assert not evaluated(flat)[1]  # its records are missing
    (first.folder / "records.parquet").touch()
    assert evaluated(replace(flat, workers=4))[0].folder == first.folder
    assert evaluated(replace(flat, workers=4))[1]
    fewer, complete = evaluated(replace(flat, k=5))  # only the statistics change: recomputed in the same folder
    assert (fewer.folder, complete) == (first.folder, False)
    approximate, complete = evaluated(replace(flat, index="ivf"))
    assert approximate.folder.name.startswith("none-n100-s0-")
    assert not complete


def test_an_evaluation_that_fails_stays_to_be_done(tmp_path):
    (cell,) = make_plan(tmp_path, [planned("none")]).cells
    write_json(cell.folder / "metrics.json", {})
    write_json(cell.folder / "asked.json", evaluation_request(cell))
    (cell.folder / "records.parquet").touch()
    (changed,) = make_plan(tmp_path, [planned("none", EvaluationSettings(k=5))]).cells
    assert evaluate_cells(tmp_path, [changed], {})[1].keys() == {changed.label}  # its runs were not trained
    assert not make_plan(tmp_path, [planned("none", EvaluationSettings(k=5))]).evaluations[changed.folder]


def test_one_side_may_be_a_finished_run_and_the_other_a_checkpoint(tmp_path):
    finish(tmp_path / "runs" / "early-target", config("target", stop_epoch=5))
    plan = make_plan(tmp_path, [planned("none"), planned("early", stop_epoch=5)])
    assert plan.cells[1].target.name == "early-target"
    assert plan.cells[1].epochs == {"reference": 5}


def test_a_folder_of_another_run_is_refused(tmp_path):
    other = tmp_path / "runs" / "mask-n100-s0-target"
    RunDirectory(other).save(config(text_mask=0.3))
    make_plan(tmp_path, [planned("mask", text_mask=0.5)])  # nothing was trained there: it is taken over
    (other / "checkpoints").mkdir()
    (other / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"other settings \(mitigation.text_mask: 0.3 → 0.5\)"):
        make_plan(tmp_path, [planned("mask", text_mask=0.5)])


def test_a_launcher_trains_the_unfinished_runs_and_failures_keep_their_messages(tmp_path, caplog, monkeypatch):
    trained = {"done": (1, 100), "good": (20, 100), "bad": (20, 100), "silent": (40, 50)}  # epochs, pairs
    runs = {tmp_path / name: config(epochs=epochs, size=pairs) for name, (epochs, pairs) in trained.items()}
    minutes = SimpleNamespace(perf_counter=count(0, 60).__next__)  # each training takes one
    monkeypatch.setattr("dejavu_lit.study.runs.time", minutes)
    finish(tmp_path / "done", runs[tmp_path / "done"])
    launched = []

    def launcher(paths):
        for path in paths:
            launched.append(path.name)
            assert yaml.safe_load((path / "config.yaml").read_text())["seed"] == 0
            if path.name == "good":
                write_json(path / "run.json", {"schema": 1})
            yield path, "no disk" if path.name == "bad" else None

    with caplog.at_level("INFO"):
        failed = train_missing(runs, launcher)
    assert launched == ["good", "bad", "silent"]
    assert failed[tmp_path / "bad"] == "no disk"
    assert "ended without writing run.json" in failed[tmp_path / "silent"]
    assert set(failed) == {tmp_path / "bad", tmp_path / "silent"}
    assert "1 of 3 runs trained, about 2 min left" in caplog.text
    assert "1 of 3 runs trained, 1 failed, about 2 min left" in caplog.text
    assert caplog.messages[-1] == "1 of 3 runs trained, 2 failed"


def test_without_an_unfinished_run_no_launcher_is_needed(tmp_path):
    finish(tmp_path / "done", config())

    def launcher(paths):
        raise UserError("launcher=slurm needs SLURM's commands (squeue, sbatch) on this machine")
        yield

    assert train_missing({tmp_path / "done": config()}, launcher) == {}


def test_a_log_is_locked_until_the_training_that_writes_it_ends_even_without_its_launcher(tmp_path, caplog):
    with locked_log(tmp_path) as lock:
        training = subprocess.Popen(["sleep", "0.5"], pass_fds=(lock,))
    with caplog.at_level("INFO"), locked_log(tmp_path):
        assert training.wait(timeout=10) == 0
    assert "waiting for the training" in caplog.text
    with caplog.at_level("INFO"), locked_log(tmp_path):  # free at once
        assert caplog.text.count("waiting") == 1


def test_a_log_is_free_when_its_training_has_ended_although_a_command_of_it_still_writes(tmp_path, caplog, monkeypatch):
    training = tmp_path / "training"
    training.write_text(
        f"#!{sys.executable}\nimport subprocess\nprint(subprocess.Popen(['sleep', '30']).pid, flush=True)\n"
    )
    training.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(training))
    assert list(train_here([tmp_path])) == [(tmp_path, None)]
    command = int((tmp_path / "training.log").read_text())
    try:
        with caplog.at_level("INFO"), locked_log(tmp_path):
            assert "waiting" not in caplog.text
    finally:
        os.kill(command, signal.SIGKILL)


def test_why_a_training_failed():
    log_file = Path("runs/a/training.log")
    output = "loading\nerror: the first\nmore\nerror: the disk is full; free some\nbye\n"
    assert failure_reason(output, 1, log_file) == "the disk is full; free some"
    assert (
        failure_reason("Traceback\nValueError: wrong\n", 1, log_file)
        == f"exited with code 1: ValueError: wrong; see {log_file}"
    )
    assert failure_reason("", 2, log_file) == f"exited with code 2: no output; see {log_file}"
    assert failure_reason("epoch 3\n", -9, log_file).startswith("killed by SIGKILL, often because memory ran out")


def test_a_row_has_the_value_of_every_knob(tmp_path):
    RunDirectory(tmp_path).save(config(text_mask=0.3))
    values = knobs(tmp_path)
    assert (values["text_mask"], values["weight_decay"], values["stop_epoch"]) == (0.3, 0.2, 20)
    assert (values["logit_scale_max"], values["logit_scale_init"]) == (100.0, 14.2857)
    assert knobs(tmp_path, epoch=5)["stop_epoch"] == 5
    assert knobs(tmp_path / "nothing") == {}
    siglip = replace(config().model, config={"embed_dim": 8, "init_logit_scale": 2.3026})
    RunDirectory(tmp_path / "siglip").save(replace(config(), model=siglip))
    assert knobs(tmp_path / "siglip")["logit_scale_init"] == pytest.approx(10, abs=1e-3)


def test_a_setting_that_cannot_be_compared_does_not_cost_the_table(tmp_path):
    rows = []
    for name in ("none", "mask"):
        folder = tmp_path / "evaluations" / name
        settings = {"objects": str(tmp_path / "objects"), "threshold": 0.5, "top_m": None}
        write_json(folder / "context.json", {"public": "scenes"})
        write_json(folder / "metrics.json", {"k": 1, "settings": settings})  # without records
        row = {"name": name, "overrides": [], "train_size": 9, "seed": 0, "utility": None}
        rows.append({**row, **dict.fromkeys(BLOCKS), "metrics": f"evaluations/{name}/metrics.json"})
    study = write_study(tmp_path, rows, {}, 0.02)
    assert study["differences"] == []
    (failure,) = study["incomparable"]
    assert (failure["name"], failure["against"]) == ("mask", "none")
    assert failure["reason"]
    assert [pooled["difference"] for pooled in study["pooled"]] == [None, None]
    table = pq.read_table(tmp_path / "study.parquet", columns=["name", "overrides"])
    assert table.to_pylist() == [{"name": name, "overrides": "[]"} for name in ("none", "mask")]  # lists as JSON


def test_a_setting_of_another_size_than_the_default_is_listed_as_incomparable(tmp_path):
    rows = [
        {"name": name, "overrides": [], "train_size": size, "seed": 0, "utility": None, **dict.fromkeys(BLOCKS)}
        for name, size in (("none", 96), ("without_copies", 91))
    ]
    study = write_study(tmp_path, [{**row, "metrics": "metrics.json"} for row in rows], {}, 0.02)
    assert study["differences"] == []
    (failure,) = study["incomparable"]
    assert (failure["name"], failure["against"], failure["train_size"]) == ("without_copies", "none", 91)
    assert "none has no result for 91 pairs, seed 0 and half 0" in failure["reason"]


def test_a_study_without_a_setting_is_not_read(tmp_path):
    write_json(tmp_path / "study.json", {"schema": 1, "settings": []})
    with pytest.raises(UserError, match=r"study\.json has no settings; run dejavu mitigate again"):
        read_study(tmp_path / "study.json")


def test_a_study_that_did_not_change_keeps_its_file(tmp_path):
    study = write_study(tmp_path, [], {"none-s0": "it failed"}, 0.02)
    path = tmp_path / "study.json"
    earlier = {**study, "provenance": {**study["provenance"], "created": "earlier"}}
    write_json(path, earlier)
    assert write_study(tmp_path, [], {"none-s0": "it failed"}, 0.02) == earlier == read_json(path)
    assert write_study(tmp_path, [], {"none-s0": "killed"}, 0.02) == read_json(path) != earlier
    path.write_text("{")
    assert write_study(tmp_path, [], {"none-s0": "killed"}, 0.02) == read_json(path)


def test_without_a_result_of_the_default_nothing_takes_its_place(tmp_path):
    """The first planned setting of the same evaluations is the default; without a result, no other is recommended."""
    rows = [
        {"name": name, "overrides": [], "train_size": 96, "seed": 0, "utility": None, **dict.fromkeys(BLOCKS)}
        for name in ("mask", "strong")
    ]
    rows = [{**row, "metrics": "metrics.json"} for row in rows]
    cells = make_plan(tmp_path, [replace(planned(name), overrides=()) for name in ("none", "mask", "strong")]).cells
    study = write_study(tmp_path, rows, {"none-s0": "it failed"}, 0.02, cells)
    assert [failure["against"] for failure in study["incomparable"]] == ["none", "none"]
    assert [entry["default"] for entry in study["ranking"]] == ["none"]
    assert study["recommended"] is None


@pytest.mark.parametrize("names", [("mask", "strong"), ("strong", "mask")])
def test_settings_that_take_the_names_of_others_share_no_folder(tmp_path, names):
    """Begun as mask 0.3 and strong 0.5, then corrected to 0.5 and 0.8: the run of 0.5 is called strong."""
    for path, run in make_plan(
        tmp_path, [planned("mask", text_mask=0.3), planned("strong", text_mask=0.5)]
    ).runs.items():
        RunDirectory(path).path.mkdir(parents=True)
        RunDirectory(path).save(run)
    masks = {"mask": 0.5, "strong": 0.8}
    plan = make_plan(tmp_path, [planned(name, text_mask=masks[name]) for name in names])
    assert len(plan.runs) == 4
    for cell in plan.cells:
        for path in (cell.target, cell.reference):
            assert plan.runs[path].mitigation.text_mask == masks[cell.name]


def test_a_run_that_has_not_begun_keeps_the_checkpoints_of_new_settings(tmp_path):
    for path, run in make_plan(tmp_path, [planned("none")]).runs.items():
        RunDirectory(path).path.mkdir(parents=True)
        RunDirectory(path).save(run)
    plan = make_plan(tmp_path, [planned("none"), planned("stop7", stop_epoch=7)])
    assert targets(plan)[1] == ("none-n100-s0-target", {"target": 7, "reference": 7})
    assert [run.trainer.checkpoint_at for run in plan.runs.values()] == [(7,)] * 2


def test_a_training_at_work_keeps_its_settings(tmp_path):
    """It has no checkpoint yet; whoever asks for other settings in its directory is refused."""
    path, launched = tmp_path / "run", []
    path.mkdir()
    RunDirectory(path).save(config(text_mask=0.3))

    def launcher(paths):
        launched.extend(paths)
        for path in paths:
            yield path, "it failed"

    with locked(path / ".lock"):
        with pytest.raises(UserError, match=r"text_mask: 0\.3 → 0\.5"):
            train_missing({path: config(text_mask=0.5)}, launcher)
        with pytest.raises(UserError, match="is being trained without keeping epoch 7"):
            train_missing({path: config(text_mask=0.3, trainer=TrainerSettings(checkpoint_at=(7, 10)))}, launcher)
        assert launched == []
        train_missing(
            {path: config(text_mask=0.3, trainer=TrainerSettings(checkpoint_at=(10,)))}, launcher
        )  # which it keeps
    assert launched == [path]
    train_missing({path: config(text_mask=0.5)}, launcher)  # it is gone
    assert RunDirectory(path).read(TrainingRun).mitigation.text_mask == 0.5


def test_a_started_run_gets_new_limits_of_its_loader_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    RunDirectory(path).save(config())
    (path / "checkpoints" / "last.ckpt").touch()
    loader = replace(TrainerSettings().loader, prefetch=1, workers=7)
    trainer = TrainerSettings(loader=loader, timeout_min=99, devices=2, checkpoint_at=(3,))
    train_missing({path: config(trainer=trainer)}, lambda paths: ((path, None) for path in paths))
    saved, before = RunDirectory(path).read(TrainingRun), config()
    assert saved == replace(
        before,
        trainer=replace(before.trainer, timeout_min=99, loader=replace(before.trainer.loader, prefetch=1)),
    )


def test_a_started_run_of_a_study_that_was_moved_finds_its_gap_reference(tmp_path):
    path = tmp_path / "run"
    begin(path, config(gaps=GapSettings(reference="old/reference", k=5)))
    plan = config(gaps=GapSettings(reference="new/reference", k=7))
    train_missing({path: plan}, lambda paths: ((path, None) for path in paths))
    assert RunDirectory(path).read(TrainingRun).gaps == GapSettings(reference="new/reference", k=5)


def measured(pairs):
    """metrics.json of an evaluation, as far as a study reads it."""
    return {
        **dict.fromkeys((*BLOCKS, "utility", "exposure")),
        "settings": {},
        "counts": {"records": pairs - 1, "without_objects": 1},
    }


def test_the_size_of_a_row_is_the_number_of_pairs_of_its_training_set(tmp_path, monkeypatch):
    """However many are measured, and although dedup or a half leaves some out; without a result of half 0, too."""
    settings = {
        "none": (96, config(size=None)),
        "dedup": (91, config(size=None, dedup=True)),
        "fewer": (50, config(size=50)),
        "dealt": (94, config(size=None, text_mask=0.5)),
    }
    cells = []
    for name, (trained, run) in settings.items():
        half = int(name == "dealt")
        for side in ("target", "reference"):
            path = tmp_path / f"{name}-{side}"
            RunDirectory(path).save(replace(run, side=side, data=replace(run.data, half=half)))
            write_json(path / "run.json", {"schema": 1, "seconds": 1.0, "epochs": 20, "train_size": trained})
        paths = {side: tmp_path / f"{name}-{side}" for side in ("target", "reference")}
        folder = tmp_path / "evaluations" / name
        cells.append(Cell(name=name, overrides=(), train_size=None, seed=0, half=half, folder=folder, **paths))
    monkeypatch.setattr("dejavu_lit.study.table.run_evaluation", lambda *_: measured(20))
    rows, failures = evaluate_cells(tmp_path, cells, {})
    assert failures == {}
    assert {row["name"]: row["train_size"] for row in rows} == {"none": 96, "dedup": 96, "fewer": 50, "dealt": 96}
    monkeypatch.setattr("dejavu_lit.study.table.run_evaluation", lambda *_: measured(96))
    (raw, *_), _ = evaluate_cells(tmp_path, cells[:1], {})
    assert raw["train_size"] == 96


@pytest.mark.parametrize(
    ("stopped", "epochs", "compared", "warned"),
    [
        ({"by": "gap_budget", "epoch": 10}, {}, {"reference": 10}, False),
        ({"by": "gap_budget", "epoch": 20}, {}, {}, False),  # where the reference ended: it needs no checkpoint
        ({"by": "gap_budget", "epoch": 15}, {}, {}, True),  # of which the reference kept none
        ({"by": "early_stopping", "epoch": 10}, {}, {}, False),
        ({"by": "gap_budget", "epoch": 10}, {"target": 5, "reference": 5}, {"target": 5, "reference": 5}, False),
        (None, {}, {}, False),
    ],
)
def test_a_target_that_a_budget_stopped_is_compared_with_that_epoch_of_the_reference(
    stopped, epochs, compared, warned, tmp_path, caplog
):
    for side in ("target", "reference"):
        finish(tmp_path / side, config(side, epochs=20), kept=[5, 10])
    write_json(tmp_path / "target" / "run.json", {"schema": 1, "epochs": 20, "stopped": stopped})
    sides = {side: tmp_path / side for side in ("target", "reference")}
    cell = Cell(name="b", overrides=(), train_size=None, seed=0, epochs=epochs, **sides)
    assert match_stop_epoch(cell) == replace(cell, epochs=compared)
    assert ("has no checkpoint of it" in caplog.text) == warned


def test_rows_of_two_halves_with_one_seed_are_compared_half_by_half(tmp_path):
    rows = [
        {
            "name": name,
            "overrides": [],
            "train_size": 9,
            "seed": 0,
            "half": half,
            "metrics": f"{name}-{half}/metrics.json",
        }
        for name, half in (("none", 0), ("mask", 0), ("mask", 1))
    ]
    rows = [{**row, "utility": None, **dict.fromkeys(BLOCKS)} for row in rows]
    first, second = write_study(tmp_path, rows, {}, 0.02)["incomparable"]
    assert (first["half"], second["half"]) == (0, 1)
    assert "has no result" not in first["reason"]
    assert "none has no result for 9 pairs" in second["reason"]


def test_folder_names():
    assert folder_name("mask 0.5/é", 500, 1) == "mask-0.5-n500-s1"
    assert folder_name("x" * 100, None, 0) == "x" * 100 + "-s0"
    others = [folder_name(name, None, 0) for name in ("..", "红", "蓝", "x" * 300 + "1", "x" * 300 + "2")]
    assert len(set(others)) == 5
    assert [name[:8] for name in others] == ["setting-"] * 3 + ["x" * 8] * 2
    assert all(len(name) < 120 for name in others)


def test_a_sweep_in_the_order_of_its_jobs(tmp_path):
    jobs = [(s, m) for m in (0.5, *(i / 100 for i in range(5))) for s in ("target", "reference")]
    for number, (side, mask) in enumerate(jobs):  # 12 jobs: 10 comes after 2
        finish(tmp_path / str(number), config(side, text_mask=mask))
    finish(tmp_path / "12", config("target", seed=3))
    finish(tmp_path / "again", config("target", text_mask=0.5))
    RunDirectory(tmp_path / "13").save(config("reference", seed=3))
    cells, skipped = pair_runs(tmp_path)
    assert [cell.name for cell in cells] == [f"mitigation.text_mask={m}" for m in (0.5, 0.0, 0.01, 0.02, 0.03, 0.04)]
    assert cells[0].overrides == ("mitigation.text_mask=0.5",)
    assert [text.removeprefix(f"{tmp_path}/").split(" ")[0] for text in skipped] == ["13", "again", "12"]
    with pytest.raises(UserError, match="has no finished runs"):
        pair_runs(tmp_path / "none")


def test_settings_of_a_sweep_that_differ_only_in_case_or_signs_have_folders_of_their_own(tmp_path):
    for number, template in enumerate(["a photo of {}", "a photo of {}!", "A photo of {}"]):
        for side in ("target", "reference"):
            run = config(side)
            finish(tmp_path / f"{side}{number}", replace(run, data=replace(run.data, templates=[template])))
    cells, _ = pair_runs(tmp_path)
    assert len({cell.label.casefold() for cell in cells}) == 3


@pytest.mark.parametrize(("seeds", "settings"), [((0,), 1), ((0, 1), 2)])
def test_halves_of_a_sweep_are_one_setting_if_each_has_one_seed(tmp_path, seeds, settings):
    for half in (0, 1):
        for seed in seeds:
            for side in ("target", "reference"):
                run = config(side, seed)
                finish(tmp_path / f"{half}{seed}{side}", replace(run, data=replace(run.data, half=half)))
    cells, _ = pair_runs(tmp_path)
    assert [(cell.half, cell.seed) for cell in cells] == [(half, seed) for half in (0, 1) for seed in seeds]
    assert len({cell.name for cell in cells}) == settings
    assert len({cell.label for cell in cells}) == len(cells)


def test_a_sweep_ignores_settings_that_are_not_of_runs(tmp_path):
    for side in ("target", "reference"):
        finish(tmp_path / side, config(side))
        copy = tmp_path / side / "wandb" / "run-20261128_1200-x" / "files"
        copy.mkdir(parents=True)
        (copy / "config.yaml").write_text("wandb_version: 1\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("name: other\n")
    (cell,), (skipped,) = pair_runs(tmp_path)
    assert cell.target == tmp_path / "target"
    assert skipped.startswith(str(tmp_path / "other" / "config.yaml"))
    (tmp_path / "other" / "run.json").touch()
    with pytest.raises(UserError, match="has version 1 of the settings"):
        pair_runs(tmp_path)


def test_a_sweep_distinguishes_options_that_change_figures(tmp_path):
    configs = [
        config(side, gaps=GapSettings(every=every), trainer=TrainerSettings(precision=precision), **budget)
        for every, precision, budget in (
            (5, "32-true", {}),
            (9, "32-true", {}),  # without a budget this changes nothing: the same run
            (5, "bf16-mixed", {}),
            (5, "32-true", {"gap_budget": 0.1}),
            (9, "32-true", {"gap_budget": 0.1}),
        )
        for side in ("target", "reference")
    ]
    for number, run_config in enumerate(configs):
        RunDirectory(tmp_path / str(number)).save(run_config)
        write_json(tmp_path / str(number) / "run.json", {"schema": 1})
    cells, skipped = pair_runs(tmp_path)
    assert len({cell.name for cell in cells}) == 4
    assert [text.split(" ")[0] for text in skipped] == [str(tmp_path / "2"), str(tmp_path / "3")]


def test_planning_and_ranking_need_no_torch():
    code = "import sys; from dejavu_lit.study import plan, ranking, sweep; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
