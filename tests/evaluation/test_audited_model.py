"""Weights that others took the place of are noticed; copies, and files that are gone, are not."""

import os
import shutil
from pathlib import Path

import pytest

from dejavu_lit.evaluation.audited_model import changed_weights, weight_files, weight_states
from tests.conftest import call

FEW = ["k=5", "ks=[5]", "statistics.bootstrap=200", "statistics.top_ms=[]", "report.write=false"]


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_where_the_weights_of_a_side_lie(tmp_path: Path) -> None:
    exported = put(tmp_path / "run/model/open_clip_model.safetensors", b"a")
    kept = put(tmp_path / "run/checkpoints/epoch=0003.ckpt", b"b")
    part = put(tmp_path / "vectors/A/text/00000.npy", b"c")
    put(tmp_path / "vectors/A/text/00000.txt", b"key\n")
    run = tmp_path / "run"
    assert weight_files(str(run), run) == {exported.name: exported}
    assert weight_files(f"{run}@3", run, 3) == {kept.name: kept}
    assert weight_files(f"{run}@4", run, 4) == {}
    assert weight_files(f"embeddings:{tmp_path / 'vectors'}") == {"A/text/00000.npy": part}
    assert weight_files(f"local-dir:{run / 'model'}") == {exported.name: exported}
    assert weight_files(f"ViT-B-32@{exported}") == {exported.name: exported}
    assert weight_files("ViT-B-32@openai") == weight_files("hf-hub:some/model") == weight_files("text:MiniLM") == {}


def test_a_released_tag_is_no_file_or_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "openai/model.safetensors", b"a")
    put(tmp_path / "laion2b_e16", b"b")
    put(tmp_path / "mine", b"c")
    assert weight_files("ViT-B-32@openai") == weight_files("ViT-B-32@laion2b_e16") == {}
    assert weight_files("ViT-B-32@mine") == {"mine": Path("mine")}


def test_other_contents_are_a_change_and_a_copy_is_none(tmp_path: Path) -> None:
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
    place = "model/open_clip_model.safetensors" if not epoch else "checkpoints/epoch=0001.ckpt"
    own, other = tmp_path / "target" / place, tmp_path / "reference" / place

    os.utime(own, ns=(1, 1))  # written again, the same
    done = call("evaluate", *options)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr + done.stdout
    shutil.copyfile(other, own)
    done = call("evaluate", *options)
    assert done.returncode == 1
    assert f"other weights than {own} holds now" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "gap/metrics.json").read_bytes() == before
