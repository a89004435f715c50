"""What would make a figure mean something else is refused, by name, before anything is computed from it."""

import shutil
from pathlib import Path

import pytest

from dejavu_lit.data.shards import ShardSet, index_shard
from dejavu_lit.utils.io import locked
from tests.conftest import SMALL, call


def evaluate(runs: dict[str, Path], out: Path, *options: str) -> str:
    done = call("evaluate", f"target={runs['target']}", f"reference={runs['reference']}", f"out={out}", *options)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def prepared_with_another_seed(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))


@pytest.fixture
def other(scenes: Path, tmp_path: Path) -> Path:
    """The same images in a folder whose manifest says otherwise."""
    folder = shutil.copytree(scenes, tmp_path / "other")
    prepared_with_another_seed(folder)
    return folder


def test_runs_trained_on_other_data(runs, other, tmp_path):
    said = evaluate(runs, tmp_path / "out", f"data.dir={other}")
    assert f"was trained on other data than {other}" in said
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_public_images_that_were_trained_on(runs, scenes, tmp_path):
    said = evaluate(runs, tmp_path / "out", f"data.public={scenes / 'A'}")
    assert f"has 96 keys of {scenes / 'A'}" in said


def test_the_directory_of_a_training_as_out(runs, tmp_path):
    said = evaluate(runs, runs["target"])
    assert f"out={runs['target']} is the directory of a training; choose another folder" in said


def test_a_sweep_that_another_process_is_evaluating(runs):
    folder = runs["target"].parent
    with locked(folder / ".lock"):
        done = call("evaluate", f"sweep={folder}", "k=5", "ks=[5]")
    assert done.returncode == 1
    assert f"another process is using {folder}" in done.stderr


def test_more_neighbors_than_public_images_and_an_unknown_labelled_set(runs, tmp_path):
    assert "k=100 is more than the 64 images of" in evaluate(runs, tmp_path / "k", "k=100", "ks=[100]")
    assert "data.labelled=nope is not a set of" in evaluate(runs, tmp_path / "l", "data.labelled=nope")


def test_embeddings_of_captions_that_were_changed_since(runs, scenes, tmp_path):
    copies = {side: shutil.copytree(path, tmp_path / side) for side, path in runs.items()}
    data = shutil.copytree(scenes, tmp_path / "scenes")
    options = [f"data.dir={data}", "k=5", "ks=[5]", "report.write=false"]
    done = call("evaluate", *(f"{side}={path}" for side, path in copies.items()), f"out={tmp_path / 'one'}", *options)
    assert done.returncode == 0, done.stderr
    shard = next((data / "H").glob("*.tar"))
    shard.write_bytes(shard.read_bytes().replace(b" with a ", b" with no"))
    index_shard.cache_clear()
    said = evaluate(copies, tmp_path / "two", *options)
    assert "the data differs" in said
    assert "H-text" in said
    assert "remove that folder" in said


def test_figures_follow_the_contents_of_the_files_that_they_name(runs, scenes, tmp_path):
    keys = tmp_path / "keys.txt"
    options = [f"target={runs['target']}", f"reference={runs['reference']}", f"out={tmp_path / 'out'}", "k=5", "ks=[5]"]
    known = ShardSet.open(scenes / "A").keys(1)[0]
    keys.write_text(f"{known}\nnobody\n")
    first = call("evaluate", *options, f"keys={keys}", "report.write=false")
    assert "1 not in A" in first.stderr
    again = call("evaluate", *options, f"keys={keys}", "report.write=false")
    assert "is finished" in again.stderr
    keys.write_text(f"{known}\nnobody\nnothing\n")
    assert "2 not in A" in call("evaluate", *options, f"keys={keys}", "report.write=false").stderr


def test_data_that_were_prepared_again_since_the_evaluation(runs, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    pair = [f"{side}={path}" for side, path in runs.items()]
    options = [f"data.dir={data}", "k=5", "ks=[5]", "report.write=false", "allow_overlap=true"]
    assert call("evaluate", *pair, f"out={tmp_path / 'out'}", *options).returncode == 0
    prepared_with_another_seed(data)
    said = evaluate(runs, tmp_path / "out", *options)
    assert f"{data} was prepared again since {tmp_path / 'out'} was measured; choose another out=" in said


def test_data_that_were_prepared_again_since_a_run_was_started(runs, other, tmp_path):
    run = shutil.copytree(runs["target"], tmp_path / "run")
    (run / "run.json").unlink()
    config = run / "config.yaml"
    started = next(line for line in config.read_text().splitlines() if line.strip().startswith("dir: "))
    config.write_text(config.read_text().replace(started, started.partition("dir:")[0] + f"dir: {other}"))
    done = call("train", "side=target", f"data.dir={other}", f"out={run}", *SMALL)
    assert done.returncode == 1
    assert f"{other} was prepared again since this run was started" in done.stderr


def test_another_order_of_the_pairs_on_resuming(runs, scenes, tmp_path):
    run = shutil.copytree(runs["target"], tmp_path / "run")
    (run / "run.json").unlink()
    done = call("train", "side=target", f"data.dir={scenes}", f"out={run}", *SMALL, "trainer.loader.workers=2")
    assert done.returncode == 1
    assert "cannot continue with its pairs in another order (loader workers: 0 → 2)" in done.stderr
