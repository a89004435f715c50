"""The same command twice gives the same files, and what must not matter does not: threads, workers, the cut of the shards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL, call, run

DATA = [option for option in SMALL if option.startswith("data.")]
FEW = ["k=5", "ks=[1,5]", "statistics.bootstrap=200", "statistics.top_ms=[5]", "report.write=false"]
RECORDS = ("records.parquet", "records_null.parquet", "records_swapped.parquet", "memorized.csv")


def files(folder: Path) -> dict[str, bytes]:
    """{path below the folder: contents} of all files that are no log."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def metrics(folder: Path) -> dict[str, Any]:
    """metrics.json but for the time, and for the commit, which may be another when somebody works on the checkout."""
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    for changing in ("time", "commit"):
        found["provenance"].pop(changing)
    return found


@pytest.fixture(scope="module")
def models(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Copies of the two runs, so that their embeddings can be thrown away."""
    base = tmp_path_factory.mktemp("models")
    for side, folder in runs.items():
        shutil.copytree(folder, base / side, ignore=shutil.ignore_patterns("embeddings"))
    return [f"{side}={base / side}" for side in runs]


@pytest.fixture(scope="module")
def first(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the two, in a process of its own with one thread."""
    out = tmp_path_factory.mktemp("evaluation") / "gap"
    run("evaluate", *models, *FEW, f"out={out}")
    return out


def forget(models: list[str]) -> None:
    """Remove what an evaluation left beside the models, so that the next one computes everything."""
    for model in models:
        shutil.rmtree(Path(model.partition("=")[2]) / "embeddings", ignore_errors=True)


def test_prepare_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in (1, 2):
        assert call("prepare", f"data.dir={tmp_path / str(number)}", *DATA, f"workers={number}").returncode == 0
    one, two = files(tmp_path / "1"), files(tmp_path / "2")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_evaluate_twice_gives_the_same_files(
    models: list[str], first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, known = metrics(first), {name: (first / name).read_bytes() for name in RECORDS}
    forget(models)
    first.rename(tmp_path / "kept")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run("evaluate", *models, *FEW, f"out={first}", real=True)  # libraries read it when they are imported
    assert metrics(first) == before
    for name, content in known.items():
        assert (first / name).read_bytes() == content, name


def test_neither_workers_nor_the_cut_of_the_shards_change_a_figure(
    models: list[str], first: Path, scenes: Path, tmp_path: Path
) -> None:
    done = call("prepare", f"data.dir={tmp_path / 'cut'}", *DATA, "pairs_per_shard=17")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cut/A").glob("*.tar"))) > len(list((scenes / "A").glob("*.tar")))
    # The same pairs in other shards: another manifest, so the command must be told that the sets are the same.
    cut = [f"data.dir={tmp_path / 'cut'}", "allow_overlap=true"]
    for name, options in (("workers", ["workers=3"]), ("cut", cut)):
        forget(models)
        done = call("evaluate", *models, *FEW, *options, f"out={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        one, two = metrics(first), metrics(tmp_path / name)
        for found in (one, two):
            del found["provenance"], found["settings"]
        if name == "cut":  # training went through other shards, so how often it saw each pair of these is unknown
            assert two["exposure"] == {"target": None, "reference": None}
            for found in (one, two):
                del found["exposure"], found["reasons"]["planted"]
        assert two == one, name


@pytest.mark.slow
def test_a_study_twice_gives_the_same_rows(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    options = [f"data.dir={scenes}", f"out={out}", *SMALL, *[f"evaluate.{option}" for option in FEW]]
    options += ["+settings.none=['mitigation.text_mask=0']", "+settings.mask=['mitigation.text_mask=0.5']"]
    found = []
    for turn in ("one", "two"):
        done = call("mitigate", *options)
        assert done.returncode == 0, done.stderr
        study = json.loads((out / "study.json").read_text())
        for row in study["settings"]:
            assert row.pop("seconds") > 0
        found.append(study)
        out.rename(tmp_path / turn)
    one, two = found
    assert one["settings"] == two["settings"]
    assert (one["frontier"], one["recommended"]) == (two["frontier"], two["recommended"])
