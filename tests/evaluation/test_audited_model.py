"""Replaced weights are noticed; copies and missing files are not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dejavu_lit.evaluation.audited_model import AuditedModel, changed_weights, weight_states
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json, write_json
from tests.conftest import ROOT, call

FEW = ["k=5", "ks=[5]", "statistics.bootstrap=200", "statistics.top_ms=[]", "report.write=false"]


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files_of(name: object) -> dict[str, Path]:
    return AuditedModel(str(name), Path()).weights


def test_the_weight_files_of_every_kind_of_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    put(run / "config.yaml", b"schema: 2\nseed: 0")
    exported = put(run / "model/open_clip_model.safetensors", b"a")
    settings = [put(run / "model" / name, b"{}") for name in ("open_clip_config.json", "tokenizer.json")]
    put(run / "model/notes.json", b"{}")
    checkpoint = put(run / "checkpoints/epoch=0003.ckpt", b"b")
    part = put(tmp_path / "vectors/A/text/00000.npy", b"c")
    put(tmp_path / "vectors/A/text/00000.txt", b"key\n")
    assert files_of(run) == {exported.name: exported}
    assert files_of(f"{run}@3") == {checkpoint.name: checkpoint}
    assert files_of(f"{run}@4") == {}
    assert files_of(f"embeddings:{tmp_path / 'vectors'}") == {"A/text/00000.npy": part}
    assert files_of(f"local-dir:{run / 'model'}") == {file.name: file for file in (exported, *settings)}
    assert files_of(f"ViT-B-32@{exported}") == {exported.name: exported}
    assert files_of("ViT-B-32@openai") == files_of("hf-hub:some/model") == files_of("text:MiniLM") == {}


def test_a_released_tag_is_not_a_file_or_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "openai/model.safetensors", b"a")
    put(tmp_path / "laion2b_e16", b"b")
    put(tmp_path / "mine", b"c")
    assert files_of("ViT-B-32@openai") == files_of("ViT-B-32@laion2b_e16") == {}
    assert files_of("ViT-B-32@mine") == {"mine": Path("mine")}


def test_other_contents_are_a_change_and_a_copy_is_not(tmp_path: Path) -> None:
    file = put(tmp_path / "model.safetensors", b"weights")
    files = {file.name: file}
    known = weight_states(files)
    assert changed_weights(files, known) is None
    os.utime(file, ns=(1, 1))
    assert changed_weights(files, known) is None
    put(file, b"weighty")  # as long as before
    os.utime(file, ns=(2, 2))
    assert changed_weights(files, known) == file
    put(file, b"more weights")
    assert changed_weights(files, known) == file
    assert changed_weights(files, {}) is None
    assert changed_weights({}, known) is None


@pytest.mark.parametrize("epoch", ["", "@1"])
def test_an_evaluation_notices_other_weights_at_the_same_path(
    runs: dict[str, Path], tmp_path: Path, epoch: str
) -> None:
    for side in ("target", "reference"):
        shutil.copytree(runs[side], tmp_path / side, ignore=shutil.ignore_patterns("embeddings"))
    options = [f"target={tmp_path / 'target'}{epoch}", f"reference={tmp_path / 'reference'}{epoch}", *FEW]
    options += [f"out={tmp_path / 'gap'}"]
    assert call("evaluate", *options).returncode == 0
    before = (tmp_path / "gap/metrics.json").read_bytes()
    path = "model/open_clip_model.safetensors" if not epoch else "checkpoints/epoch=0001.ckpt"
    weights, foreign = tmp_path / "target" / path, tmp_path / "reference" / path

    os.utime(weights, ns=(1, 1))  # rewritten with the same contents
    done = call("evaluate", *options)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr + done.stdout
    shutil.copyfile(foreign, weights)
    done = call("evaluate", *options)
    assert done.returncode == 1
    assert f"{weights} of the model changed since" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "gap/metrics.json").read_bytes() == before


PLAN = {"seed": 0, "world": 1, "workers": 0, "batch": 16}


@pytest.mark.parametrize(
    "damage",
    [
        {"batches": "many"},
        {"batches": 10**12},  # counted epoch by epoch
        {"plan": None},
        {"plan": {"seed": 0}},
        {"plan": PLAN | {"seed": -1}},
        {"plan": PLAN | {"batch": 0}},
    ],
)
def test_a_damaged_record_of_a_run_is_a_sentence(
    damage: dict[str, object], runs: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs["target"], tmp_path / "run")
    write_json(run / "run.json", {**read_json(run / "run.json"), **damage})
    model = AuditedModel(str(run), tmp_path)
    with pytest.raises(
        UserError, match=r"run/run\.json is damaged: plan or batches \(.*\); restore it, or train again"
    ):
        model.exposure(model.data.shard_set("A"))


def evaluate_unprivileged(*options: str) -> None:
    """``evaluate.py`` without root's permission to write what may only be read."""
    command = [sys.executable, "evaluate.py", *options]
    if os.getuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root can write everywhere, and setpriv is missing")
        command = ["setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override", *command]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_runs_that_cannot_be_written_are_evaluated_below_out(runs: dict[str, Path], tmp_path: Path) -> None:
    pair = {side: tmp_path / f"{side} of a colleague" for side in ("target", "reference")}
    for side, folder in pair.items():
        shutil.copytree(runs[side], folder, ignore=shutil.ignore_patterns("embeddings"))
    models = [f"{side}='{folder}'" for side, folder in pair.items()]
    elsewhere = call("evaluate", *models, *FEW, f"out={tmp_path / 'moved'}", f"embeddings={tmp_path / 'vectors'}")
    assert elsewhere.returncode == 0, elsewhere.stderr
    folders = [path for run in pair.values() for path in (run, *run.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        evaluate_unprivileged(*models, *FEW, f"out={tmp_path / 'own'}")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert not any((run / "embeddings").exists() for run in pair.values())
    parts = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.npy")}
        for root in (tmp_path / "vectors", tmp_path / "own/embeddings")
    ]
    assert parts[0] == parts[1]
    assert {name.split("-")[0] for name in parts[0]} == {f"{side} of a colleague" for side in pair}
    figures = [json.loads((tmp_path / out / "metrics.json").read_text())["symmetric"] for out in ("moved", "own")]
    assert figures[0] == figures[1]
