import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dejavu_lit.data.objects import Annotation, Annotator, read_objects, write_objects
from dejavu_lit.measure import recompute
from dejavu_lit.measure.metrics import gap_blocks, measure
from dejavu_lit.measure.recompute import RECORD_FILES, read_evaluation, read_metrics
from dejavu_lit.measure.records import Records, write_records
from dejavu_lit.measure.settings import Settings
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json, write_json
from tests.measure.oracle import Case

SETTINGS = Settings(k=3, ks=(1, 3, 6), bootstrap=200, threshold=0.5, thresholds=(0.7,))


@pytest.fixture
def evaluation(tmp_path: Path) -> tuple[Path, Path]:
    """An evaluation's folder and its object artifact, each object with a random score."""
    rng = np.random.default_rng(0)
    cases = [Case(seed, n=80, prefix=prefix) for seed, prefix in enumerate("ahb")]
    artifact, folder = tmp_path / "objects", tmp_path / "evaluation"
    images = {name: (c.truth_objects.keys, c.truth) for name, c in zip("AHB", cases, strict=True)}
    for name, (keys, sets) in {**images, "P": (cases[0].public_objects.keys, cases[0].public)}.items():
        rows = [
            Annotation(k, sorted(s), rng.random(len(s)).tolist(), [[0, 0, 1, 1]] * len(s))
            for k, s in zip(keys, sets, strict=True)
        ]
        write_objects(artifact / name / "00000.parquet", rows, Annotator("test"))
    folder.mkdir()
    write_json(folder / "metrics.json", measured(cases, artifact, folder, SETTINGS))
    return folder, artifact


def measured(cases: list[Case], artifact: Path, folder: Path, settings: Settings) -> dict:
    def at(threshold: float) -> dict:
        return dict(zip("AHBP", read_objects([artifact / s for s in "AHBP"], threshold)[0], strict=True))

    joined = at(settings.threshold)
    sets = [
        Records(c.records().captions, joined[s], joined["P"], c.target, c.reference)
        for c, s in zip(cases, "AHB", strict=True)
    ]
    for records, name in zip(sets, RECORD_FILES.values(), strict=True):
        write_records(folder / name, records, settings.k, settings.top_m)
    return measure(*sets, settings, at)


def test_only_some_blocks_are_read(evaluation: tuple[Path, Path]) -> None:
    folder, artifact = evaluation
    (folder / RECORD_FILES["null"]).write_bytes(b"damaged")
    sets, objects_at = read_evaluation(folder, artifact, 0.5, blocks=("population", "swapped"))
    assert sets.keys() == {"population", "swapped"}
    assert objects_at(0.5).keys() == {"A", "B", "P"}


def test_each_content_is_validated_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[Any] = []

    class Validator:
        def iter_errors(self, content: Any) -> Iterator[Any]:
            validated.append(content)
            return iter(())

    monkeypatch.setattr(recompute, "_validator", lambda *_: Validator())
    contents = [{"schema": 2, "k": k} for k in range(300)]
    for content in contents * 2:
        assert recompute.schema_error(content, "dejavu_lit.measure", "any.json") is None
    assert validated == contents


def recomputed(folder: Path, artifact: Path, **changes: Any) -> dict:
    settings = replace(SETTINGS, **changes)
    sets, objects_at = read_evaluation(folder, artifact, settings.threshold)
    return measure(sets["population"], sets.get("null"), sets.get("swapped"), settings, objects_at)


def test_recomputing_gives_the_same_bits(evaluation: tuple[Path, Path]) -> None:
    assert recomputed(*evaluation) == read_json(evaluation[0] / "metrics.json")


def test_other_settings_agree_with_a_new_measurement(evaluation: tuple[Path, Path], tmp_path: Path) -> None:
    folder, artifact = evaluation
    old = read_json(folder / "metrics.json")
    at = recomputed(folder, artifact, threshold=0.7)
    assert at["symmetric"] == old["sensitivity"]["threshold"][0]["symmetric"]
    assert recomputed(folder, artifact, k=6)["symmetric"] == old["by_k"]["6"]["symmetric"]
    top = recomputed(folder, artifact, top_m=2)
    cases = [Case(seed, n=80, prefix=prefix) for seed, prefix in enumerate("ahb")]
    again = measured(
        cases, artifact, tmp_path / "new", Settings(k=3, ks=(1, 3, 6), bootstrap=200, top_m=2, thresholds=(0.7,))
    )
    assert top == again


def test_without_holdout_and_swapped(evaluation: tuple[Path, Path]) -> None:
    folder, artifact = evaluation
    for name in ("records_null.parquet", "records_swapped.parquet"):
        (folder / name).unlink()
    body = recomputed(folder, artifact)
    assert body["symmetric"] is None
    assert body["population"] == read_json(folder / "metrics.json")["population"]
    sets, _ = read_evaluation(folder, artifact, 0.5)
    assert list(sets) == ["population"]


def test_annotated_images_that_were_not_searched_do_not_count(evaluation: tuple[Path, Path]) -> None:
    folder, artifact = evaluation
    old = read_evaluation(folder, artifact, 0.5)[0]["population"].public.keys
    write_objects(artifact / "P" / "00001.parquet", [Annotation("another", [], [], [])], Annotator("test"))
    assert read_evaluation(folder, artifact, 0.5)[0]["population"].public.keys == tuple(sorted((*old, "another")))
    sets, objects_at = read_evaluation(folder, artifact, 0.5, left_out=["another"])
    assert sets["population"].public.keys == objects_at(0.7)["P"].keys == old
    with pytest.raises(UserError, match=r"names the public image .* which has no objects"):
        read_evaluation(folder, artifact, 0.5, left_out=old[:40])


def test_heavy_modules_are_not_imported(evaluation: tuple[Path, Path]) -> None:
    code = (
        "import sys; from dejavu_lit.measure import Settings, measure, read_evaluation; "
        "sets, objects_at = read_evaluation(sys.argv[1], sys.argv[2], 0.6); "
        "measure(*sets.values(), Settings(k=6, ks=(6,), threshold=0.6), objects_at); "
        "import dejavu_lit.measure.per_pair, dejavu_lit.measure.figures; "
        "heavy = {'torch', 'hydra', 'faiss', 'wandb', 'open_clip', 'pytorch_lightning', 'sklearn', 'matplotlib'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, evaluation)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_named(evaluation: tuple[Path, Path], tmp_path: Path) -> None:
    folder, artifact = evaluation
    with pytest.raises(UserError, match="exceeds the 6"):
        recomputed(folder, artifact, ks=(3, 7))
    write_json(folder / "metrics.json", read_json(folder / "metrics.json") | {"schema": 0})
    with pytest.raises(UserError, match="has schema 0"):
        read_metrics(folder)
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match=r"has no records\.parquet"):
        read_evaluation(tmp_path, artifact, 0.5)


def test_gaps_under_other_artifacts_come_from_the_same_neighbors(evaluation: tuple[Path, Path], tmp_path: Path) -> None:
    folder, artifact = evaluation
    old = read_json(folder / "metrics.json")
    strict, empty = tmp_path / "strict", tmp_path / "empty"
    for name in "AHBP":
        rows = pq.read_table(artifact / name / "00000.parquet").to_pylist()
        sure = [[(n, 1.0, b) for n, s, b in zip(*row[1:], strict=True) if s >= 0.7] for row in map(tuple_of, rows)]
        for out, selected in ((strict, sure), (empty, [[]] * len(rows))):
            annotations = [Annotation(r["key"], *map(list, zip(*k, strict=True))) if k else Annotation(r["key"], [], [], [])
                    for r, k in zip(rows, selected, strict=True)]  # fmt: skip
            write_objects(out / name / "00000.parquet", annotations, Annotator("sure"))
    artifacts = {"own": artifact, "sure": strict, "none": empty}
    joined = {name: read_evaluation(folder, path, SETTINGS.threshold)[0] for name, path in artifacts.items()}
    gaps = {name: gap_blocks(sets, SETTINGS, f"in the artifact {name}") for name, sets in joined.items()}
    blocks = ("population", "null", "swapped", "symmetric", "corrected")
    at_threshold = old["sensitivity"]["threshold"][0]
    assert at_threshold["threshold"] == 0.7
    for block in blocks:
        assert gaps["own"][block] == old[block]
        assert gaps["sure"][block] == at_threshold[block]
        assert gaps["none"][block] is None
    assert gaps["sure"]["counts"]["records"] == at_threshold["counts"]["records"]
    assert gaps["none"]["reason"] == "no record of A has an object in the artifact none"
    write_objects(strict / "P" / "00001.parquet", [Annotation("x", [], [], [])], Annotator("another"))
    with pytest.raises(UserError, match="use one annotator for all sets"):
        read_evaluation(folder, strict, SETTINGS.threshold)


def tuple_of(row: dict) -> tuple:
    return row["key"], row["labels"], row["scores"], row["boxes"]
