"""Evaluations and studies on the dashboards: the files that were written, read back and compared with metrics.json."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dejavu_lit.report.dashboard import log_evaluation, log_study
from dejavu_lit.report.scalars import scalars, settings_rows
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json, write_json
from dejavu_lit.utils.wandb import LoggerSettings, Wandb
from tests.report.artifacts import HOSTILE

from ..wandb_files import runs

pytest.importorskip("matplotlib")


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("data", "data60", "report", "wandb", "tensorboard"))
    return to


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"images": 0, "scalars": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def logged(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation, logged twice to both dashboards; its target is a run that was logged to wandb."""
    pytest.importorskip("wandb")
    base = tmp_path_factory.mktemp("dashboard")
    out = copy(plain, base / "gap")
    target = base / "runs" / "target"
    write_json(target / "run.json", {})
    write_json(target / "wandb" / "id.json", {"id": "abc", "group": "the study"})
    (target / "config.yaml").write_text("schema: 2\ndata: {train_size: 40}\nmitigation: {text_mask: 0.3}\nseed: 2\n")
    metrics = read_json(out / "metrics.json")
    metrics["settings"]["target"] = f"{target}@3"
    write_json(out / "metrics.json", metrics)
    for _ in range(2):
        log_evaluation(LoggerSettings(Wandb(tags=["k=5"]), True), out, redact=False)
    return out


def test_scalars_are_those_of_metrics_json(evaluation: Path) -> None:
    metrics = read_json(evaluation / "metrics.json")
    values = scalars(metrics)
    for block in ("population", "null", "swapped", "symmetric", "corrected"):
        for figure in ("ppg", "prg", "aucg"):
            low, high = metrics[block][figure]["ci95"]
            assert values[f"{block}/{figure}"] == metrics[block][figure]["value"]
            assert (values[f"{block}/{figure}_low"], values[f"{block}/{figure}_high"]) == (low, high)
            assert values[f"{block}/{figure}_std"] == metrics[block][figure]["std"]
            assert values[f"by_k/1/{block}/{figure}"] == metrics["by_k"]["1"][block][figure]["value"]
    for row in metrics["sample"]["distance"]:
        assert values[f"sample/distance/top_{row['top']}/recall_gap"] == row["recall_gap"]
    assert values["planted/20/prg"] == metrics["planted"]["levels"][1]["prg"]["value"]
    assert values["utility/target/zeroshot_top1"] == pytest.approx(0.43)
    assert "utility/target/linear_probe" not in values  # not measured
    assert values["exposure/target_mean"] == 2
    assert values["counts/records"] == metrics["counts"]["records"]
    assert values["found"] == float(metrics["found"]["found"])
    alone = scalars(metrics | {"symmetric": None, "found": {"found": None}})
    assert not [name for name in alone if name == "found" or name.startswith("symmetric")]


def test_wandb_run_of_an_evaluation(logged: Path) -> None:
    (run,) = runs(logged)  # the second call logged nothing
    assert run.ended
    assert run.run.job_type == "evaluation"
    assert run.run.run_group == "the study"
    assert list(run.run.tags) == ["k=5"]
    assert run.config["target_run"] == {"mitigation": {"text_mask": 0.3}, "seed": 2, "train_size": 40, "id": "abc"}
    assert run.config["epoch"] == 3
    assert run.config["k"] == 5
    expected = scalars(read_json(logged / "metrics.json"))
    (row,) = run.history
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_wandb_has_the_figures(logged: Path) -> None:
    (run,) = runs(logged)
    for name in ("gaps", "recall", "sample"):
        (image,) = run.values(f"figures/{name}")
        assert run.image(image).startswith(b"\x89PNG")


def test_wandb_table_of_the_most_memorized(logged: Path, plain: Path) -> None:
    import pyarrow.parquet as pq

    (run,) = runs(logged)
    rows = run.table("memorized")
    records = {r["key"]: r for r in pq.read_table(plain / "records.parquet").to_pylist() if r["objects"]}
    assert {row["key"] for row in rows} == set(records)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    gaps = [row["gap_hits"] for row in rows]
    assert gaps == sorted(gaps, reverse=True)
    for row in rows:
        record = records[row["key"]]
        assert row["caption"] == record["caption"]
        assert row["gap_hits"] == record["target_hits"] - record["reference_hits"]
        assert row["distance"] == pytest.approx(record["target_distances"][0])
        assert row["target_recall"] == pytest.approx(record["target_recall"])
        only = set(record["objects"]) & set(record["target_predicted"]) - set(record["reference_predicted"])
        assert row["only_target"] == ", ".join(sorted(only))
        for name in ("picture", "target_finds", "reference_finds"):
            assert row[name].startswith(b"\xff\xd8")
    strip = Image.open(io.BytesIO(rows[0]["target_finds"]))
    assert strip.width >= 5 * strip.height  # the five neighbors side by side
    # Files that wait for the upload are in the evaluation's own folder.
    waiting = [path for files in run.artifacts.values() for path in files.values()]
    assert all(path.is_relative_to(logged.resolve()) for path in waiting)


def test_right_to_left_captions_go_to_wandb_as_they_are(logged: Path) -> None:
    captions = {row["caption"] for row in runs(logged)[0].table("memorized")}
    assert {"שלום עולם with a kite", "مرحبا \u202e reversed"} <= captions


def test_the_redacted_table_has_keys_and_numbers_only(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    out = copy(plain, tmp_path / "gap")
    log_evaluation(LoggerSettings(Wandb()), out, redact=True)
    (run,) = runs(out)
    (row, *_) = run.table("memorized")
    assert not {"caption", "objects", "picture", "only_target", "target_finds"} & set(row)
    written = b"".join(path.read_bytes() for path in (out / "wandb").rglob("*") if path.is_file())
    assert b"in image 7" not in written
    assert HOSTILE[0].encode() not in written


def test_redacting_later_deletes_the_unredacted_runs(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    out = copy(plain, tmp_path / "gap")
    log_evaluation(LoggerSettings(Wandb()), out, redact=False)
    assert "caption" in runs(out)[0].table("memorized")[0]
    for _ in range(2):
        log_evaluation(LoggerSettings(Wandb()), out, redact=True)
        (run,) = runs(out)
        assert "caption" not in run.table("memorized")[0]
    assert caplog.text.count("if it was uploaded, delete it online too") == 1
    written = b"".join(path.read_bytes() for path in (out / "wandb").rglob("*") if path.is_file())
    assert b"in image 7" not in written


def test_an_id_that_leads_elsewhere_is_refused_before_anything_is_deleted(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    out = copy(plain, tmp_path / "gap")
    (out / "wandb" / "offline-run-1-x").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    for known in (*({"id": id, "group": "given"} for id in ("x/../../../mine", "*", 5, None)), [5]):
        write_json(out / "wandb" / "id.json", known)
        with pytest.raises(UserError, match=r"id\.json (has no id of a wandb run|is not a JSON object)"):
            log_evaluation(LoggerSettings(Wandb()), out, redact=True)
    assert (tmp_path / "mine").is_dir()
    assert (out / "wandb" / "offline-run-1-x").is_dir()


def test_nothing_is_deleted_through_a_link(plain: Path, tmp_path: Path) -> None:
    """``wandb -> ..`` in a received folder would lead to the user's own data/."""
    pytest.importorskip("wandb")
    out, mine = copy(plain, tmp_path / "gap"), tmp_path / "data" / "mine"
    mine.mkdir(parents=True)
    (out / "wandb").symlink_to("..")
    with pytest.raises(UserError, match="wandb is a link"):
        log_evaluation(LoggerSettings(Wandb()), out, redact=True)
    assert mine.is_dir()


def test_a_changed_evaluation_is_logged_again_under_its_id(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    out = copy(plain, tmp_path / "gap")
    for change in (0.0, 0.25):
        metrics = read_json(out / "metrics.json")
        metrics["symmetric"]["ppg"]["value"] += change
        write_json(out / "metrics.json", metrics)
        log_evaluation(LoggerSettings(Wandb(group="mine")), out, redact=True)
    first, second = runs(out)
    assert first.run.run_id == second.run.run_id
    assert second.values("symmetric/ppg")[0] == pytest.approx(first.values("symmetric/ppg")[0] + 0.25)


def test_tensorboard_of_an_evaluation(logged: Path) -> None:
    events = read_events(logged / "tensorboard")
    expected = scalars(read_json(logged / "metrics.json"))
    assert set(events.Tags()["scalars"]) == set(expected)
    for name in ("symmetric/ppg", "symmetric/ppg_low", "null/aucg", "utility/target/zeroshot_top1"):
        ((step, value),) = [(event.step, event.value) for event in events.Scalars(name)]
        assert (step, value) == (3, pytest.approx(expected[name], rel=1e-5))  # the step is the epoch of RUN@3
    (image,) = events.Images("figures/gaps")
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_a_state_that_was_logged_is_not_drawn_again(plain: Path, tmp_path: Path) -> None:
    out = copy(plain, tmp_path / "gap")
    files = []
    for change, redact in ((0.0, False), (0.0, False), (0.0, True), (0.25, True)):
        metrics = read_json(out / "metrics.json")
        metrics["symmetric"]["ppg"]["value"] += change
        write_json(out / "metrics.json", metrics)
        log_evaluation(LoggerSettings(tensorboard=True), out, redact=redact)
        files.append([path.stat().st_mtime_ns for path in (out / "tensorboard").iterdir()])
    first, same, redacted, changed = files
    assert first == same != redacted != changed
    (event,) = read_events(out / "tensorboard").Scalars("symmetric/ppg")
    assert event.value == pytest.approx(read_json(out / "metrics.json")["symmetric"]["ppg"]["value"], rel=1e-5)


def test_scalars_csv_is_always_written(plain: Path, tmp_path: Path) -> None:
    out = copy(plain, tmp_path / "gap")
    log_evaluation(LoggerSettings(), out, redact=False)
    with open(out / "scalars.csv", newline="") as file:
        values = {row["name"]: float(row["value"]) for row in csv.DictReader(file)}
    assert values == pytest.approx(scalars(read_json(out / "metrics.json")))
    assert not (out / "wandb").exists()
    assert not (out / "tensorboard").exists()


def test_study_rows_have_equal_columns_and_typed_knobs(study: Path) -> None:
    contents = read_json(study / "study.json")
    rows = settings_rows(contents)
    assert len(rows) == len(contents["settings"])
    assert len({tuple(row) for row in rows}) == 1
    for row, setting in zip(rows, contents["settings"], strict=True):
        assert row["mitigation.text_mask"] == float(setting["overrides"][0].partition("=")[2])
        assert row["symmetric/ppg"] == setting["symmetric"]["ppg"]["value"]
        assert row["utility/target/zeroshot_top1"] == setting["utility"]["target"]["zeroshot_top1"]
        is_largest = setting["train_size"] == max(s["train_size"] for s in contents["settings"])
        assert row["recommended"] == (is_largest and setting["name"] == contents["recommended"])
    mixed = json.loads(json.dumps(contents))
    mixed["settings"][0]["overrides"] = ["recipe=small", "a=null", "b=1"]
    mixed["settings"][1]["overrides"] = ["recipe=3", "a=2"]
    first, second, *_ = settings_rows(mixed)
    assert (first["recipe"], second["recipe"]) == ("small", "3.0")  # one type per column
    assert (first["a"], second["a"]) == (None, 2.0)
    assert (first["b"], second["b"]) == (1.0, None)


def test_study_on_both_dashboards(small_study: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    out = copy(small_study, tmp_path / "study")
    log_study(LoggerSettings(Wandb(), True), out, redact=True)
    contents = read_json(out / "study.json")
    (study_run,) = runs(out / "wandb")
    assert study_run.run.job_type == "study"
    assert study_run.run.run_group == "study"
    rows = study_run.table("settings")
    assert [row["setting"] for row in rows] == ["none", "mask"]
    assert [row["symmetric/ppg"] for row in rows] == [
        pytest.approx(r["symmetric"]["ppg"]["value"]) for r in contents["settings"]
    ]
    assert [row["mitigation.text_mask"] for row in rows] == pytest.approx([0.1, 1.0])
    assert study_run.summary["recommended"] == contents["recommended"]
    assert study_run.values("figures/frontier")
    each = runs(out / "evaluations")
    assert [run.run.job_type for run in each] == ["evaluation"] * 2
    assert {run.run.run_group for run in each} == {"study"}
    assert {tuple(run.run.tags) for run in each} == {tuple(r["overrides"]) for r in contents["settings"]}
    for run, row in zip(each, sorted(contents["settings"], key=lambda r: r["metrics"]), strict=True):
        (waiting, *_) = [path for files in run.artifacts.values() for path in files.values()]
        assert waiting.is_relative_to((out / row["metrics"]).parent.resolve())
    # TensorBoard's own view of settings: one sub-run per setting, with its knobs and numbers.
    for label, row in (("none-n60-s0", rows[0]), ("mask-n60-s0", rows[1])):
        (event,) = read_events(out / "tensorboard" / label).Scalars("symmetric/ppg")
        assert event.value == pytest.approx(row["symmetric/ppg"], rel=1e-5)
    assert read_events(out / "tensorboard").Images("figures/frontier")
