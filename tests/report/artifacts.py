"""Small complete evaluations and studies on disk, written by the package itself from random neighbors, without a model."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import Annotation, Annotator, read_objects, write_objects
from dejavu_lit.data.shards import Pair
from dejavu_lit.measure.membership import scoreboard
from dejavu_lit.measure.metrics import measure
from dejavu_lit.measure.model_scores import MODEL_SCORES
from dejavu_lit.measure.records import EXPOSURE, Records, write_records
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.measure.settings import Settings
from dejavu_lit.study import table as study
from dejavu_lit.study.cells import Cell
from dejavu_lit.utils.io import read_json, write_json

LABELS = (
    "bear",
    "wolf",
    "kite",
    "soccer ball",
    "tulip",
    "drum",
    "pizza",
    "bus",
    "owl",
    "crown",
    "<b>bold</b>",
    "$x$ & y",
)
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "שלום עולם with a kite",
    "مرحبا ‮ reversed",
    "a 🐻 and a 👩‍👩‍👧 in one image \u2028 next line",
    "</script><style>*{display:none}</style> ${alert(1)} `x`",
)
FEW_FIGURES = Settings(k=5, ks=(5,), bootstrap=100, tops=(10, 1.0), subgroups=())
ANNOTATOR = "made"  # of the object artifact


def make_evaluation(
    folder: Path,
    n: int = 40,
    m: int = 30,
    strength: float = 0.6,
    images: bool = True,
    captions: Mapping[int, str] | None = None,
    planted: bool = False,
    membership: bool = False,
    data: Path | None = None,
    settings: Settings | None = None,
    seed: int = 0,
) -> Path:
    """Write an evaluation with n pairs per set and m public images; the target's neighbors share objects by ``strength``.

    Data and objects are in ``data`` (``folder``/data by default) and depend on n, m and ``captions`` alone.
    """
    data = data or folder / "data"
    settings = settings or Settings(
        k=5, ks=(1, 5), bootstrap=100, tops=(10, 0.1, 1.0), smallest_group=5, thresholds=(0.3,), top_ms=(3, 6)
    )
    if not (data / "objects").is_dir():
        _write_data(data, n, m, dict(captions or {}), images)
    block_sets = {"population": "A", "null": "H", "swapped": "B"}
    names = (*block_sets.values(), "P")

    def objects_at(threshold: float) -> dict[str, Any]:
        objects, _ = read_objects([data / "objects" / ANNOTATOR / name for name in names], threshold)
        return dict(zip(names, objects, strict=True))

    objects = objects_at(settings.threshold)
    rng = np.random.default_rng(seed)
    sets = {}
    for block, name in block_sets.items():
        truth, public = objects[name], objects["P"]
        texts = json.loads((data / f"{name}.captions.json").read_text())
        target = _neighbors(rng, truth, public, settings.ks[-1], 0.0 if block == "null" else strength)
        reference = _neighbors(rng, truth, public, settings.ks[-1], 0.0)
        columns: dict[str, Any] = {EXPOSURE: [20 if planted and i % 4 == 0 else 2 for i in range(len(truth))]}
        if membership:
            for side, members in (("target", block != "null"), ("reference", False)):
                for score in MODEL_SCORES:
                    scores = rng.normal(strength * members, 0.5, len(truth))
                    columns[f"{side}_{score}"] = [None, *scores.tolist()[1:]]  # the first pair was not drawn
        sets[block] = Records(texts, truth, public, target, reference, columns)
        file = "records.parquet" if block == "population" else f"records_{block}.parquet"
        write_records(folder / file, sets[block], settings.k, settings.top_m)
    metrics = measure(sets["population"], sets["null"], sets["swapped"], settings, objects_at)
    if membership:
        metrics["membership"] = scoreboard(sets, settings)
    metrics["utility"] = {
        side: {"zeroshot_top1": min(1.0, 0.4 + 0.05 * strength), "t2i_r1": 0.2, "linear_probe": None}
        for side in ("target", "reference")
    }
    metrics["exposure"] = {side: {"mean": 2.0, "min": 2, "max": 2} for side in ("target", "reference")}
    metrics["search"] = {"index": "flat", "recall": 1.0}
    metrics["settings"] |= {"target": "runs/target", "reference": "runs/<reference>", "public": "scenes"}
    metrics["settings"] |= {"objects": str(data / "objects" / ANNOTATOR), "data": str(data)}
    metrics["provenance"] = {
        "dejavu_lit": "0.1.0",
        "commit": "abc",
        "command": "python evaluate.py target=runs/target",
        "versions": {"numpy": "2"},
        "config": {"data": {"public_sets": {"scenes": "P"}}},
    }
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "context.json", {"public": "P"})
    return folder


def make_study(
    folder: Path,
    strengths: Mapping[str, float],
    sizes: tuple[int, ...] = (40,),
    seeds: int = 1,
    settings: Settings | None = None,
    membership: bool = False,
) -> Path:
    """Write a study of settings, each with the strength of its target's memorization; the first is the default."""
    rows = []
    for size in sizes:
        for name, strength in strengths.items():
            for seed in range(seeds):
                evaluation = folder / "evaluations" / f"{name}-{size}-{seed}"
                make_evaluation(
                    evaluation, n=size, strength=strength, data=folder / f"data{size}", seed=seed, settings=settings,
                    membership=membership,
                )  # fmt: skip
                runs = [folder / f"{name}-{side}" for side in ("target", "reference")]
                for run in runs:
                    write_json(run / "run.json", {"seconds": 1.0})
                cell = Cell(
                    name=name, overrides=(f"mitigation.text_mask={1 - strength:g}",), train_size=size, seed=seed,
                    target=runs[0], reference=runs[1], folder=evaluation,
                )  # fmt: skip
                row = study.study_row(folder, cell, read_json(evaluation / "metrics.json"))
                rows.append(row | {"data": "data", "objects": ANNOTATOR})  # the sizes of a real study share their data
    study.write_study(folder, rows, {}, 0.05)
    return folder


def _write_data(data: Path, n: int, m: int, captions: dict[int, str], images: bool) -> None:
    rng = np.random.default_rng(7)
    for name, count in (("A", n), ("B", n), ("H", n), ("P", m)):
        rows, texts, pairs = [], [], []
        for i in range(count):
            key = f"{name.lower()}{i:05d}"
            objects = sorted(rng.choice(len(LABELS), size=int(rng.integers(1, 5)), replace=False).tolist())
            if i == count - 1 and name == "A":
                objects = []  # an image without objects, which every figure excludes
            scores = [0.9 if rng.random() < 0.8 else 0.4 for _ in objects]
            scores[:1] = [0.9] * bool(objects)
            boxes = [[2.0 * j, 1.0 + j, 8.0, 6.0] for j in range(len(objects))]  # in images of 24 × 16 pixels
            rows.append(Annotation(key, [LABELS[code] for code in objects], scores, boxes))
            texts.append(captions.get(i, f"one {LABELS[objects[0]]} in image {i}" if objects else "nothing at all"))
            pairs.append(Pair(key, _image(i if count < 1000 else 0), "png", texts[-1]))
        write_objects(data / "objects" / ANNOTATOR / name / "00000.parquet", rows, Annotator(ANNOTATOR, threshold=0.0))
        (data / f"{name}.captions.json").write_text(json.dumps(texts))
        if images:
            write_shards(data / name, pairs, pairs_per_shard=5000)


def _image(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), ((number * 37) % 256, (number * 91) % 256, 120)).save(out, "PNG")
    return out.getvalue()


def _neighbors(rng: np.random.Generator, truth: Any, public: Any, k: int, strength: float) -> Neighbors:
    """k public rows for every record; each shares an object with the record with probability ``strength``."""
    by_code: dict[int, list[int]] = {}
    for row in range(len(public)):
        for code in public.codes[public.starts[row] : public.starts[row + 1]].tolist():
            by_code.setdefault(code, []).append(row)
    rows = np.zeros((len(truth), k), np.int32)
    for record in range(len(truth)):
        own = truth.codes[truth.starts[record] : truth.starts[record + 1]].tolist()
        sharing = [r for code in own for r in by_code.get(code, [])]
        first = [r for r in dict.fromkeys(sharing) if rng.random() < strength][:k]
        random = [r for r in rng.choice(len(public), 2 * k, replace=False).tolist() if r not in first]
        rows[record] = [*first, *random][:k]
    distances = np.sort(rng.uniform(0.1, 0.9, rows.shape).astype(np.float32), axis=1)
    return Neighbors(rows, distances)
