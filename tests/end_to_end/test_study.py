"""Studies on tiny scenes: what is planned, trained, read off checkpoints, evaluated, interrupted, lost and collected."""

import json
import shutil
import time

import pyarrow.parquet as pq
import pytest
import yaml
from torch import cuda

from tests.conftest import ROOT, SMALL, call
from tests.starter import starter

BLOCKS = ("population", "null", "swapped", "symmetric", "corrected")
FEW = ["evaluate.k=5", "evaluate.ks=[5]", "evaluate.report.write=false", "evaluate.statistics.bootstrap=200"]
SETTINGS = [
    "+settings.none=['mitigation.text_mask=0']",
    "+settings.mask=['mitigation.text_mask=0.5']",
    "+settings.stop=['mitigation.stop_epoch=1']",
    "+settings.single=['evaluate.data.public=single']",
]
EPOCHS = ["recipe.epochs=3", "trainer.checkpoint_epochs=9"]  # no checkpoint of epoch 1 but for the study's asking


def options(scenes, out, *more):
    return [f"data.dir={scenes}", f"out={out}", *SMALL, *FEW, *EPOCHS, *more]


def trained(out):
    """{run: (inode and time of its run.json, lines of its log that say it was finished)}: trained again, they change."""
    found = {}
    for path in sorted(out.glob("runs/*/run.json")):
        state = path.stat()
        finished = (path.parent / "training.log").read_text().count("finished ")
        found[path.parent.name] = (state.st_ino, state.st_mtime_ns, finished)
    return found


def rows(out):
    return json.loads((out / "study.json").read_text())["settings"]


@pytest.fixture(scope="module")
def study(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "study"
    done = call("mitigate", *SETTINGS, *options(scenes, out))
    assert done.returncode == 0, done.stderr
    return out, done


def test_every_setting_has_a_row_and_an_evaluation(study):
    out, done = study
    found = json.loads((out / "study.json").read_text())
    names = ["none", "mask", "stop", "single"]
    assert [(r["name"], r["train_size"], r["seed"]) for r in found["settings"]] == [(n, 96, 0) for n in names]
    assert [r["public"] for r in found["settings"]] == ["scenes"] * 3 + ["single"]
    for row in found["settings"]:
        metrics = json.loads((out / row["metrics"]).read_text())
        assert all(row[block] == metrics[block] for block in BLOCKS)
        assert row["utility"] == metrics["utility"]
        assert row["exposure"] == metrics["exposure"]
        assert metrics["settings"]["public"] == row["public"]
    assert found["settings"][1]["overrides"] == ["mitigation.text_mask=0.5"]
    assert [r["knobs"]["text_mask"] for r in found["settings"]] == [0, 0.5, 0, 0]
    table = pq.read_table(out / "study.parquet").to_pylist()
    assert [r["symmetric.ppg.value"] for r in table] == [r["symmetric"]["ppg"]["value"] for r in found["settings"]]
    assert all(name in done.stdout for name in names)


def test_the_plan_is_shown_first(study):
    _, done = study
    assert "runs: 4 to train, 0 to reuse; evaluations: 4 to do, 0 complete" in done.stdout
    assert "none-s0@1" in done.stdout
    assert "1 of 4 runs trained, about" in done.stderr


def test_differences_are_of_comparable_rows_and_say_whether_they_hold(study):
    out, done = study
    found = json.loads((out / "study.json").read_text())
    assert [(d["name"], d["against"]) for d in found["differences"]] == [("mask", "none"), ("stop", "none")]
    values = {r["name"]: r["symmetric"]["ppg"]["value"] for r in found["settings"]}
    for difference in found["differences"]:
        assert difference["ppg"]["value"] == pytest.approx(values["none"] - values[difference["name"]], abs=1e-12)
        low, high = difference["ppg"]["ci95"]
        assert difference["ppg"]["distinguishable"] is (low > 0 or high < 0)
        assert ("not distinguishable" in difference["words"]) is not difference["ppg"]["distinguishable"]
        assert difference["words"].removesuffix(", one seed pair")[1:] in done.stdout
    assert {r["public"] for r in found["ranking"]} == {"scenes", "single"}
    assert "single" in found["frontier"]  # alone with its public set


def test_a_stop_epoch_is_read_off_the_longer_run(study, scenes, tmp_path):
    import torch
    from safetensors.torch import load_file

    out, _ = study
    assert not list(out.glob("runs/stop*"))
    for side in ("target", "reference"):
        kept = out / "runs" / f"none-s0-{side}" / "checkpoints"
        assert [path.name for path in sorted(kept.glob("epoch=*"))] == ["epoch=0001.ckpt"]
        more = ["mitigation.stop_epoch=1", f"side={side}", f"data.dir={scenes}", f"out={tmp_path / side}"]
        done = call("train", *more, *SMALL, *EPOCHS)
        assert done.returncode == 0, done.stderr
        stopped = load_file(tmp_path / side / "model" / "open_clip_model.safetensors")
        state = torch.load(kept / "epoch=0001.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(value, state[f"model.{name}"]) for name, value in stopped.items())
    done = call("evaluate", f"target={tmp_path / 'target'}", f"reference={tmp_path / 'reference'}",
                f"out={tmp_path / 'e'}", *[o.removeprefix("evaluate.") for o in FEW])  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    (row,) = (r for r in rows(out) if r["name"] == "stop")
    assert all(row[block] == metrics[block] for block in BLOCKS)
    assert row["utility"] == metrics["utility"]
    assert (
        row["exposure"] == metrics["exposure"] == {s: {"mean": 1, "min": 1, "max": 1} for s in ("target", "reference")}
    )
    whole = next(r for r in rows(out) if r["name"] == "none")
    assert row["seconds"] == pytest.approx(whole["seconds"] / 3)  # one epoch of three


def test_a_second_call_trains_nothing_and_new_settings_use_what_is_there(study, scenes, tmp_path):
    out = shutil.copytree(study[0], tmp_path / "study")
    before, evaluated = trained(out), {p: p.stat().st_mtime_ns for p in out.glob("evaluations/*/metrics.json")}
    assert len(before) == 4
    more = ["+settings.renamed=['mitigation.text_mask=0.5']", "+settings.k3=['evaluate.k=3']"]
    # Elsewhere than the first time: evaluations follow the trainer.
    done = call("mitigate", *SETTINGS, *more, *options(scenes, out), "trainer.accelerator=gpu", "launcher=slurm")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trainer.accelerator=gpu: no GPU found; using the CPU") == (not cuda.is_available())
    assert "runs: 0 to train, 4 to reuse; evaluations: 1 to do, 4 complete" in done.stdout
    assert trained(out) == before
    assert {p: p.stat().st_mtime_ns for p in evaluated} == evaluated
    found = {r["name"]: r for r in rows(out)}
    assert found["renamed"]["symmetric"] == found["mask"]["symmetric"]
    assert json.loads((out / found["k3"]["metrics"]).read_text())["k"] == 3
    done = call("mitigate", "+settings.big=['model.name=ViT-B-16']", *SETTINGS, *options(scenes, out), "plan_only=true")
    assert "model.name=ViT-B-16 is an architecture of open_clip, but model.config would be trained" in done.stderr


def test_plan_only_shows_the_plan_and_ends(scenes, tmp_path):
    done = call("mitigate", *SETTINGS, *options(scenes, tmp_path / "s"), "plan_only=true", "sizes=[48,96]")
    assert done.returncode == 0, done.stderr
    assert "runs: 8 to train, 0 to reuse; evaluations: 8 to do, 0 complete" in done.stdout
    assert not (tmp_path / "s").exists()


def test_a_plan_alone_generates_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("mitigate", "experiment=demo", "plan_only=true", "sizes=[null,500]", "halves=2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("would be generated first, in outputs/data/scenes-") == 1
    assert "runs: 16 to train, 0 to reuse; evaluations: 8 to do, 0 complete" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_series_have_overrides_by_size_and_share_their_runs(scenes, tmp_path):
    series = ["+series.epochs={}", "+series.pairs={48: ['recipe.epochs=6']}", "sizes=[48,96]"]
    done = call("mitigate", "+settings.all=[]", *series, *options(scenes, tmp_path / "s"), "plan_only=true")
    assert done.returncode == 0, done.stderr
    assert "runs: 6 to train, 0 to reuse; evaluations: 3 to do, 0 complete" in done.stdout
    assert "all, pairs" in done.stdout


def test_a_failing_training_is_named_in_its_own_words_and_the_others_are_kept(scenes, tmp_path):
    settings = [
        "+settings.good=['mitigation.text_mask=0.1']",
        "+settings.bad=['recipe.lr=1e30']",
    ]
    done = call("mitigate", *settings, *options(scenes, tmp_path / "s"))
    assert done.returncode == 1
    (last,) = (line for line in done.stderr.splitlines() if line.startswith("error: 1 of 2 settings"))
    assert "bad-s0 (training of bad-s0-target failed: the loss is NaN or infinite" in last
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "s" / "study.json").read_text())
    assert [r["name"] for r in found["settings"]] == ["good"]
    assert "the loss is NaN or infinite" in found["failed"]["bad-s0"]


def test_killed_in_the_middle_it_goes_on_and_trains_nothing_twice(scenes, tmp_path):
    out = tmp_path / "s"
    command = [*SETTINGS[:2], *options(scenes, out)]
    started = starter().start("mitigate", command, tmp_path / "log")
    until = time.monotonic() + 240
    second = out / "runs" / "none-s0-reference" / "training.log"
    while not second.is_file() and started.running(0.05):
        assert time.monotonic() < until
    started.kill(alone=True)  # the training that it had begun lives on
    before = trained(out)
    assert "none-s0-target" in before
    assert len(before) < 4
    done = call("mitigate", *command)
    assert done.returncode == 0, done.stderr
    after = trained(out)
    assert len(after) == 4
    assert all(after[name] == before[name] for name in before)
    assert all(finished == 1 for *_, finished in after.values())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["+settings.x=['mitigation.text_msk=0.5']"],
            "settings.x: mitigation.text_msk is not an option (did you mean",
        ),
        (["+settings.x=['mitigation.text_mask=2']"], "settings.x: mitigation.text_mask=2"),
        (["+settings.x=['recipe.batch=200']"], "settings.x: 96 training pairs cannot fill one batch"),
        (["+settings.x=['evaluate.data.public=sngle']"], "settings.x: data.public=sngle is neither one of"),
        (["+settings.x=['evaluate.k=none']"], "settings.x: evaluate.k=none must be a whole number"),
        (["+settings.x=['seeds=[1]']"], "settings.x: seeds=[1] is an option of the whole study"),
        (
            ["+settings.x=mitigation.text_mask"],
            "settings.x=mitigation.text_mask has a value of the wrong type; expected: {name:",
        ),
        (["+settings.x=['model=huge']"], "settings.x: model=huge is unknown"),
        (
            ["+settings.x=['model.name=nonsense','model.config=null']"],
            "settings.x: model.name=nonsense is not an open_clip architecture",
        ),
        (["+settings.x=['model.init=nowhere/run']"], "settings.x: model.init=nowhere/run: nowhere/run does not exist"),
        (["+settings.x=['mitigation.lora_rank=4']"], "settings.x: mitigation.lora_rank=4 fine-tunes a model"),
        (["+settings.x=['evaluate.device=abacus']"], "settings.x: device=abacus is not a device"),
        (["+settings.x=['evaluate.device=abacus']", "launcher=slurm"], "settings.x: device=abacus is not a device"),
        (
            ["+settings.x=['evaluate.report.redact=true']"],
            "evaluate.report.redact=true is an option of the whole study",
        ),
        (["+settings={Mask: [], mask: []}"], "would share a folder"),
        (["settings=[1]"], "settings=[1]"),
        ([], "there are no settings"),
        (["+settings.x=[]", "seeds=0"], "seeds=0 must be a list"),
        (["+settings.x=[]", "seeds=[0,0]"], "seeds=[0, 0] must be a list of different whole numbers, at least 0"),
        (["+settings.x=[]", "sizes=50"], "sizes=50 must be a list"),
        (["+settings.x=[]", "sizes=[5000]"], "data.train_size=5000 but the set has 96 pairs"),
        (["+settings.x=[]", "utility_loss=abc"], "utility_loss=abc must be a number"),
        (["+settings.x=[]", "launcher=slrum"], "launcher=slrum is unknown (did you mean 'slurm'?)"),
        (["+settings.x=[]", "+series.a={7: []}"], "series.a names the size 7"),
        (["+settings.x.y=[]"], "settings.x.y=[] has a value of the wrong type; expected: {name:"),
        (["+settings={a-b: [], a%b: []}"], "would share a folder"),
        (["+settings={a: [], a-n90: []}", "sizes=[90,null]"], "'a' and 'a-n90' would share a folder"),
        (
            ["+settings.x=['data.half=2']"],
            "settings.x: data.half=2 is not for one setting; halves=R trains random halves",
        ),
        (["+settings={1: []}"], "settings={1: []}: Key 1 (int) is incompatible with (str)"),
        (["+settings.x=[]", "+series.a={big: []}"], "series.a names the size big"),
        (["+settings.x=[]", "+series.a={null: []}"], "Incompatible key type"),
        (["+settings.x=[]", "sizes=[null]", "+series.a={None: []}"], "series.a names the size None"),
        (["+settings.x=[]", "sizes=[0]"], "at least 1 (null: all pairs)"),
        (["+settings.x=['trainer.precision=bf16-mixed']"], "is an option of the whole study"),
        (["+settings.x=[]", "sizes=[null,96]"], "(null means all 96 pairs); remove one"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(given, sentence, scenes, tmp_path):
    good = ["+settings.good=['mitigation.text_mask=0.1']"] if any("settings.x=[" in o for o in given) else []
    done = call("mitigate", *good, *given, *options(scenes, tmp_path / "s"))
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("s/runs/*"))


def test_a_sweep_is_collected_into_the_same_table(study, scenes, tmp_path):
    base = tmp_path / "multirun"
    short = ["recipe.epochs=3", "trainer.checkpoint_epochs=9", f"data.dir={scenes}", f"hydra.sweep.dir={base}"]
    call("train", "-m", "side=target,reference", "mitigation.text_mask=0,0.5", *SMALL, *short)
    shutil.copytree(base / "0", base / "twice")
    for name, change in (("alone", ("\nseed: 0\n", "\nseed: 9\n")), ("begun", ("\nseed: 0\n", "\nseed: 8\n"))):
        (base / name).mkdir()
        (base / name / "config.yaml").write_text((base / "0" / "config.yaml").read_text().replace(*change))
    shutil.copy(base / "0" / "run.json", base / "alone" / "run.json")
    same = [o.removeprefix("evaluate.") for o in FEW]
    done = call("evaluate", f"sweep={base}", *same, "fail_if=symmetric.ppg.value > -2 and k == 5")
    assert "alone has no partner" in done.stderr
    assert "begun is not finished" in done.stderr
    assert "twice is the same run as" in done.stderr
    assert done.returncode == 3
    assert "fail_if is true for mitigation.text_mask=0.0-n96-s0, mitigation.text_mask=0.5-n96-s0" in done.stderr
    found = rows(base)
    assert [r["overrides"] for r in found] == [["mitigation.text_mask=0.0"], ["mitigation.text_mask=0.5"]]
    expected = rows(study[0])
    assert [list(r) for r in found] == [list(r) for r in expected[:2]]
    for row, other in zip(found, expected, strict=False):
        assert row["symmetric"] == other["symmetric"]
    assert (
        json.loads((base / "study.json").read_text()).keys() == json.loads((study[0] / "study.json").read_text()).keys()
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "experiment").iterdir()))
def test_experiments_compose(name):
    done = call("mitigate", f"experiment={name}", "--cfg", "job")
    config = yaml.safe_load(done.stdout)
    assert config["settings"]
    head = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert any(line.startswith(f"# dejavu mitigate experiment={name}") for line in head[1:3])
    assert config["out"] == f"outputs/{name}"


@pytest.mark.parametrize("name", ["laion10m", "cc3m", "coco"])
def test_only_paths_are_missing_in_the_large_recipes(name, tmp_path):
    done = call("mitigate", f"experiment={name}", f"out={tmp_path / 's'}")
    assert done.returncode == 1
    assert "data.dir is missing; give data.dir=" in done.stderr
