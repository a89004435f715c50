"""The dashboards of a training run, read back from the files that were written."""

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu_lit.training.loggers import CsvLogger
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from dejavu_lit.utils.wandb import LoggerSettings, Wandb, wandb_options, with_tags
from tests.conftest import ROOT, SMALL, call, run
from tests.wandb_files import Offline, runs


def table(out: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in metrics.csv."""
    with open(out / "metrics.csv", newline="") as file:
        return [(int(r["step"]), float(r["value"])) for r in csv.DictReader(file) if r["metric"] == metric]


@pytest.fixture(scope="module")
def logged(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run logged to both dashboards, and started again after everything but run.json was written."""
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    out = tmp_path_factory.mktemp("study") / "runs" / "mask-s0-target"
    reference = out.parent / "mask-s0-reference"
    run("train", "side=reference", f"data.dir={scenes}", f"out={reference}", *SMALL)
    options = ["side=target", f"data.dir={scenes}", f"out={out}", *SMALL, "trainer.log_every=2"]
    options += ["logger=wandb", "logger.tensorboard=true", "mitigation.text_mask=0.3"]
    options += [f"gaps.reference={reference}", "gaps.every=1", "gaps.sample=40", "gaps.k=5"]
    run("train", *options)
    (out / "run.json").unlink()
    run("train", *options, "logger.wandb.project=other")
    return out


def test_wandb_has_the_numbers_of_metrics_csv(logged: Path) -> None:
    first = runs(logged)[0]
    gaps = [f"gap/{name}" for name in ("ppg", "ppg_low", "ppg_high", "prg", "aucg", "null_ppg", "corrected_ppg")]
    for metric in ("loss", "val_loss", "val_accuracy", "logit_scale", "lr", *gaps):  # all curves share the same steps
        expected = table(logged, metric)
        assert expected
        logged_values = [(r["trainer/global_step"], r[metric]) for r in first.history if metric in r]
        assert [step for step, _ in logged_values] == [step for step, _ in expected]
        assert [value for _, value in logged_values] == pytest.approx([value for _, value in expected])
    assert {int(epoch) for epoch in first.values("epoch")} == {0, 1}  # panels may use it as their axis
    assert first.ended


def test_wandb_run_is_named_grouped_and_tagged(logged: Path) -> None:
    first, second = runs(logged)
    assert isinstance(first, Offline)
    assert first.run.job_type == "target"
    assert first.run.display_name == "mask-s0-target"
    assert first.run.project == "dejavu-lit"
    assert first.run.run_group == logged.parent.parent.name  # the study's folder
    assert "mitigation.text_mask=0.3" in first.run.tags
    assert not any(tag.startswith(("out=", "data.dir=", "logger")) for tag in first.run.tags)
    assert first.config["mitigation"]["text_mask"] == 0.3
    # A resumed run keeps its id and group.
    assert first.run.run_id == second.run.run_id
    assert first.run.run_group == second.run.run_group


def test_tensorboard_has_the_numbers_of_metrics_csv(logged: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logged / "tensorboard"))
    events.Reload()
    for metric in ("loss", "val_loss", "val_accuracy", "logit_scale", "gap/ppg", "gap/null_ppg"):
        scalars = [(event.step, event.value) for event in events.Scalars(metric)]
        expected = table(logged, metric)
        assert [step for step, _ in scalars] == [step for step, _ in expected]
        assert [value for _, value in scalars] == pytest.approx([value for _, value in expected], rel=1e-5)


def test_an_evaluation_is_in_the_group_of_its_runs(logged: Path, tmp_path: Path) -> None:
    reference = logged.parent / "mask-s0-reference"
    few = ["statistics.bootstrap=100", "statistics.subgroups=[]", "statistics.top_ms=[]", "report.write=true"]
    options = [f"target={logged}", f"reference={reference}", f"out={tmp_path / 'gap'}", "k=5", *few]
    done = run("evaluate", *options, "logger=wandb")
    assert "report:" in done.stdout
    (evaluation,) = runs(tmp_path / "gap")
    training = runs(logged)[0]
    assert (evaluation.run.job_type, evaluation.run.run_group) == ("evaluation", training.run.run_group)
    assert evaluation.config["target_run"]["id"] == training.run.run_id
    assert evaluation.config["target_run"]["mitigation"]["text_mask"] == 0.3
    assert set(evaluation.run.tags) == {"k=5", *few}
    metrics = json.loads((tmp_path / "gap" / "metrics.json").read_text())
    assert evaluation.values("symmetric/ppg") == [pytest.approx(metrics["symmetric"]["ppg"]["value"])]
    assert evaluation.values("figures/epochs")  # the run measured its gaps in two epochs
    assert evaluation.table("memorized")[0]["picture"].startswith(b"\xff\xd8")
    again = run("evaluate", *options, "logger=wandb")  # finished and unchanged, so it is not logged twice
    assert "finished" in again.stderr
    assert len(runs(tmp_path / "gap")) == 1


LOST = """
import logging, os, signal, sys, threading, time
from pathlib import Path

import wandb
from dejavu_lit.utils.errors import UserError
from dejavu_lit.training.loggers import WandbLogger

def children():
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended in the meantime
            continue
        if parent == str(os.getpid()) and state != "Z":
            yield int(path.parent.name)

def warn():
    while not started:
        for child in children():
            try:
                os.kill(child, signal.SIGUSR2)
            except ProcessLookupError:
                pass

logging.basicConfig(format="%(message)s")
out = Path(sys.argv[1])

def options(name):
    return {"id": name, "settings": wandb.Settings(silent=True, console="off")}

for _ in range(3):
    started = False
    thread = threading.Thread(target=warn)
    thread.start()
    logger = WandbLogger(out, True, False, options("lost"))
    started = logger.experiment is not None
    thread.join()
    logger.log_metrics({"loss": 2.0}, 1)
    logger.finalize("success")
    wandb.teardown()
print("started")
logger = WandbLogger(out, True, False, options("lost"))
for child in children():
    os.kill(child, signal.SIGTERM)
while list(children()):
    time.sleep(0.05)
for step in range(3, 6):
    logger.log_metrics({"loss": 1.0}, step)
logger.finalize("success")
logger = WandbLogger(out, True, False, options("late"))  # the next job of a multirun
logger.log_metrics({"loss": 0.5}, 6)
logger.finalize("success")
print("next")
os.environ["WANDB_INIT_TIMEOUT"] = "3"
try:
    WandbLogger(out, False, False, options("server"))
except UserError as error:
    print("new:", error)
logger = WandbLogger(out, False, True, options("server"))  # a resumed run, and a server that does not answer
assert logger.experiment is None
logger.log_metrics({"loss": 0.5}, 6)
logger.finalize("success")
print("end")
"""


@pytest.fixture
def unreachable_server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user whose wandb server does not answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nothing listens
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        server = {"WANDB_BASE_URL": f"http://127.0.0.1:{taken.getsockname()[1]}"}
        home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "PYTHONPATH": str(ROOT)}
        yield {**environment, **home, **server, "WANDB_API_KEY": "0" * 40}


def test_a_failure_of_wandb_is_one_warning(unreachable_server: dict[str, str], tmp_path: Path) -> None:
    """wandb's process survives the warning signals of a job; if it is killed or has no server, training continues."""
    pytest.importorskip("wandb")
    done = subprocess.run(
        [sys.executable, "-c", LOST, str(tmp_path)],
        capture_output=True,
        text=True,
        env=unreachable_server,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    started, following, new, end = done.stdout.splitlines()
    assert (started, following, end) == ("started", "next", "end")
    assert new.startswith("new: wandb failed to start (")
    assert "Traceback" not in done.stderr
    first, second = (line for line in done.stderr.splitlines() if "wandb failed (" in line)
    assert "metrics.csv is complete" in first
    assert "failed to start" in second
    late = [file for file in runs(tmp_path) if file.run is not None and file.run.run_id == "late"]
    assert [file.values("loss") for file in late] == [[0.5]]


def test_without_an_api_key_wandb_fails_in_one_sentence(
    unreachable_server: dict[str, str], scenes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    options = ["side=target", f"data.dir={scenes}", *SMALL, "logger=wandb", "logger.wandb.offline=false"]
    without_key = {name: value for name, value in unreachable_server.items() if name != "WANDB_API_KEY"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *options, f"out={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        env=without_key,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "wandb failed to start (No API key" in message
    assert "logger.wandb.offline=true" in message


def test_a_training_that_lightning_refuses_ends_its_wandb_run(scenes: Path, tmp_path: Path) -> None:
    """The next job of a multirun would take it."""
    wandb = pytest.importorskip("wandb")
    options = ["side=target", f"data.dir={scenes}", *SMALL, "logger=wandb", "trainer.devices=-1"]
    done = call("train", *options, f"out={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "Lightning refuses trainer.accelerator=cpu" in done.stderr
    assert wandb.run is None


def test_only_metrics_csv_is_written_by_default(tmp_path: Path) -> None:
    from dejavu_lit.training.loggers import training_loggers

    (logger,) = training_loggers(tmp_path, LoggerSettings(), "target", {}, None)
    metrics = {"loss": 1.5, "epoch": 2}
    logger.log_metrics(metrics, step=7)
    assert metrics == {"loss": 1.5, "epoch": 2}  # the next logger gets the same dict
    assert table(tmp_path, "loss") == [(7, 1.5)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_damaged_row_of_metrics_csv_does_not_end_a_resumed_run(tmp_path: Path) -> None:
    """A crash of the machine may leave anything at the end of a file."""
    rows = b"step,epoch,metric,value\n1,0,loss,0.5\n"
    (tmp_path / "metrics.csv").write_bytes(rows + b"\xff\xfe\x00\x80,\xb2,loss,1\n\xc2\xb2,0,loss,1\n2,0,loss,0.")
    CsvLogger(tmp_path).resume(2)
    assert (tmp_path / "metrics.csv").read_bytes() == rows


def test_groups_and_names(tmp_path: Path) -> None:
    settings = Wandb(tags=["mine"])
    alone = wandb_options(tmp_path / "jobs" / "0", settings, "target")
    assert alone["group"] == "jobs"
    assert alone["name"] == "jobs-0"
    assert alone["tags"] == ["mine"]
    again = wandb_options(tmp_path / "jobs" / "0", Wandb(group="late"), "target")
    assert (again["id"], again["group"]) == (alone["id"], "jobs")
    assert wandb_options(tmp_path / "x", Wandb(group="given"), "target")["group"] == "given"
    # An evaluation is in the group of the run that it measures; a study has its own group.
    assert wandb_options(tmp_path / "gap", settings, "evaluation", tmp_path / "jobs" / "0")["group"] == "jobs"
    assert wandb_options(tmp_path / "study", settings, "study")["group"] == "study"
    write_json(tmp_path / "study" / "runs" / "a" / "run.json", {})
    assert wandb_options(tmp_path / "study" / "runs" / "a", settings, "target")["group"] == "study"


def test_the_project_is_that_of_the_environment_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert Wandb().project == "dejavu-lit"
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    assert (Wandb().project, Wandb(project="mine").project) == ("ours", "mine")


def test_tags_are_the_typed_overrides() -> None:
    logger = LoggerSettings(wandb=Wandb(project="p"))
    typed = ["side=target", "+settings.a=1", "out=x", "logger=wandb", "data.dir=/d", "a" * 90, "side=target"]
    assert with_tags(logger, typed) == LoggerSettings(
        wandb=Wandb(project="p", tags=["side=target", "settings.a=1", "a" * 64])
    )
    assert logger.wandb == Wandb(project="p")
    with_own_tags = LoggerSettings(wandb=Wandb(tags=["mine"]))
    assert with_tags(with_own_tags, typed) == with_own_tags
    assert with_tags(LoggerSettings(), typed) == LoggerSettings()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dejavu_lit.utils.wandb.find_spec", lambda name: None)
    LoggerSettings()
    with pytest.raises(UserError, match=r"dejavu-lit\[wandb\]"):
        LoggerSettings(wandb=Wandb())
    with pytest.raises(UserError, match=r"dejavu-lit\[tensorboard\]"):
        LoggerSettings(tensorboard=True)
