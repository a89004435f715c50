"""``mitigate.py launcher=slurm``: submits the trainings, waits, evaluates, and finds its jobs again."""

import json
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT, SMALL, run

SETTINGS = ["+settings.none=['mitigation.text_mask=0']", "+settings.mask=['mitigation.text_mask=0.5']"]
OPTIONS = [*SETTINGS, *SMALL, "evaluate.k=5", "evaluate.ks=[1,5]", "evaluate.report.write=false"]
SLURM = ["launcher=slurm", "slurm.poll_s=0.5", "slurm.array_parallelism=2"]
BLOCKS = ("population", "null", "swapped", "symmetric", "corrected", "utility")


def test_an_interrupted_study_finds_its_jobs_again_and_gives_the_table_of_a_local_one(
    cluster, submit, scenes, tmp_path
):
    before = set(cluster.states())
    options = [*OPTIONS, f"data.dir={scenes}", f"out={tmp_path / 'slurm'}", *SLURM]
    study = subprocess.Popen(
        [sys.executable, str(ROOT / "mitigate.py"), *options],
        cwd=ROOT,
        env=cluster.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("slurm/runs/*/slurm.json"))) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    study.send_signal(signal.SIGINT)
    said = study.communicate(timeout=30)[1]
    assert study.returncode == 1
    assert "jobs go on" in said
    assert "Traceback" not in said
    done = submit("mitigate", *options)
    assert "already" in done.stderr
    assert "submitted" not in done.stderr
    assert cluster.ended(before) == ["COMPLETED"] * 4
    run("mitigate", *OPTIONS, f"data.dir={scenes}", f"out={tmp_path / 'here'}")
    one, two = (json.loads((tmp_path / n / "study.json").read_text())["settings"] for n in ("slurm", "here"))
    for first, second in zip(one, two, strict=True):
        assert {name: first[name] for name in BLOCKS} == {name: second[name] for name in BLOCKS}


def test_a_setting_that_fails_is_told_in_its_own_words(cluster, submit, scenes, tmp_path):
    options = [
        "+settings.bad=['model.init=local-dir:/nowhere']",
        *OPTIONS,
        f"data.dir={scenes}",
        f"out={tmp_path}",
        *SLURM,
    ]
    done = submit("mitigate", *(o for o in options if ".mask" not in o), check=False)
    assert done.returncode == 1
    assert "/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert [r["name"] for r in json.loads((tmp_path / "study.json").read_text())["settings"]] == ["none"]


def test_what_slurm_refuses_is_a_sentence(submit, scenes, tmp_path):
    options = ["slurm.partition=nowhere", f"data.dir={scenes}", f"out={tmp_path}"]
    done = submit("mitigate", *OPTIONS, *options, *SLURM, check=False)
    assert done.returncode == 1
    assert "SLURM refused the job" in done.stderr
    assert "nowhere" in done.stderr or "partition" in done.stderr
    assert "Traceback" not in done.stderr
