"""Artifacts of other versions: refused with their name and both numbers, or read where an older one says the same."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dejavu_lit.data.objects import METADATA, read_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json_object, write_json
from tests.conftest import SMALL, call
from tests.faults.common import FEW, report, sentence


def numbered(path: Path, number: int | None) -> None:
    """Give a JSON artifact another schema number, or none."""
    found = json.loads(path.read_text())
    assert found.pop("schema") in (1, 2)
    write_json(path, found if number is None else {"schema": number, **found})


@pytest.mark.parametrize("number", [0, 2, "1"])
def test_the_manifest_and_the_run(number, scenes, runs, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    numbered(data / "manifest.json", number)
    options = [o for o in SMALL if o.startswith("data.")]
    for done in (
        call("train", "side=target", f"data.dir={data}", f"out={tmp_path / 'run'}", *SMALL),
        call("prepare", f"data.dir={data}", *options),
    ):
        assert f"{data / 'manifest.json'} has schema {number}, but this version reads 1; use the version" in sentence(
            done
        )
    run = shutil.copytree(
        runs["target"], tmp_path / "target", ignore=shutil.ignore_patterns("checkpoints", "embeddings")
    )
    numbered(run / "run.json", number)
    for done in (
        call("evaluate", f"target={run}", f"reference={runs['reference']}", f"out={tmp_path / 'e'}", *FEW),
        call("train", "side=target", f"data.dir={scenes}", f"out={run}", *SMALL),
    ):
        assert f"{run / 'run.json'} has schema {number}, but this version reads 1" in sentence(done)


def test_those_before_the_numbers_are_read(scenes, runs, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    numbered(data / "manifest.json", None)
    DataSpec(name="scenes", dir=str(data)).check()
    run = shutil.copytree(
        runs["target"], tmp_path / "target", ignore=shutil.ignore_patterns("checkpoints", "embeddings")
    )
    numbered(run / "run.json", None)
    done = call("train", "side=target", f"data.dir={scenes}", f"out={run}", *SMALL)
    assert "is finished (2 epochs); nothing to do" in done.stderr


def test_an_evaluation(evaluated, runs, tmp_path):
    out = shutil.copytree(evaluated, tmp_path / "e")
    numbered(out / "metrics.json", 3)
    said = sentence(report(f"path={out}"))
    assert f"{out}/metrics.json has schema 3, but this version reads 2; use the version" in said
    # Which makes the figures again, from the records.
    done = call("evaluate", *(f"{side}={runs[side]}" for side in runs), f"out={out}", *FEW)
    assert done.returncode == 0, done.stderr
    metrics = read_json_object(out / "metrics.json", 2)
    # The first schema had no membership scores; reports and gates still read it.
    del metrics["membership"]
    write_json(out / "metrics.json", metrics | {"schema": 1})
    done = report(f"path={out}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        {"largest_k": "10"},
        {"weights": {"target": [], "reference": {}}},
        {"public": {}},
        {"public_left_out": [{}]},
        {"utility": {"target": {"t2i_r1": 1e308}}},
        {"exposure": {"target": {"mean": 2.0}}},
        {"images": {"P": []}},
        {"membership": {"pairs": 10}},
    ],
)
def test_a_damaged_context(damage, evaluated, runs, tmp_path):
    """Its entries become figures, or decide whether records are searched again."""
    out = shutil.copytree(evaluated, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    write_json(out / "context.json", {**read_json_object(out / "context.json"), **damage})
    said = sentence(call("evaluate", *(f"{side}={runs[side]}" for side in runs), f"out={out}", *FEW))
    assert f"{out}/context.json is damaged or of another version ($.{next(iter(damage))}" in said


def test_a_study(tmp_path):
    write_json(tmp_path / "study.json", {"schema": 2, "settings": [{}]})
    assert f"{tmp_path}/study.json has schema 2, but this version reads 1; use the version" in sentence(
        report(f"path={tmp_path}")
    )


def test_embeddings(evaluated, runs, tmp_path):
    run = shutil.copytree(runs["target"], tmp_path / "target", ignore=shutil.ignore_patterns("checkpoints"))
    for path in run.rglob("fingerprint.json"):
        numbered(path, 2)
    done = call("evaluate", f"target={run}", f"reference={runs['reference']}", f"out={tmp_path / 'e'}", *FEW)
    said = sentence(done)
    assert f"the embeddings in {run}" in said
    assert "do not match: the schema differs; remove that folder to compute them again" in said


def test_objects_of_another_form(scenes, tmp_path):
    """They carry no number: what has other columns, or an annotator with other fields, is refused by name."""
    part = next((scenes / "objects" / "scenes" / "A").glob("*.parquet"))
    table = pq.read_table(part)
    named = tmp_path / "named" / "00000.parquet"
    renamed = table.rename_columns(["key", "names", "scores", "boxes"])
    wider = {**json.loads(table.schema.metadata[METADATA]), "masks": "yes"}
    described = table.replace_schema_metadata({METADATA: json.dumps(wider).encode()})
    for other in (renamed, described, table.replace_schema_metadata(None), pa.table({"key": ["a"]})):
        named.parent.mkdir(exist_ok=True)
        pq.write_table(other, named)
        with pytest.raises(
            UserError, match=rf"{named} is damaged or not an object artifact .*; annotate the images again"
        ):
            read_objects([named.parent])
