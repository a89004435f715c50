"""data.exclude and mitigation.dedup through prepare, train and evaluate."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dejavu_lit.data.objects import METADATA
from dejavu_lit.data.readers.scenes import SceneReader
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.audited_model import AuditedModel
from tests.conftest import SMALL, call


def keys(folder: Path) -> list[str]:
    return ShardSet.open(folder).keys()


def with_threshold(artifact: Path, folder: Path) -> Path:
    """A copy of an object artifact whose annotator stored scores from 0.1 on."""
    for part in artifact.glob("*/*.parquet"):
        table = pq.read_table(part)
        annotator = {**json.loads(table.schema.metadata[METADATA]), "threshold": 0.1}
        copy = folder / "objects" / part.relative_to(artifact)
        copy.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, METADATA: json.dumps(annotator)}), copy)
    return folder / "objects"


def test_excluded_pairs_are_not_trained_on_not_measured_and_not_searched(scenes: Path, tmp_path: Path) -> None:
    excluded = {name: keys(scenes / name)[2:12] for name in ("A", "B", "H", "P")}
    listed = tmp_path / "exclude.txt"
    listed.write_text("\n".join(key for set_keys in excluded.values() for key in set_keys))
    options = [f"data.dir={scenes}", f"data.exclude={listed}", "data.train_size=64", *SMALL]
    for side in ("target", "reference"):
        assert call("train", f"side={side}", f"out={tmp_path / side}", *options).returncode == 0
        record = json.loads((tmp_path / side / "run.json").read_text())
        assert record["train_size"] == 64
        assert record["exposure"]["min"] == 2  # 64 other pairs, in full batches, in each of the two epochs
    # The same file with other keys makes another run; the message names the setting.
    before = listed.read_text()
    listed.write_text(before + "\nnobody")
    again = call("train", "side=target", f"out={tmp_path / 'target'}", *options)
    assert again.returncode == 1
    assert "other settings (data.exclude_fingerprint:" in again.stderr
    sides = [f"target={tmp_path / 'target'}", f"reference={tmp_path / 'reference'}"]
    small = ["k=3", "ks=[3]", "statistics.bootstrap=100", "statistics.draws=20"]
    changed = call("evaluate", *sides, *small, f"out={tmp_path / 'gap'}")
    assert "other keys than when the run started" in changed.stderr
    listed.write_text(before)
    done = call("evaluate", *sides, *small, f"out={tmp_path / 'gap'}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "gap" / "metrics.json").read_text())
    for file, name in (("records", "A"), ("records_null", "H"), ("records_swapped", "B")):
        table = pq.read_table(tmp_path / "gap" / f"{file}.parquet").to_pydict()
        members = [key for key in keys(scenes / name) if key not in excluded[name]]
        assert set(table["key"]) == set(members[:64] if name != "H" else members)
        assert not {
            k for column in ("target_neighbors", "reference_neighbors") for row in table[column] for k in row
        } & {*excluded["P"]}
    assert metrics["exposure"]["target"] == {"mean": 2.0, "min": 2, "max": 2}
    # The list may move, and fewer pairs may be measured; the annotator may have stored no score below a threshold.
    moved = listed.rename(tmp_path / "moved.txt")
    few = [
        f"data.exclude={moved}",
        "data.train_size=20",
        f"objects={with_threshold(scenes / 'objects/scenes', tmp_path)}",
    ]
    done = call("evaluate", *sides, *small, *few, f"out={tmp_path / 'few'}")
    assert done.returncode == 0, done.stderr
    for file, name in (("records", "A"), ("records_swapped", "B")):
        table = pq.read_table(tmp_path / "few" / f"{file}.parquet").to_pydict()
        assert table["key"] == [key for key in keys(scenes / name) if key not in excluded[name]][:20]


def test_dedup_removes_from_training_only(tmp_path: Path) -> None:
    """Most images come twice: dedup trains on one of the two, and both stay in the set."""
    source, data = tmp_path / "images", tmp_path / "data"
    source.mkdir()
    reader = SceneReader(110)
    for number, key in enumerate(reader.keys()):
        pair, _ = reader.read(key)
        for copy in range(2 if number < 80 else 1):
            (source / f"{key}-{copy}.png").write_bytes(pair.image)
            (source / f"{key}-{copy}.txt").write_text(f"{pair.caption} {copy}")
    sizes = ["data.sizes={A: 60, B: 60, H: 20, V: 10, P: 40}", "data.near_duplicates=null"]
    done = call("prepare", "data=folder", f"data.reader.path={source}", f"data.dir={data}", *sizes, "workers=1")
    assert done.returncode == 0, done.stderr
    groups = json.loads((data / "manifest.json").read_text())["duplicates"]["groups"]
    for name in ("A", "B", "H", "V", "P"):
        repeated = sorted(key.rpartition("-")[0] for key in keys(data / name) if key.endswith("-1"))
        assert groups[name] == [[f"{key}-0", f"{key}-1"] for key in repeated]
    removed = {later for _, later in groups["A"]}
    assert 15 < len(removed) < 30
    small = [option for option in SMALL if not option.startswith(("data.", "recipe.batch"))]
    for dedup in (False, True):
        out = tmp_path / f"dedup-{dedup}"
        options = ["data=prepared", f"data.dir={data}", "recipe.batch=5", f"mitigation.dedup={dedup}", *small]
        done = call("train", "side=target", f"out={out}", *options)
        assert done.returncode == 0, done.stderr
        record = json.loads((out / "run.json").read_text())
        assert record["train_size"] == 60
        counts = AuditedModel(str(out), tmp_path).exposure(ShardSet.open(data / "A"))
        assert counts is not None
        times = dict(zip(keys(data / "A"), counts.tolist(), strict=True))
        never = {key for key, count in times.items() if count == 0}
        assert (removed if dedup else set()) <= never
        assert len(never - removed) <= 4  # at most what did not fill the last batch of either epoch
        trained = 60 - len(removed) if dedup else 60
        assert record["batches"] == 2 * (trained // 5)
        assert record["exposure"]["mean"] == pytest.approx(10 * (trained // 5) / 60)
